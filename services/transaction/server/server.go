// Package server puts the transaction service together: what runs, and on what.
package server

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"example.com/billing/pkg/batch"
	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/job"
	"example.com/billing/pkg/run"
	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	"example.com/billing/services/edge"
	"example.com/billing/services/transaction"
	"example.com/billing/services/transaction/admission"
	"example.com/billing/services/transaction/api"
	"example.com/billing/services/transaction/clients"
	"example.com/billing/services/transaction/readmodel"
	"example.com/billing/services/transaction/sweep"
)

// Config is the service's settings.
type Config struct {
	Addr          string        `name:"addr" env:"BILLING_TRANSACTION_ADDR" default:"127.0.0.1:9102" help:"Where to serve gRPC."`
	PostgresDSN   string        `name:"postgres-dsn" env:"BILLING_POSTGRES_DSN" required:"" help:"The service's own database."`
	AccountTarget string        `name:"account-target" env:"BILLING_ACCOUNT_TARGET" default:"127.0.0.1:9101" help:"The account service, as a gRPC target."`
	SagaTarget    string        `name:"saga-target" env:"BILLING_SAGA_TARGET" default:"127.0.0.1:9103" help:"The saga orchestrator, as a gRPC target."`
	LatencyTarget time.Duration `name:"latency-target" env:"BILLING_LATENCY_TARGET" default:"1s" help:"How long a transaction may take, from its request to its end, before requests are shed: some from half of it on, half from twice of it on. 0 = never."`
	edge.CurrencySettings
	edge.KafkaSettings
	run.Common
}

// linger is how long a command waits for others while many come.
const linger = time.Millisecond

// cacheBytes is for transactions under way and those that have just ended: hardly any command comes for one later.
const cacheBytes = 32 << 20

// Run runs the service until ctx ends.
func Run(ctx context.Context, cfg Config) (err error) {
	app := run.NewApp(ctx, cfg.Logger("transaction"))
	defer func() {
		if err != nil {
			_ = app.Close() // the error that stopped the start matters more
		}
	}()
	pool, err := edge.Database(app, cfg.PostgresDSN, readmodel.Migrations, "transaction_migration")
	if err != nil {
		return err
	}
	currencies, err := cfg.Catalogue()
	if err != nil {
		return err
	}
	watches := edge.NewWatches(app.Context())
	store := espg.New(pool, espg.Options{Inline: readmodel.Inline})
	if err := store.CatchUp(app.Context()); err != nil {
		return err
	}
	secret, err := store.Secret(app.Context())
	if err != nil {
		return err
	}
	accountConn, err := edge.Connect(app, cfg.AccountTarget)
	if err != nil {
		return err
	}
	sagaConn, err := edge.Connect(app, cfg.SagaTarget)
	if err != nil {
		return err
	}
	accounts := clients.NewAccounts(accountConn)
	app.OnStop("questions to the account service", accounts.Close)
	executor, err := es.NewExecutor(transaction.Decider(), store, es.ExecutorOptions{CacheBytes: cacheBytes, Notify: watches.Hub.Notify, Batch: batch.Options{Linger: linger}})
	if err != nil {
		return err
	}
	app.Loop("others' commits", func(ctx context.Context) error {
		return store.TellOfOthers(ctx, app.Log, func() bool { return executor.Used() || watches.Hub.Waiting() > 0 }, func(events []es.Event) {
			executor.Forget(events)
			watches.Hub.Notify(events)
		})
	})
	app.OnStop("commands", executor.Close)

	transactions := readmodel.New(pool)
	jobs, background, err := edge.Background(app, cfg.PostgresDSN)
	if err != nil {
		return err
	}
	models := &edge.ReadModels{Jobs: jobs, Models: map[string]job.Work{"transactions": transactions.Rebuild(espg.New(background, espg.Options{}))}}
	app.Loop("sweep", sweep.Sweep{
		Pending: transactions.PendingSince, LoadEach: store.LoadEach,
		Saga: sagav1.NewSagaTriggerServiceClient(sagaConn), Log: app.Log,
	}.Run)
	var bus cqrs.EventBus
	projection := transactions.Projection(store.Load)
	bus.OnProjection("transactions", transaction.AggregateType, projection.Handle)
	if err := edge.Heal(app, "transactions", store, transactions.Healer(projection, store.Load, app.Log)); err != nil {
		return err
	}
	checks, err := edge.Stream{
		Service: "transaction", Aggregate: transaction.AggregateType, Kafka: cfg.KafkaSettings,
		Pool: pool, Events: &edge.Events{Store: store, Tables: store}, Bus: &bus,
	}.Start(app)
	if err != nil {
		return err
	}
	control := admission.New(cfg.LatencyTarget)
	if err := measure(app.Metrics, control); err != nil {
		return err
	}
	app.Go("admission", control.Run)
	server := api.New(api.Parts{
		Executor: executor, Store: store, Watches: watches, Accounts: accounts, List: transactions, Currencies: currencies, Secret: secret, Admission: control,
	})
	app.Loop("expiry of holds", (&api.Expiry{Server: server, Log: app.Log}).Run)
	return edge.Serve(app, edge.Serving{
		Service: "transaction", Addr: cfg.Addr, Common: cfg.Common, Pool: pool, Checks: checks,
		Register: func(r grpc.ServiceRegistrar) { server.Register(r); models.Register(r) },
	})
}

// measure publishes what is admitted as metrics.
func measure(metrics prometheus.Registerer, control *admission.Controller) error {
	for _, c := range []prometheus.Collector{
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "transaction_shed_total", Help: "Transactions that were asked for and shed, for overload.",
		}, func() float64 { return float64(control.Stats().Shed) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "transaction_admission_limit", Help: "Transactions admitted a second by this process; +Inf = no limit.",
		}, func() float64 { return control.Stats().Limit }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "transaction_latency_least_seconds", Help: "Least time of late from a transaction's request to its end: what all of them wait; 0 = not known.",
		}, func() float64 { return control.Stats().Latency.Seconds() }),
	} {
		if err := metrics.Register(c); err != nil {
			return fmt.Errorf("metrics: %w", err)
		}
	}
	return nil
}
