package kafka

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kfake"
)

// brokersEnv names the brokers of a real Kafka; `make test` sets it where it can.
const brokersEnv = "BILLING_TEST_KAFKA_BROKERS"

// onReal: this round of the tests uses the real Kafka.
var onReal bool

// TestMain runs the tests on kfake, and again on a real Kafka if there is one.
func TestMain(m *testing.M) {
	code := m.Run()
	if os.Getenv(brokersEnv) == "" {
		fmt.Println("kafka: not run on a real Kafka: " + brokersEnv + " is not set")
	} else if code == 0 {
		onReal = true
		fmt.Println("kafka: and again on a real Kafka")
		code = m.Run()
	}
	os.Exit(code)
}

// testConfig is the cluster of this round: kfake, or the real one.
func testConfig(t testing.TB) Config {
	t.Helper()
	if !onReal {
		cfg, _ := fakeConfig(t)
		return cfg
	}
	cfg := plainConfig(t)
	cfg.Brokers = strings.Split(os.Getenv(brokersEnv), ",")
	return cfg
}

// fakeConfig is a kfake in every round, for tests that have it answer what no healthy cluster answers.
func fakeConfig(t testing.TB) (Config, *kfake.Cluster) {
	t.Helper()
	cfg, fake := plainConfig(t), startFake(t)
	cfg.Brokers = fake.ListenAddrs()
	return cfg, fake
}

func plainConfig(t testing.TB) Config {
	cfg := Config{ClientID: "test", Log: slog.New(slog.DiscardHandler)}
	if testing.Verbose() {
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	return cfg
}

func startFake(t testing.TB, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	fake, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	return fake
}

// unique is a name no other run has used.
func unique(t testing.TB) string {
	name := strings.NewReplacer("/", "-", "=", "-").Replace(t.Name())
	return fmt.Sprintf("%s-%x", name, time.Now().UnixNano())
}

func testTopic(t testing.TB, cfg Config, partitions int32) string {
	t.Helper()
	name := unique(t)
	if err := EnsureTopics(testContext(t), cfg, Topic{Name: name, Partitions: partitions}); err != nil {
		t.Fatal(err)
	}
	return name
}

func testAdmin(t testing.TB, cfg Config) sarama.ClusterAdmin {
	t.Helper()
	conf := cfg.sarama()
	conf.Metadata.Full = true
	admin, err := sarama.NewClusterAdmin(cfg.Brokers, conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Close() })
	return admin
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func testProducer(t testing.TB, cfg Config) *Producer {
	t.Helper()
	p, err := NewProducer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// testConsumer runs a consumer until the test ends.
func testConsumer(t testing.TB, cfg Config, group, topic string, handle func(context.Context, []Message) error) *Consumer {
	t.Helper()
	c, err := NewConsumer(ConsumerConfig{Config: cfg, Group: group, Topics: []string{topic}, Handle: handle})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = c.Run(context.Background()) }()
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// versioned makes one message of a key: its value is the version.
func versioned(topic, key string, version int64) Message {
	return Message{Topic: topic, Key: []byte(key), Value: binary.BigEndian.AppendUint64(nil, uint64(version))}
}

func version(m Message) int64 { return int64(binary.BigEndian.Uint64(m.Value)) }

// ledger checks what arrives as a projection would: by key and version.
type ledger struct {
	mu         sync.Mutex
	have       map[string]int64
	duplicates int
	gaps       []GapError
	total      int // versions applied
}

func newLedger() *ledger { return &ledger{have: map[string]int64{}} }

func (l *ledger) apply(batch []Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range batch {
		key := string(m.Key)
		switch Next(l.have[key], version(m)) {
		case Apply:
			l.have[key]++
			l.total++
		case Duplicate:
			l.duplicates++
		case Gap:
			l.gaps = append(l.gaps, GapError{key, l.have[key], version(m)})
		}
	}
}

// wait waits until want versions are applied, and fails on the first gap.
func (l *ledger) wait(t testing.TB, want int) {
	t.Helper()
	settled := func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.total >= want || len(l.gaps) > 0
	}
	for ctx := testContext(t); !settled() && pause(ctx, 5*time.Millisecond); {
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total != want || len(l.gaps) > 0 {
		t.Fatalf("applied %d of %d, %d gaps, first: %v", l.total, want, len(l.gaps), l.gaps[:min(len(l.gaps), 3)])
	}
	t.Logf("applied %d, dropped %d duplicates", l.total, l.duplicates)
}

// eventually polls a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for ctx := testContext(t); !ok(); {
		if !pause(ctx, 5*time.Millisecond) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestNext(t *testing.T) {
	for _, c := range []struct {
		have, got int64
		want      Verdict
	}{{0, 1, Apply}, {0, 2, Gap}, {0, 0, Duplicate}, {5, 6, Apply}, {5, 5, Duplicate}, {5, 1, Duplicate}, {5, 7, Gap}} {
		if v := Next(c.have, c.got); v != c.want {
			t.Errorf("Next(%d, %d) = %v, want %v", c.have, c.got, v, c.want)
		}
	}
	if s := (GapError{"account a", 5, 8}).Error(); s != "kafka: gap in account a: expected version 6, got 8" {
		t.Error(s)
	}
}

func TestHealthy(t *testing.T) {
	cfg := Config{Log: slog.New(slog.DiscardHandler)}
	fake := startFake(t)
	cfg.Brokers = fake.ListenAddrs()
	var port int
	if _, err := fmt.Sscanf(cfg.Brokers[0][strings.LastIndex(cfg.Brokers[0], ":")+1:], "%d", &port); err != nil {
		t.Fatal(err)
	}
	c, err := Dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for range 2 {
		if err := c.Healthy(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	fake.Close()
	for range 2 {
		if err := c.Healthy(testContext(t)); err == nil {
			t.Fatal("healthy without a broker")
		}
	}
	startFake(t, kfake.Ports(port))
	if err := c.Healthy(testContext(t)); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Healthy(ended); err != nil && !strings.Contains(err.Error(), "canceled") {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Healthy(testContext(t)); err == nil {
		t.Fatal("healthy after Close")
	}
}
