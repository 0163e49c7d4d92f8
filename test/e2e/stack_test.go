// Package e2e tests the whole system from outside, over REST, gRPC, Kafka and SQL: first in one process on embedded parts,
// then as four processes on a separate Postgres and a real Apache Kafka, then with the accounts' events in Kafka and everybody
// talking to an instance of the account service that does not lead.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"example.com/billing/deploy/local/embedded"
	"example.com/billing/deploy/local/system"
	"example.com/billing/services/edge"
	"example.com/billing/test/drive"
)

// stack is a running system.
type stack struct {
	http, account, transaction, saga string // addresses
	brokers                          []string
	dsn                              func(database string) string
	store                            string // where the accounts' events are
	stop                             func() error
}

// now is the stack that this round of the tests runs against.
var now stack

// TestMain runs the tests on the system in one process, and again on four processes and a real Kafka.
func TestMain(m *testing.M) {
	code := round(m, "in one process, on embedded Postgres and Kafka", startLocal)
	if code == 0 {
		code = processes(m)
	}
	os.Exit(code)
}

func processes(m *testing.M) int {
	if os.Getenv(brokersEnv) == "" || os.Getenv(postgresEnv) == "" {
		fmt.Printf("e2e: not run on separate processes: %s and %s name no servers; make test starts them where Java and Maven are installed\n", brokersEnv, postgresEnv)
		if os.Getenv("CI") == "true" {
			return 1
		}
		return 0
	}
	code := round(m, "as four processes, on a separate Postgres and Apache Kafka", func(dir string) (stack, error) { return startProcesses(dir, edge.StorePostgres) })
	if code == 0 {
		code = round(m, "as five processes, with the accounts' events in Apache Kafka, by way of an instance that does not lead",
			func(dir string) (stack, error) { return startProcesses(dir, edge.StoreKafka) })
	}
	return code
}

const (
	brokersEnv  = "BILLING_TEST_KAFKA_BROKERS"
	postgresEnv = "BILLING_TEST_POSTGRES_DSN"
)

func round(m *testing.M, name string, start func(dir string) (stack, error)) int {
	dir, err := os.MkdirTemp("", "billing-e2e-")
	if err != nil {
		fmt.Println("e2e:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	fmt.Println("e2e: the system", name)
	if now, err = start(dir); err != nil {
		fmt.Println("e2e:", err)
		return 1
	}
	asked, err := routes()
	if err != nil {
		fmt.Println("e2e:", err)
		return 1
	}
	told, err := readDocument(now.http + "/openapi.json")
	if err != nil {
		fmt.Println("e2e:", err)
		return 1
	}
	all := &seen{document: told, answers: asked, untold: map[string]bool{}}
	http.DefaultClient.Transport = all
	code := m.Run()
	for _, what := range all.missing() {
		fmt.Println("e2e: proto/gateway.yaml:", what)
		code = 1
	}
	for _, what := range slices.Sorted(maps.Keys(all.untold)) {
		fmt.Println("e2e: the OpenAPI document does not tell that", what)
		code = 1
	}
	if err := now.stop(); err != nil {
		fmt.Println("e2e: stop:", err)
		code = 1
	}
	return code
}

func startLocal(dir string) (stack, error) {
	sys, err := system.Start(context.Background(), system.Settings{DataDir: dir, PostgresBin: os.Getenv("BILLING_POSTGRES_BIN")}, func(string, ...any) {})
	if err != nil {
		return stack{}, err
	}
	return stack{
		http: "http://" + sys.HTTP, account: sys.Account, transaction: sys.Transaction, saga: sys.Saga,
		brokers: sys.Brokers(), dsn: sys.Postgres().DSN, store: edge.StorePostgres, stop: sys.Stop,
	}, nil
}

// startProcesses builds the four binaries and runs them against the servers that the environment names. On the Kafka store a second instance of
// the account service is the one that the others know.
func startProcesses(dir, store string) (_ stack, err error) {
	brokers := strings.Split(os.Getenv(brokersEnv), ",")
	version, err := embedded.BrokerVersion(context.Background(), brokers)
	if err != nil {
		return stack{}, err
	}
	if !strings.HasPrefix(version, embedded.ApacheKafkaPrefix) {
		return stack{}, fmt.Errorf("the broker is no Apache Kafka: %s", version)
	}
	s := stack{
		http: "http://" + drive.FreeAddr(), account: drive.FreeAddr(), transaction: drive.FreeAddr(), saga: drive.FreeAddr(), brokers: brokers, store: store,
		dsn: func(database string) string {
			u, _ := url.Parse(os.Getenv(postgresEnv))
			u.Path = "/" + database
			return u.String()
		},
	}
	databases := []string{system.AccountDatabase, system.TransactionDatabase, system.SagaDatabase}
	if err := errors.Join(createDatabases(s.dsn("postgres"), databases), deleteTopics(brokers)); err != nil {
		return stack{}, err
	}
	common := []string{
		"BILLING_KAFKA_BROKERS=" + strings.Join(brokers, ","), "BILLING_HTTP_ADDR=" + strings.TrimPrefix(s.http, "http://"),
		"BILLING_ACCOUNT_TARGET=" + s.account, "BILLING_TRANSACTION_TARGET=" + s.transaction, "BILLING_SAGA_TARGET=" + s.saga,
		"BILLING_ACCOUNT_ADDR=" + s.account, "BILLING_TRANSACTION_ADDR=" + s.transaction, "BILLING_SAGA_ADDR=" + s.saga, "BILLING_LOG_FORMAT=text",
		"BILLING_LATENCY_TARGET=0", // what these tests ask for is never too much
		"BILLING_EVENT_STORE=" + store,
	}
	var running []*exec.Cmd
	s.stop = func() error { return stopAll(running) }
	defer func() {
		if err != nil {
			_ = stopAll(running)
		}
	}()
	type program struct{ name, module, database, addr string }
	programs := []program{
		{"accountd", "account", system.AccountDatabase, s.account}, {"transactiond", "transaction", system.TransactionDatabase, ""},
		{"sagad", "saga-orchestrator", system.SagaDatabase, ""}, {"gatewayd", "gateway", "", ""},
	}
	if store == edge.StoreKafka {
		leader := program{"accountd", "account", system.AccountDatabase, drive.FreeAddr()}
		programs = append([]program{leader}, programs...)
	}
	for i, p := range programs {
		bin := filepath.Join(dir, fmt.Sprintf("%d-%s", i, p.name))
		if out, err := exec.Command("go", "build", "-o", bin, "example.com/billing/services/"+p.module+"/cmd/"+p.name).CombinedOutput(); err != nil {
			return stack{}, fmt.Errorf("build %s: %w: %s", p.name, err, out)
		}
		cmd := exec.Command(bin)
		cmd.Env = append(append(os.Environ(), common...), "BILLING_POSTGRES_DSN="+s.dsn(p.database), "BILLING_EVENT_STORE_DIR="+bin+".events")
		if p.addr != "" {
			cmd.Env = append(cmd.Env, "BILLING_ACCOUNT_ADDR="+p.addr)
		}
		log, err := os.Create(bin + ".log")
		if err != nil {
			return stack{}, err
		}
		cmd.Stderr = log
		if err := cmd.Start(); err != nil {
			return stack{}, err
		}
		running = append(running, cmd)
		fmt.Printf("e2e: %s is process %d", p.name, cmd.Process.Pid)
		if p.database != "" {
			fmt.Printf(" on database %s", p.database)
		}
		fmt.Println()
		if store == edge.StoreKafka && i == 0 {
			if err := saidSoon(bin+".log", "this process leads"); err != nil {
				return stack{}, err
			}
		}
	}
	fmt.Println("e2e: the broker is", version)
	if err := waitReady(s.http + "/readyz"); err != nil {
		for _, cmd := range running {
			b, _ := os.ReadFile(cmd.Path + ".log")
			fmt.Printf("--- %s\n%s\n", cmd.Path, b)
		}
		return stack{}, err
	}
	return s, nil
}

func stopAll(running []*exec.Cmd) error {
	var errs []error
	for _, cmd := range running {
		errs = append(errs, cmd.Process.Signal(syscall.SIGTERM))
	}
	for _, cmd := range running {
		if err := cmd.Wait(); err != nil {
			b, _ := os.ReadFile(cmd.Path + ".log")
			errs = append(errs, fmt.Errorf("%s: %w\n%s", cmd.Path, err, b[max(0, len(b)-2000):]))
		}
	}
	return errors.Join(errs...)
}

func createDatabases(dsn string, names []string) error {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, name := range names {
		if _, err := conn.Exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"); err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, "CREATE DATABASE "+name); err != nil {
			return err
		}
	}
	return nil
}

// deleteTopics removes the topics and consumer groups of the round before.
func deleteTopics(brokers []string) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, admin := context.Background(), kadm.NewClient(client)
	topics, err := admin.ListTopics(ctx)
	if err != nil {
		return err
	}
	groups, err := admin.ListGroups(ctx)
	if err != nil {
		return err
	}
	foreign := func(name string) bool { return !strings.HasPrefix(name, edge.TopicPrefix+".") }
	if names := slices.DeleteFunc(topics.Names(), foreign); len(names) > 0 {
		if _, err := admin.DeleteTopics(ctx, names...); err != nil {
			return err
		}
	}
	if names := slices.DeleteFunc(groups.Groups(), foreign); len(names) > 0 {
		_, err = admin.DeleteGroups(ctx, names...)
	}
	return err
}

// saidSoon waits until a process has logged a text.
func saidSoon(log, text string) error {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		b, err := os.ReadFile(log)
		if err != nil || strings.Contains(string(b), text) {
			return err
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
	b, err := os.ReadFile(log)
	return fmt.Errorf("%s does not say %q (%w):\n%s", log, text, err, b)
}

func waitReady(url string) error {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		res, err := http.Get(url)
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		time.Sleep(50 * time.Millisecond) // between two looks
	}
	return fmt.Errorf("%s does not answer 200", url)
}
