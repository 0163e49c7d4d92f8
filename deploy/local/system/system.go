// Package system is the whole system in one process: embedded Postgres and Kafka, the three services and the gateway.
package system

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"example.com/billing/deploy/local/embedded"
	"example.com/billing/pkg/run"
	account "example.com/billing/services/account/server"
	"example.com/billing/services/edge"
	gateway "example.com/billing/services/gateway/server"
	saga "example.com/billing/services/saga-orchestrator/server"
	transaction "example.com/billing/services/transaction/server"
)

// The databases, one for each service.
const (
	AccountDatabase     = "billing_account"
	TransactionDatabase = "billing_transaction"
	SagaDatabase        = "billing_saga"
)

// Settings say where the system keeps its data and listens. Empty addresses are free ports of 127.0.0.1.
type Settings struct {
	HTTPAddr        string   `name:"http-addr" env:"BILLING_HTTP_ADDR" help:"Where to serve REST."`
	AccountAddr     string   `name:"account-addr" env:"BILLING_ACCOUNT_ADDR" help:"Where the account service serves gRPC."`
	TransactionAddr string   `name:"transaction-addr" env:"BILLING_TRANSACTION_ADDR" help:"Where the transaction service serves gRPC."`
	SagaAddr        string   `name:"saga-addr" env:"BILLING_SAGA_ADDR" help:"Where the saga orchestrator serves gRPC."`
	PostgresDSN     string   `name:"postgres-dsn" env:"BILLING_POSTGRES_DSN" help:"A PostgreSQL server to use instead of the embedded one; the databases are created on it."`
	PostgresBin     string   `name:"postgres-bin" env:"BILLING_POSTGRES_BIN" help:"Folder of PostgreSQL's binaries; none = fetch them; empty = find them on this machine, else fetch them."`
	KafkaBrokers    []string `name:"kafka-brokers" env:"BILLING_KAFKA_BROKERS" help:"Kafka brokers to use instead of the embedded one."`
	DataDir         string   `name:"data-dir" env:"BILLING_DATA_DIR" help:"Where the embedded parts keep their data."`
	EventStore      string   `name:"event-store" env:"BILLING_EVENT_STORE" default:"postgres" help:"Where the accounts' events are: postgres, kafka or memory. Data that was made on one is not there on another."`
	edge.CurrencySettings
	LatencyTarget time.Duration `name:"latency-target" env:"BILLING_LATENCY_TARGET" default:"1s" help:"How long a transaction may take before requests are shed; 0 = never."`
	LogLevel      slog.Level    `name:"log-level" env:"BILLING_LOG_LEVEL" default:"INFO" help:"debug, info, warn or error."`
}

// System is a running system.
type System struct {
	HTTP, Account, Transaction, Saga string // addresses

	settings Settings
	say      func(format string, args ...any)
	log      io.WriteCloser
	postgres *embedded.Postgres
	kafka    *embedded.Kafka
	cancel   context.CancelFunc
	services *errgroup.Group
	done     chan struct{} // closed when a service has ended
}

// Start starts everything and returns when the system is ready. say is told of the progress. On an error nothing is left
// running.
func Start(ctx context.Context, s Settings, say func(format string, args ...any)) (_ *System, err error) {
	sys := &System{settings: s, say: say, done: make(chan struct{})}
	defer func() {
		if err != nil {
			_ = sys.Stop() // the error that stopped the start matters more
		}
	}()
	if err := os.MkdirAll(s.DataDir, 0o755); err != nil { //nolint:gosec // the Postgres user passes through
		return nil, fmt.Errorf("data directory: %w", err)
	}
	logPath := filepath.Join(s.DataDir, "billing.log")
	if sys.log, err = os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil { //nolint:gosec // the settings say where
		return nil, fmt.Errorf("log file: %w", err)
	}
	if err := sys.addresses(ctx); err != nil {
		return nil, err
	}
	if err := sys.startParts(ctx); err != nil {
		return nil, err
	}
	say("starting the services (log: %s)", logPath)
	sys.startServices()
	if err := sys.waitReady(ctx); err != nil {
		return nil, fmt.Errorf("%w; see %s", err, logPath)
	}
	return sys, nil
}

// startParts starts Postgres and Kafka and creates the databases.
func (sys *System) startParts(ctx context.Context) (err error) {
	s := sys.settings
	sys.postgres, err = embedded.StartPostgres(ctx, embedded.PostgresOptions{DSN: s.PostgresDSN, Bin: s.PostgresBin, DataDir: s.DataDir, Logf: sys.say})
	if err != nil {
		return err
	}
	if err := sys.postgres.EnsureDatabases(ctx, AccountDatabase, TransactionDatabase, SagaDatabase); err != nil {
		return err
	}
	sys.kafka, err = embedded.StartKafka(ctx, embedded.KafkaOptions{Brokers: s.KafkaBrokers, DataDir: s.DataDir, Logf: sys.say})
	return err
}

// addresses checks that the given addresses are free and gives every service that has none a free port. It comes first: a
// system whose port is taken would otherwise find another one's services there.
func (sys *System) addresses(ctx context.Context) error {
	for _, a := range []struct {
		given string
		into  *string
	}{
		{sys.settings.HTTPAddr, &sys.HTTP}, {sys.settings.AccountAddr, &sys.Account},
		{sys.settings.TransactionAddr, &sys.Transaction}, {sys.settings.SagaAddr, &sys.Saga},
	} {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", cmp.Or(a.given, "127.0.0.1:0"))
		if err != nil {
			return fmt.Errorf("%w; if another copy is running, give this one addresses and a data directory of its own (README, Settings)", err)
		}
		defer l.Close() // all of them at the end, so that no two get the same port
		*a.into = cmp.Or(a.given, l.Addr().String())
	}
	return nil
}

// startServices runs the services; when one ends, all do.
func (sys *System) startServices() {
	ctx, cancel := context.WithCancel(context.Background())
	sys.cancel = cancel
	sys.services, ctx = errgroup.WithContext(ctx)
	common := run.Common{LogLevel: sys.settings.LogLevel, LogFormat: "text", LogTo: sys.log}
	kafka := edge.KafkaSettings{Brokers: sys.kafka.Brokers(), Partitions: 6, Replication: -1}
	sys.services.Go(func() error {
		return account.Run(ctx, account.Config{
			CurrencySettings: sys.settings.CurrencySettings, Addr: sys.Account, PostgresDSN: sys.postgres.DSN(AccountDatabase), TransactionTarget: sys.Transaction, KafkaSettings: kafka, Common: common,
			EventStoreSettings: edge.EventStoreSettings{EventStore: cmp.Or(sys.settings.EventStore, edge.StorePostgres), EventStoreDir: filepath.Join(sys.settings.DataDir, "event-store")},
		})
	})
	sys.services.Go(func() error {
		return transaction.Run(ctx, transaction.Config{
			CurrencySettings: sys.settings.CurrencySettings, Addr: sys.Transaction, LatencyTarget: sys.settings.LatencyTarget, PostgresDSN: sys.postgres.DSN(TransactionDatabase), AccountTarget: sys.Account, SagaTarget: sys.Saga, KafkaSettings: kafka, Common: common,
		})
	})
	sys.services.Go(func() error {
		return saga.Run(ctx, saga.Config{
			Addr: sys.Saga, PostgresDSN: sys.postgres.DSN(SagaDatabase), AccountTarget: sys.Account, TransactionTarget: sys.Transaction, KafkaSettings: kafka, Common: common,
		})
	})
	sys.services.Go(func() error {
		return gateway.Run(ctx, gateway.Config{Addr: sys.HTTP, AccountTarget: sys.Account, TransactionTarget: sys.Transaction, SagaTarget: sys.Saga, Common: common})
	})
	go func() { <-ctx.Done(); close(sys.done) }()
}

// waitReady asks /readyz until it says yes.
func (sys *System) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		if ready(ctx, "http://"+sys.HTTP+"/readyz") {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-sys.done:
			return fmt.Errorf("a service ended: %w", sys.services.Wait())
		case <-ctx.Done():
			return fmt.Errorf("the system is not ready: %w", ctx.Err())
		}
	}
}

func ready(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return false
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// Done is closed when a service has ended by itself; Stop tells why.
func (sys *System) Done() <-chan struct{} { return sys.done }

// Postgres is the running server.
func (sys *System) Postgres() *embedded.Postgres { return sys.postgres }

// Brokers are the running Kafka's addresses.
func (sys *System) Brokers() []string { return sys.kafka.Brokers() }

// Stop ends the services, then Kafka and Postgres. It returns what went wrong, in the services or while stopping.
func (sys *System) Stop() error {
	var errs []error
	if sys.services != nil {
		sys.cancel()
		errs = append(errs, sys.services.Wait())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if sys.kafka != nil {
		errs = append(errs, sys.kafka.Stop(ctx))
	}
	if sys.postgres != nil {
		errs = append(errs, sys.postgres.Stop(ctx))
	}
	if sys.log != nil {
		errs = append(errs, sys.log.Close())
	}
	return errors.Join(errs...)
}
