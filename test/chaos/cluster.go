package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"example.com/billing/deploy/local/system"
	"example.com/billing/test/failover/pgpair"
	"example.com/billing/test/process"
)

// Two of each service but the gateway run on the same three databases: "a" and "b". Calls of an "a" go to an "a"; the gateway's
// go to "a" too, and the load asks both.
const (
	accountA, accountB         = "accountd-a", "accountd-b"
	transactionA, transactionB = "transactiond-a", "transactiond-b"
	sagaA, sagaB               = "sagad-a", "sagad-b"
	gateway                    = "gatewayd"
	postgres                   = "postgres"
	kafka                      = "kafka"
)

// services are the processes of ours; those of the first six have a database and talk to Kafka.
var services = []string{accountA, accountB, transactionA, transactionB, sagaA, sagaB, gateway}

// calls say whose services each process asks.
var calls = map[string][]string{
	accountA: {transactionA}, accountB: {transactionB},
	transactionA: {accountA, sagaA}, transactionB: {accountB, sagaB},
	sagaA: {accountA, transactionA}, sagaB: {accountB, transactionB},
	gateway: {accountA, transactionA, sagaA},
}

// service tells of a process: its binary, its package and its database.
type service struct{ binary, pkg, database, addr, target string }

var (
	accountService     = service{"accountd", "services/account/cmd/accountd", system.AccountDatabase, "BILLING_ACCOUNT_ADDR", "BILLING_ACCOUNT_TARGET"}
	transactionService = service{"transactiond", "services/transaction/cmd/transactiond", system.TransactionDatabase, "BILLING_TRANSACTION_ADDR", "BILLING_TRANSACTION_TARGET"}
	sagaService        = service{"sagad", "services/saga-orchestrator/cmd/sagad", system.SagaDatabase, "BILLING_SAGA_ADDR", "BILLING_SAGA_TARGET"}
	gatewayService     = service{"gatewayd", "services/gateway/cmd/gatewayd", "", "BILLING_HTTP_ADDR", ""}
)

// serviceOf says which service a process is of.
var serviceOf = map[string]service{
	accountA: accountService, accountB: accountService, transactionA: transactionService, transactionB: transactionService,
	sagaA: sagaService, sagaB: sagaService, gateway: gatewayService,
}

// cluster is the running system.
type cluster struct {
	dir   string
	store string            // where the accounts' events are
	addrs map[string]string // of the services
	nodes map[string]node   // services, postgres, kafka
	links map[string]*link  // by "from>to"
	locks map[string]*sync.Mutex
	held  map[string]*snapshot

	postgres *postgresNode
	kafka    *kafkaNode
}

// newCluster chooses the ports, builds the binaries and starts everything; root is the repository's. What it started is stopped
// by stop, also after an error.
func newCluster(ctx context.Context, dir, root string, s settings) (*cluster, error) {
	c := &cluster{dir: dir, store: s.store, addrs: map[string]string{}, nodes: map[string]node{}, links: map[string]*link{}, locks: map[string]*sync.Mutex{}, held: map[string]*snapshot{}}
	if err := c.wire(root); err != nil {
		return c, err
	}
	infra := make(chan error, 2)
	go func() { infra <- c.postgres.Start() }()
	go func() { infra <- c.kafka.Start() }()
	built := c.build(ctx, root, s.race)
	if err := errors.Join(built, <-infra, <-infra); err != nil {
		return c, err
	}
	if err := c.postgres.server().EnsureDatabases(ctx, system.AccountDatabase, system.TransactionDatabase, system.SagaDatabase); err != nil {
		return c, err
	}
	for _, name := range services {
		p := &process.Process{Name: name, Bin: filepath.Join(dir, "bin", serviceOf[name].binary), Log: filepath.Join(dir, name+".log"), Env: c.env(name)}
		c.nodes[name] = p
		if err := p.Start(); err != nil {
			return c, err
		}
	}
	return c, c.ready(ctx)
}

// wire makes the proxies and everything that leads through them.
func (c *cluster) wire(root string) error {
	clients := len(linkNames(toKafka)) // each has a listener of its own
	ports, err := freePorts(2 + len(services) + clients + len(linkNames(toService)) + len(linkNames(toPostgres)) + len(linkNames(toKafka)))
	if err != nil {
		return err
	}
	port := func() int { p := ports[0]; ports = ports[1:]; return p }
	c.postgres = &postgresNode{dir: c.dir, port: port()}
	if c.postgres.front, err = pgpair.NewProxy(context.Background(), local(c.postgres.port)); err != nil {
		return err
	}
	kafkaPort := port()
	for _, name := range services {
		c.addrs[name] = local(port())
	}
	var listeners []listener
	proxies := newProxyServer()
	for _, name := range services {
		for _, to := range calls[name] {
			if err := c.link(newLink(proxies, name, to, local(port()), c.addrs[to])); err != nil {
				return err
			}
		}
		if name == gateway {
			continue
		}
		own, told := port(), port()
		listeners = append(listeners, listener{port: own, advertised: told})
		err := errors.Join(
			c.link(newLink(proxies, name, postgres, local(port()), c.postgres.front.Addr())),
			c.link(newLink(proxies, name, kafka, local(told), local(own))),
		)
		if err != nil {
			return err
		}
	}
	if c.kafka, err = newKafka(c.dir, root, kafkaPort, listeners); err != nil {
		return err
	}
	c.nodes[postgres], c.nodes[kafka] = c.postgres, c.kafka
	for _, name := range append([]string{postgres, kafka}, services...) {
		c.locks[name] = &sync.Mutex{}
	}
	for name := range c.links {
		c.locks[name] = &sync.Mutex{}
	}
	for _, name := range snapshots {
		c.locks[name], c.held[name] = &sync.Mutex{}, &snapshot{c: c, database: strings.TrimPrefix(name, "snapshot of ")}
	}
	return nil
}

func (c *cluster) link(l *link, err error) error {
	if err == nil {
		c.links[l.name()] = l
	}
	return err
}

// env is a service's environment; everything it reaches, it reaches through its proxies.
func (c *cluster) env(name string) []string {
	own := serviceOf[name]
	env := []string{own.addr + "=" + c.addrs[name], "BILLING_LOG_FORMAT=text"}
	if own == accountService {
		env = append(env, "BILLING_EVENT_STORE="+c.store, "BILLING_EVENT_STORE_DIR="+filepath.Join(c.dir, name+".events"))
	}
	for _, to := range calls[name] {
		env = append(env, serviceOf[to].target+"="+c.links[name+">"+to].addr())
	}
	if l := c.links[name+">"+kafka]; l != nil {
		env = append(env, "BILLING_KAFKA_BROKERS="+l.addr())
	}
	if l := c.links[name+">"+postgres]; l != nil {
		env = append(env, "BILLING_POSTGRES_DSN="+strings.Replace(c.dsn(own.database), local(c.postgres.port), l.addr(), 1))
	}
	return env
}

// build builds the services' binaries.
func (c *cluster) build(ctx context.Context, root string, race bool) error {
	args := []string{"build", "-o", filepath.Join(c.dir, "bin") + "/"}
	if race {
		args = append(args, "-race")
	}
	for _, s := range []service{accountService, transactionService, sagaService, gatewayService} {
		args = append(args, "./"+s.pkg)
	}
	if err := os.MkdirAll(filepath.Join(c.dir, "bin"), 0o750); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", args...) //nolint:gosec // our own packages
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the services: %w\n%s", err, out)
	}
	return nil
}

// local is a port's address.
func local(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// freePorts finds n free ports below those that systems hand out for outgoing connections, and that run.sh chooses from: nobody
// takes them while their server is away.
func freePorts(n int) ([]int, error) {
	var ports []int
	for p := 10000 + os.Getpid()%5000; p < 20000 && len(ports) < n; p++ {
		l, err := net.Listen("tcp", local(p)) //nolint:noctx // answers at once
		if err != nil {
			continue
		}
		defer l.Close() // all of them at the end
		ports = append(ports, p)
	}
	if len(ports) < n {
		return nil, fmt.Errorf("%d free ports below 20000, want %d", len(ports), n)
	}
	return ports, nil
}

// dsn is a database's address without a proxy.
func (c *cluster) dsn(database string) string { return c.postgres.server().DSN(database) }

// brokers are Kafka's addresses without a proxy.
func (c *cluster) brokers() []string { return []string{local(c.kafka.port)} }

// ready waits until every process says that it is ready.
func (c *cluster) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyMax)
	defer cancel()
	for {
		err := c.asksReady(ctx)
		if err == nil {
			return nil
		}
		if dead := c.died(); dead != nil {
			return dead
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the system is not ready: %w", err)
		case <-time.After(50 * time.Millisecond): // between two looks
		}
	}
}

func (c *cluster) asksReady(ctx context.Context) error {
	if err := c.get(ctx, "/readyz", &struct{}{}); err != nil {
		return err
	}
	for _, name := range []string{accountB, transactionB, sagaB} {
		if err := healthy(ctx, c.addrs[name]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// get asks the gateway and reads its JSON.
func (c *cluster) get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.addrs[gateway]+path, http.NoBody)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", path, res.Status)
	}
	return json.NewDecoder(res.Body).Decode(into)
}

// died reports the services that ended by themselves.
func (c *cluster) died() error {
	var errs []error
	for _, name := range services {
		if p, ok := c.nodes[name].(*process.Process); ok {
			errs = append(errs, p.Died())
		}
	}
	return errors.Join(errs...)
}

// stopServices ends our processes in an orderly way, all at once.
func (c *cluster) stopServices() error {
	errs := make(chan error, len(services))
	n := 0
	for _, name := range services {
		if p, ok := c.nodes[name].(*process.Process); ok {
			n++
			go func() { errs <- p.Stop() }()
		}
	}
	var all []error
	for range n {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// stop ends everything.
func (c *cluster) stop() error {
	err := c.stopServices()
	for _, l := range c.links {
		err = errors.Join(err, l.cut())
	}
	if c.kafka != nil {
		err = errors.Join(err, c.kafka.stop())
	}
	if c.postgres != nil {
		err = errors.Join(err, c.postgres.stop())
	}
	return err
}

// connect opens a connection to a database, without a proxy.
func (c *cluster) connect(ctx context.Context, database string) (*pgx.Conn, error) {
	return pgx.Connect(ctx, c.dsn(database))
}
