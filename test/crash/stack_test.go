package crash

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"example.com/billing/deploy/local/embedded"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/rpc"
	"example.com/billing/test/drive"
)

type object = map[string]any

// lateMax is how long anything may take that comes by itself: a lease of 5 s, a session of 10 s, and what builds up behind them.
const lateMax = 45 * time.Second

// stack is the four services as processes, with databases and a broker of their own.
type stack struct {
	t        *testing.T
	http     string
	services map[string]*process
	pools    map[string]*pgxpool.Pool
	account  *grpc.ClientConn
	kafka    sarama.Client
	client   http.Client
}

func newStack(t *testing.T) *stack {
	s := &stack{t: t, services: map[string]*process{}, pools: map[string]*pgxpool.Pool{}, client: http.Client{Timeout: 40 * time.Second}}
	dsn := map[string]string{}
	for _, service := range []string{accounts, transactions, sagas} {
		dsn[service] = pgtest.DSN(t) // first of all: it skips the test where there is no server
	}
	go func() { _, _ = built["failpoints"]() }() // while Kafka starts
	brokers := startKafka(t)
	dir, err := built["failpoints"]()
	if err != nil {
		t.Fatal(err)
	}
	addr := map[string]string{accounts: drive.FreeAddr(), transactions: drive.FreeAddr(), sagas: drive.FreeAddr(), "gateway": drive.FreeAddr()}
	env := []string{
		"BILLING_KAFKA_BROKERS=" + brokers[0], "BILLING_LOG_FORMAT=text", "BILLING_HTTP_ADDR=" + addr["gateway"],
		"BILLING_ACCOUNT_TARGET=" + addr[accounts], "BILLING_TRANSACTION_TARGET=" + addr[transactions], "BILLING_SAGA_TARGET=" + addr[sagas],
		"BILLING_ACCOUNT_ADDR=" + addr[accounts], "BILLING_TRANSACTION_ADDR=" + addr[transactions], "BILLING_SAGA_ADDR=" + addr[sagas],
	}
	logs := t.TempDir()
	for service, name := range binaries {
		s.services[service] = newProcess(t, filepath.Join(dir, filepath.Base(name)), logs, append(env, "BILLING_POSTGRES_DSN="+dsn[service]), "")
	}
	s.http = "http://" + addr["gateway"]
	s.connect(dsn, addr[accounts], brokers)
	s.eventually("the system is ready", func() bool {
		status, _, err := s.call("GET", "/readyz", nil)
		return err == nil && status == http.StatusOK
	})
	return s
}

// connect opens what the test looks through.
func (s *stack) connect(dsn map[string]string, account string, brokers []string) {
	for service, d := range dsn {
		pool, err := pgxpool.New(context.Background(), d)
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(pool.Close)
		s.pools[service] = pool
	}
	var err error
	if s.account, err = rpc.Dial(account, grpc.WithDefaultCallOptions(grpc.WaitForReady(true))); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { s.account.Close() })
	if s.kafka, err = sarama.NewClient(brokers, sarama.NewConfig()); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { s.kafka.Close() })
}

// startKafka starts a broker of the test's own, since all systems use the same topics and groups: Apache Kafka where the other
// tests have one, else the one for development.
func startKafka(t *testing.T) []string {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if os.Getenv("BILLING_TEST_KAFKA_BROKERS") == "" {
		k, err := embedded.StartKafka(ctx, embedded.KafkaOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { k.Stop(context.Background()) })
		return k.Brokers()
	}
	k, err := embedded.StartApacheKafka(ctx, embedded.ApacheKafkaOptions{Script: "../../deploy/kafka/run.sh", DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Stop(context.Background()) })
	return k.Brokers()
}

// endLeases does at once what 5 s would do for the service that was killed.
func (s *stack) endLeases(service string) {
	s.t.Helper()
	ends := []string{"UPDATE outbox_relay SET leased_until = 'epoch'"}
	if service == sagas {
		ends = append(ends, "UPDATE saga_engine SET leased_until = 'epoch'")
	}
	for _, sql := range ends {
		if _, err := s.pools[service].Exec(s.t.Context(), sql); err != nil {
			s.t.Fatal(err)
		}
	}
}

// leaveGroup does at once what 10 s would do: the place of the service that was killed in its consumer group is given up.
func (s *stack) leaveGroup(service string) {
	s.t.Helper()
	group := groups[service]
	var errs []error
	coordinator, err := s.kafka.Coordinator(group)
	if err != nil {
		s.t.Fatal(err)
	}
	members, err := coordinator.DescribeGroups(&sarama.DescribeGroupsRequest{Groups: []string{group}})
	if err != nil {
		s.t.Fatal(err)
	}
	for id := range members.Groups[0].Members {
		_, err := coordinator.LeaveGroup(&sarama.LeaveGroupRequest{GroupId: group, MemberId: id})
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		s.t.Fatal(err)
	}
}

// groups are the services' consumer groups.
var groups = map[string]string{
	accounts: "billing.account.accounts", transactions: "billing.transaction.transactions", sagas: "billing.saga.sagas",
}

// consumed reports whether the sagas' consumer has committed all there is: nothing will be delivered again.
func (s *stack) consumed() bool {
	const topic = "billing.transaction.events"
	admin, err := sarama.NewClusterAdminFromClient(s.kafka)
	if err != nil {
		s.t.Fatal(err)
	}
	committed, err := admin.ListConsumerGroupOffsets(groups[sagas], nil)
	if err != nil {
		return false
	}
	partitions, err := s.kafka.Partitions(topic)
	if err != nil {
		return false
	}
	for _, p := range partitions {
		end, err := s.kafka.GetOffset(topic, p, sarama.OffsetNewest)
		block := committed.GetBlock(topic, p)
		if err != nil || end > 0 && (block == nil || block.Offset < end) {
			return false
		}
	}
	return true
}

// published reports whether the services' outboxes are empty.
func (s *stack) published() bool {
	return s.publishedBy(accounts) && s.publishedBy(transactions) && s.publishedBy(sagas)
}

func (s *stack) publishedBy(service string) bool {
	status, stats, err := s.call("GET", "/api/v1/outbox/"+service+"/stats", nil)
	return err == nil && status == http.StatusOK && stats["pending"] == 0.0
}

// each calls f for many things at the same time.
func each[T any](things []T, f func(T) error) error {
	var g errgroup.Group
	g.SetLimit(16)
	for _, x := range things {
		g.Go(func() error { return f(x) })
	}
	return g.Wait()
}

// one reads one value.
func (s *stack) one(service string, into any, sql string, args ...any) {
	s.t.Helper()
	if err := s.pools[service].QueryRow(s.t.Context(), sql, args...).Scan(into); err != nil {
		s.t.Fatal(err)
	}
}

// eventually looks until f says yes.
func (s *stack) eventually(what string, f func() bool) {
	s.t.Helper()
	for end := time.Now().Add(lateMax); time.Now().Before(end); {
		if f() {
			return
		}
		time.Sleep(5 * time.Millisecond) // between two looks
	}
	s.t.Fatalf("not in time: %s", what)
}

// get is a GET that must be answered, sooner or later.
func (s *stack) get(path string) object {
	s.t.Helper()
	var body object
	s.eventually("an answer to "+path, func() bool {
		status, o, err := s.call("GET", path, nil)
		if err == nil && status >= 400 && status < 500 && status != http.StatusTooManyRequests {
			s.t.Fatalf("GET %s: %d %v", path, status, o)
		}
		body = o
		return err == nil && status == http.StatusOK
	})
	return body
}

func (s *stack) call(method, path string, body any) (int, object, error) {
	return drive.Call(s.t.Context(), &s.client, method, s.http+path, body)
}
