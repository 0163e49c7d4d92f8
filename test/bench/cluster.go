package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"example.com/billing/deploy/local/embedded"
	"example.com/billing/deploy/local/system"
	"example.com/billing/test/drive"
	"example.com/billing/test/process"
)

// The brokers that the system can be measured on.
const (
	apacheKafka   = "apache"   // a real one, by deploy/kafka/run.sh
	embeddedKafka = "embedded" // the development broker, in a process of its own
)

// databases are the services' own.
var databases = []string{system.AccountDatabase, system.TransactionDatabase, system.SagaDatabase}

const readyMax = 2 * time.Minute

// node is one service of ours: its process, and where it is reached.
type node struct {
	*process.Process
	addr, metrics string
}

// cluster is the system, each service a process of its own.
type cluster struct {
	dir, root string
	broker    string // apache or embedded
	store     string // where the accounts' events are
	profiles  bool

	postgres *embedded.Postgres
	apache   *embedded.ApacheKafka
	embedded *process.Process
	brokers  string
	nodes    []*node // in the order they were started

	http                       string // of the gateway
	account, transaction, saga []string
}

// service tells how a service of ours is run.
type service struct{ pkg, database, addr string }

var (
	accountService     = service{"services/account/cmd/accountd", system.AccountDatabase, "BILLING_ACCOUNT_ADDR"}
	transactionService = service{"services/transaction/cmd/transactiond", system.TransactionDatabase, "BILLING_TRANSACTION_ADDR"}
	sagaService        = service{"services/saga-orchestrator/cmd/sagad", system.SagaDatabase, "BILLING_SAGA_ADDR"}
	gatewayService     = service{"services/gateway/cmd/gatewayd", "", "BILLING_HTTP_ADDR"}
)

// startCluster builds the binaries and starts the system with as many instances of the three services as the settings say. What it started is
// stopped by stop, also after an error.
func startCluster(ctx context.Context, dir, root, broker string, s settings) (*cluster, error) {
	c := &cluster{dir: dir, root: root, broker: broker, store: s.store, profiles: s.profiles}
	if err := c.build(ctx); err != nil {
		return c, err
	}
	var err error
	if c.postgres, err = embedded.StartPostgres(ctx, embedded.PostgresOptions{Bin: os.Getenv("BILLING_POSTGRES_BIN"), DataDir: dir}); err != nil {
		return c, err
	}
	if err := c.postgres.EnsureDatabases(ctx, databases...); err != nil {
		return c, err
	}
	if err := c.startKafka(ctx); err != nil {
		return c, err
	}
	return c, c.startServices(ctx, s.instances)
}

func (c *cluster) build(ctx context.Context) error {
	var packages []string
	for _, s := range []service{accountService, transactionService, sagaService, gatewayService} {
		packages = append(packages, "./"+s.pkg)
	}
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-o", filepath.Join(c.dir, "bin") + "/"}, packages...)...) //nolint:gosec // our own packages
	cmd.Dir = c.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

func (c *cluster) startKafka(ctx context.Context) (err error) {
	if c.broker == apacheKafka {
		c.apache, err = embedded.StartApacheKafka(ctx, embedded.ApacheKafkaOptions{Script: filepath.Join(c.root, "deploy/kafka/run.sh"), DataDir: c.dir})
		if err == nil {
			c.brokers = strings.Join(c.apache.Brokers(), ",")
		}
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c.embedded = &process.Process{Name: "embedded Kafka", Bin: self, Args: []string{"-serve-kafka", c.dir}, Log: filepath.Join(c.dir, "kafka.log")}
	if err := c.embedded.Start(); err != nil {
		return err
	}
	return until(ctx, "the embedded broker", func() error {
		b, err := os.ReadFile(filepath.Join(c.dir, addressFile))
		c.brokers = string(b)
		return err
	})
}

// addressFile is where the embedded broker's process writes its address.
const addressFile = "kafka.address"

// serveKafka is that process.
func serveKafka(ctx context.Context, dir string) error {
	k, err := embedded.StartKafka(ctx, embedded.KafkaOptions{DataDir: dir})
	if err != nil {
		return err
	}
	name := filepath.Join(dir, addressFile)
	if err := os.WriteFile(name+".new", []byte(strings.Join(k.Brokers(), ",")), 0o600); err != nil {
		return err
	}
	if err := os.Rename(name+".new", name); err != nil {
		return err
	}
	<-ctx.Done()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), process.StopMax)
	defer cancel()
	return k.Stop(stop)
}

// startServices starts the services, and the gateway, which like the services themselves asks the first of each.
func (c *cluster) startServices(ctx context.Context, instances int) error {
	for range instances {
		c.account, c.transaction, c.saga = append(c.account, drive.FreeAddr()), append(c.transaction, drive.FreeAddr()), append(c.saga, drive.FreeAddr())
	}
	c.http = drive.FreeAddr()
	for i := range instances {
		for _, s := range []struct {
			service
			addr string
		}{{accountService, c.account[i]}, {transactionService, c.transaction[i]}, {sagaService, c.saga[i]}} {
			if err := c.start(s.service, s.addr, i); err != nil {
				return err
			}
		}
	}
	if err := c.start(gatewayService, c.http, 0); err != nil {
		return err
	}
	return c.untilReady(ctx)
}

func (c *cluster) start(s service, addr string, i int) error {
	name := filepath.Base(s.pkg)
	if i > 0 {
		name += "-" + strconv.Itoa(i+1)
	}
	n := &node{addr: addr, metrics: drive.FreeAddr()}
	n.Process = &process.Process{
		Name: name, Bin: filepath.Join(c.dir, "bin", filepath.Base(s.pkg)), Log: filepath.Join(c.dir, name+".log"),
		Env: []string{
			s.addr + "=" + addr, "BILLING_METRICS_ADDR=" + n.metrics, "BILLING_LOG_FORMAT=text", "BILLING_KAFKA_BROKERS=" + c.brokers,
			"BILLING_ACCOUNT_TARGET=" + c.account[i], "BILLING_TRANSACTION_TARGET=" + c.transaction[i], "BILLING_SAGA_TARGET=" + c.saga[i],
			"BILLING_PROFILES=" + strconv.FormatBool(c.profiles),
		},
	}
	if s == accountService {
		n.Env = append(n.Env, "BILLING_EVENT_STORE="+c.store, "BILLING_EVENT_STORE_DIR="+filepath.Join(c.dir, name+".events"))
	}
	if s.database != "" {
		n.Env = append(n.Env, "BILLING_POSTGRES_DSN="+c.postgres.DSN(s.database))
	}
	c.nodes = append(c.nodes, n)
	return n.Start()
}

// stopServices stops the services, and not Postgres and Kafka.
func (c *cluster) stopServices() error {
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.Stop())
	}
	return errors.Join(errs...)
}

// startAgain starts what stopServices stopped.
func (c *cluster) startAgain(ctx context.Context) error {
	for _, n := range c.nodes {
		if err := n.Start(); err != nil {
			return err
		}
	}
	return c.untilReady(ctx)
}

func (c *cluster) untilReady(ctx context.Context) error {
	return until(ctx, "the system", func() error { return errors.Join(c.ready(ctx), c.died()) })
}

func (c *cluster) ready(ctx context.Context) error {
	body, err := get(ctx, "http://"+c.http+"/readyz")
	if err != nil {
		return err
	}
	return body.Close()
}

// died reports the services that ended by themselves, with their last words.
func (c *cluster) died() error {
	var errs []error
	for _, n := range c.nodes {
		if err := n.Died(); err != nil {
			errs = append(errs, fmt.Errorf("%w: %s", err, n.LastWords()))
		}
	}
	return errors.Join(errs...)
}

func (c *cluster) stop() error {
	errs := []error{c.stopServices()}
	ctx, cancel := context.WithTimeout(context.Background(), process.StopMax)
	defer cancel()
	if c.apache != nil {
		errs = append(errs, c.apache.Stop(ctx))
	}
	if c.embedded != nil {
		errs = append(errs, c.embedded.Stop())
	}
	if c.postgres != nil {
		errs = append(errs, c.postgres.Stop(ctx))
	}
	return errors.Join(errs...)
}

// until asks again until there is no error, for as long as a start may take.
func until(ctx context.Context, what string, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, readyMax)
	defer cancel()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		if errors.Is(err, process.ErrEnded) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", what, err)
		case <-time.After(50 * time.Millisecond): // between two looks
		}
	}
}
