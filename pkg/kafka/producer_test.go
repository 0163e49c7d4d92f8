package kafka

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// refuse answers every partition of a produce request that the filter accepts
// with code, without writing, and the others with success, also without writing.
func refuse(req kmsg.Request, code int16, filter func(partition int32) bool) kmsg.Response {
	r := req.(*kmsg.ProduceRequest)
	resp := r.ResponseKind().(*kmsg.ProduceResponse)
	for _, rt := range r.Topics {
		st := kmsg.NewProduceResponseTopic()
		st.Topic, st.TopicID = rt.Topic, rt.TopicID
		for _, rp := range rt.Partitions {
			sp := kmsg.NewProduceResponseTopicPartition()
			sp.Partition = rp.Partition
			if filter(rp.Partition) {
				sp.ErrorCode = code
			}
			st.Partitions = append(st.Partitions, sp)
		}
		resp.Topics = append(resp.Topics, st)
	}
	return resp
}

// publishAll resends until everything is acknowledged, as a relay does.
func publishAll(ctx context.Context, p *Producer, batch []Message) (failures int, err error) {
	wait := newBackoff()
	wait.MaxInterval = 400 * time.Millisecond // tests do not spare the broker
	for len(batch) > 0 {
		n, err := p.Publish(ctx, batch)
		batch = batch[n:]
		if err != nil {
			if failures++; !pause(ctx, wait.NextBackOff()) {
				return failures, err
			}
		}
	}
	return failures, nil
}

func TestRoundTrip(t *testing.T) {
	cfg := testConfig(t)
	topic := testTopic(t, cfg, 3)
	at := time.UnixMilli(1_700_000_000_123)
	sent := Message{Topic: topic, Key: []byte("k"), Value: []byte("v"), Time: at,
		Headers: []Header{{"b", []byte("1")}, {"a", []byte("2")}, {"b", []byte("3")}, {"empty", nil}}}
	if n, err := testProducer(t, cfg).Publish(testContext(t), []Message{sent, {Topic: topic, Value: []byte("no key")}}); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	got := make(chan Message, 2)
	testConsumer(t, cfg, unique(t), topic, func(_ context.Context, batch []Message) error { // after: starts at the oldest
		for _, m := range batch {
			got <- m
		}
		return nil
	})
	for range 2 {
		m := <-got
		if string(m.Value) == "no key" {
			if m.Key != nil || time.Since(m.Time) > time.Minute {
				t.Errorf("%+v", m)
			}
			continue
		}
		if !bytes.Equal(m.Key, sent.Key) || !bytes.Equal(m.Value, sent.Value) || !m.Time.Equal(at) || m.Topic != topic {
			t.Errorf("%+v", m)
		}
		if len(m.Headers) != 4 || m.Headers[0].Key != "b" || m.Headers[1].Key != "a" || string(m.Headers[2].Value) != "3" {
			t.Errorf("headers %v", m.Headers)
		}
		if m.Header("b") != "1" || m.Header("none") != "" {
			t.Errorf("Header(b) = %q", m.Header("b"))
		}
	}
}

func TestPublishAckedPrefix(t *testing.T) {
	t.Parallel()
	cfg, fake := fakeConfig(t)
	topic := testTopic(t, cfg, 2)
	p := testProducer(t, cfg)
	var batch []Message
	var versions [2]int64
	for i := range 20 { // two keys, on different partitions
		k := i / 3 % 2
		versions[k]++
		batch = append(batch, versioned(topic, []string{"a", "b"}[k], versions[k]))
	}
	if n, err := p.Publish(testContext(t), batch[:1]); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	of := map[string]int32{}
	for _, key := range []string{"a", "b"} {
		of[key], _ = p.partitioner.Partition(&sarama.ProducerMessage{Key: sarama.StringEncoder(key)}, 2)
	}
	if of["a"] == of["b"] {
		t.Fatal("keys share a partition")
	}

	var code, partition atomic.Int32 // code -1: not injected
	fake.ControlKey(0, func(req kmsg.Request) (kmsg.Response, error, bool) {
		fake.KeepControl()
		if code.Load() < 0 {
			return nil, nil, false
		}
		return refuse(req, int16(code.Load()), func(p int32) bool { return p == partition.Load() }), nil, true
	})
	for _, c := range []struct {
		name      string
		code      int16
		partition int32
		acked     int
	}{
		{"refused, first key", kerr.TopicAuthorizationFailed.Code, of["a"], 0},
		{"refused, second key", kerr.InvalidRecord.Code, of["b"], 3},
		{"transient for too long", kerr.NotEnoughReplicas.Code, of["b"], 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			code.Store(int32(c.code))
			partition.Store(c.partition)
			n, err := p.Publish(testContext(t), batch)
			if n != c.acked || !errors.Is(err, sarama.KError(c.code)) {
				t.Errorf("acked %d, want %d: %v", n, c.acked, err)
			}
		})
	}
	// Nothing of the failures stays: what was not acknowledged goes through.
	code.Store(-1)
	if n, err := p.Publish(testContext(t), batch); n != len(batch) || err != nil {
		t.Fatal(n, err)
	}
	l := newLedger()
	testConsumer(t, cfg, unique(t), topic, func(_ context.Context, batch []Message) error { l.apply(batch); return nil })
	l.wait(t, len(batch))
}

func TestPublishRetriesWithoutDuplicates(t *testing.T) {
	t.Parallel()
	cfg, fake := fakeConfig(t)
	topic := testTopic(t, cfg, 1)
	p := testProducer(t, cfg)
	var calls atomic.Int32
	// A transient refusal first, then a connection that breaks.
	for _, answer := range []func(kmsg.Request) (kmsg.Response, error, bool){
		func(req kmsg.Request) (kmsg.Response, error, bool) {
			calls.Add(1)
			return refuse(req, kerr.NotLeaderForPartition.Code, func(int32) bool { return true }), nil, true
		},
		func(kmsg.Request) (kmsg.Response, error, bool) {
			calls.Add(1)
			return nil, errors.New("broken"), true
		},
	} {
		fake.ControlKey(0, answer)
	}
	batch := []Message{versioned(topic, "k", 1), versioned(topic, "k", 2), versioned(topic, "k", 3)}
	if n, err := p.Publish(testContext(t), batch); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	if n := calls.Load(); n != 2 {
		t.Errorf("%d injected answers", n)
	}
	l := newLedger()
	testConsumer(t, cfg, unique(t), topic, func(_ context.Context, batch []Message) error { l.apply(batch); return nil })
	l.wait(t, 3)
	if l.duplicates != 0 {
		t.Errorf("%d duplicates", l.duplicates)
	}
}

func TestPublishRefusesLargeMessage(t *testing.T) {
	cfg := testConfig(t)
	topic := testTopic(t, cfg, 2)
	p := testProducer(t, cfg)
	large := Message{Topic: topic, Key: []byte("k"), Value: make([]byte, 2<<20)}
	n, err := p.Publish(testContext(t), []Message{versioned(topic, "k", 1), versioned(topic, "k", 2), large, versioned(topic, "k", 3)})
	if n != 2 || !errors.Is(err, sarama.ErrMessageSizeTooLarge) {
		t.Fatal(n, err)
	}
	// 3 MiB to one partition and more take several rounds.
	var batch []Message
	for i := range 40 {
		batch = append(batch, Message{Topic: topic, Key: []byte(strconv.Itoa(i % 2)), Value: make([]byte, 300<<10)})
	}
	if n, err := p.Publish(testContext(t), batch); n != len(batch) || err != nil {
		t.Fatal(n, err)
	}
}

func TestPublishErrors(t *testing.T) {
	if _, err := NewProducer(Config{}); err == nil {
		t.Error("no brokers, no error")
	}
	cfg := testConfig(t)
	p := testProducer(t, cfg)
	if n, err := p.Publish(testContext(t), []Message{{Topic: unique(t)}}); n != 0 || !errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
		t.Errorf("unknown topic: %d, %v", n, err)
	}
	_ = p.Close()
	if _, err := p.Publish(testContext(t), []Message{{Topic: "x"}}); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	// A listener that never answers: ctx ends the call.
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Brokers = []string{mute.Addr().String()}
	p, err = NewProducer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if n, err := p.Publish(ctx, []Message{{Topic: "x"}}); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(n, err)
	}
	_ = mute.Close()
}

// A broker that answers but is still starting is waited for, within bounds.
func TestPublishWaitsForStartingBroker(t *testing.T) {
	t.Parallel()
	cfg, fake := fakeConfig(t)
	topic := testTopic(t, cfg, 1)
	answers := make(chan int16, 3)
	var always atomic.Int32 // the answer when there is none left in answers
	var calls atomic.Int32
	fake.ControlKey(int16(kmsg.InitProducerID), func(req kmsg.Request) (kmsg.Response, error, bool) {
		fake.KeepControl()
		calls.Add(1)
		code := int16(always.Load())
		select {
		case code = <-answers:
		default:
		}
		if code == 0 {
			return nil, nil, false
		}
		resp := req.ResponseKind().(*kmsg.InitProducerIDResponse)
		resp.ErrorCode = code
		return resp, nil, true
	})
	publish := func(ctx context.Context, startingMax time.Duration) (int, error) {
		calls.Store(0)
		p := testProducer(t, cfg)
		p.startingMax = startingMax
		return p.Publish(ctx, []Message{versioned(topic, "k", 1)})
	}

	answers <- kerr.CoordinatorLoadInProgress.Code
	answers <- kerr.CoordinatorNotAvailable.Code
	answers <- kerr.NotCoordinator.Code
	if n, err := publish(testContext(t), startingMax); n != 1 || err != nil || calls.Load() != 4 {
		t.Errorf("in the end: %d, %v after %d answers", n, err, calls.Load())
	}
	always.Store(int32(kerr.CoordinatorLoadInProgress.Code))
	if n, err := publish(testContext(t), 200*time.Millisecond); n != 0 || !errors.Is(err, sarama.ErrOffsetsLoadInProgress) || calls.Load() != 2 {
		t.Errorf("never: %d, %v after %d answers", n, err, calls.Load())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if n, err := publish(ctx, startingMax); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ctx ended: %d, %v", n, err)
	}
	always.Store(int32(kerr.ClusterAuthorizationFailed.Code))
	if n, err := publish(testContext(t), startingMax); n != 0 || !errors.Is(err, sarama.ErrClusterAuthorizationFailed) || calls.Load() != 1 {
		t.Errorf("refused: %d, %v after %d answers", n, err, calls.Load())
	}
}

// The broker goes away and comes back in the middle of a stream of batches: the
// relay resends from the first unacknowledged message, and nothing is lost.
func TestPublishBrokerRestart(t *testing.T) {
	t.Parallel()
	cfg, outages := testOutages(t)
	topic := testTopic(t, cfg, 3)
	p := testProducer(t, cfg)
	l := newLedger()
	c := testConsumer(t, cfg, unique(t), topic, func(_ context.Context, batch []Message) error { l.apply(batch); return nil })
	defer func() { _ = c.Close() }() // while there is a broker
	eventually(t, "the consumer joins", c.Ready)

	const keys = 30
	var versions, failures atomic.Int64
	var enough atomic.Bool
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for v := int64(1); !enough.Load(); v++ {
			batch := make([]Message, keys)
			for k := range batch {
				batch[k] = versioned(topic, fmt.Sprint("key", k), v)
			}
			n, err := publishAll(ctx, p, batch)
			failures.Add(int64(n))
			if err != nil {
				t.Errorf("version %d: %v", v, err)
				return
			}
			versions.Store(v)
		}
	})
	more := func(n int64) {
		t.Helper()
		n += versions.Load()
		eventually(t, "published more", func() bool { return versions.Load() >= n })
	}
	for _, outage := range outages {
		more(20)
		restart := outage()
		// Come back only after a call has failed.
		if _, err := p.Publish(testContext(t), []Message{versioned(topic, "probe", 0)}); err == nil {
			t.Error("published without a broker")
		}
		restart()
	}
	more(20)
	enough.Store(true)
	wg.Wait()
	t.Logf("%d versions, %d calls failed", versions.Load(), failures.Load())
	l.wait(t, keys*int(versions.Load()))
}

// testOutages returns a cluster of the test's own and the ways in which it goes
// away. Each returns what brings it back, at the same address with the same data.
func testOutages(t *testing.T) (cfg Config, outages []func() (restart func())) {
	t.Helper()
	cfg = testConfig(t)
	if !onReal {
		dir := t.TempDir()
		fake := startFake(t, kfake.DataDir(dir))
		cfg.Brokers = fake.ListenAddrs()
		_, port, _ := net.SplitHostPort(cfg.Brokers[0])
		number, _ := strconv.Atoi(port)
		return cfg, []func() func(){func() func() {
			fake.Close()
			return func() { startFake(t, kfake.DataDir(dir), kfake.Ports(number)) }
		}}
	}
	if _, err := exec.LookPath("java"); err != nil {
		t.Skip("needs a broker to stop: ", err)
	}
	dir := t.TempDir()
	addr, stop := startReal(t, dir)
	cfg.Brokers = []string{addr}
	for _, signal := range []string{"TERM", "KILL"} {
		outages = append(outages, func() func() {
			stop(signal)
			return func() { _, stop = startReal(t, dir) }
		})
	}
	return cfg, outages
}

// startReal runs an Apache Kafka with its data in dir, at the same address each
// time. It ends when stopped, or with the test, however that ends.
func startReal(t *testing.T, dir string) (addr string, stop func(signal string)) {
	t.Helper()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command("bash", "-c", `bash ../../deploy/kafka/run.sh --data "$0" --port 0 & read -r signal; kill -"${signal:-KILL}" $!; wait $!`, dir)
	cmd.Stdout, cmd.Stderr = log, log
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	stop = func(signal string) {
		_, _ = fmt.Fprintln(stdin, signal)
		_ = cmd.Wait() // the signal's number
	}
	t.Cleanup(func() { stop("KILL") })
	for ctx := testContext(t); ; {
		if written, err := os.ReadFile(filepath.Join(dir, "address")); err == nil {
			addr = strings.TrimSpace(string(written))
			if EnsureTopics(ctx, Config{Brokers: []string{addr}}) == nil {
				return addr, stop
			}
		}
		if !pause(ctx, retryPause) {
			said, _ := os.ReadFile(log.Name())
			t.Fatalf("Apache Kafka does not answer: … %s", said[max(0, len(said)-1000):])
		}
	}
}

func BenchmarkPublish(b *testing.B) {
	cfg := testConfig(b)
	topic := testTopic(b, cfg, 6)
	p := testProducer(b, cfg)
	batch := make([]Message, 256)
	for i := range batch {
		batch[i] = Message{Topic: topic, Key: []byte(fmt.Sprint("account-", i%64)), Value: make([]byte, 600),
			Headers: []Header{{"type", []byte("BalanceChanged")}, {"version", []byte("1")}}}
	}
	b.ReportAllocs()
	b.SetBytes(256 * 600)
	for b.Loop() {
		if n, err := p.Publish(context.Background(), batch); n != len(batch) || err != nil {
			b.Fatal(n, err)
		}
	}
	b.ReportMetric(float64(b.N)*256/b.Elapsed().Seconds(), "msgs/s")
}
