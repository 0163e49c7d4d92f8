package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
)

func TestConsumerConfig(t *testing.T) {
	if _, err := NewConsumer(ConsumerConfig{Config: Config{Brokers: []string{"x:1"}}}); err == nil {
		t.Error("no group, no error")
	}
	c, err := NewConsumer(ConsumerConfig{Config: Config{Brokers: []string{"x:1"}}, Group: "g", Topics: []string{"t"},
		Handle: func(context.Context, []Message) error { return nil }})
	if err != nil || c.Ready() || len(c.Assigned()) != 0 {
		t.Error(err)
	}
	_ = c.Close()
	if err := c.Run(context.Background()); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// Members join and leave while 10,000 messages pass: each is handled at least
// once, and in order for each key.
func TestConsumersShareAndKeepOrder(t *testing.T) {
	t.Parallel()
	const partitions, keys, versions = 6, 100, 100
	cfg := testConfig(t)
	topic, group := testTopic(t, cfg, partitions), unique(t)
	p := testProducer(t, cfg)
	l := newLedger()
	handle := func(_ context.Context, batch []Message) error {
		offsets := map[int32]int64{}
		for _, m := range batch {
			if last, seen := offsets[m.Partition]; seen && m.Offset != last+1 {
				t.Errorf("partition %d: offset %d follows %d", m.Partition, m.Offset, last)
			}
			offsets[m.Partition] = m.Offset
		}
		l.apply(batch)
		return nil
	}
	publish := func(from, to int64) {
		for v := from; v <= to; v++ {
			batch := make([]Message, keys)
			for k := range batch {
				batch[k] = versioned(topic, fmt.Sprint("key", k), v)
			}
			if _, err := publishAll(testContext(t), p, batch); err != nil {
				t.Errorf("version %d: %v", v, err)
				return
			}
		}
	}
	held := func(c *Consumer) int { return len(c.Assigned()[topic]) }

	publish(1, 25) // before anyone has joined
	first := testConsumer(t, cfg, group, topic, handle)
	eventually(t, "the first member holds all", func() bool { return first.Ready() && held(first) == partitions })
	var wg sync.WaitGroup
	wg.Go(func() { publish(26, 50) })
	second := testConsumer(t, cfg, group, topic, handle)
	eventually(t, "they share", func() bool { return held(first) == partitions/2 && held(second) == partitions/2 })
	wg.Wait()
	publish(51, 75)
	if err := first.Close(); err != nil || first.Ready() {
		t.Fatal(err)
	}
	publish(76, 100)
	eventually(t, "the second member holds all", func() bool { return held(second) == partitions })
	l.wait(t, keys*versions)
}

func TestMoreMembersThanPartitions(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	topic, group := testTopic(t, cfg, 1), unique(t)
	handle := func(context.Context, []Message) error { return nil }
	a, b := testConsumer(t, cfg, group, topic, handle), testConsumer(t, cfg, group, topic, handle)
	eventually(t, "both are ready, one holds the partition", func() bool {
		return a.Ready() && b.Ready() && len(a.Assigned()[topic])+len(b.Assigned()[topic]) == 1
	})
}

func TestHandlerErrorIsRetried(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	topic := testTopic(t, cfg, 2)
	const keys, versions = 10, 50
	p := testProducer(t, cfg)
	for v := range int64(versions) {
		batch := make([]Message, keys)
		for k := range batch {
			batch[k] = versioned(topic, fmt.Sprint("key", k), v+1)
		}
		if _, err := publishAll(testContext(t), p, batch); err != nil {
			t.Fatal(err)
		}
	}
	l := newLedger()
	var mu sync.Mutex
	failed := map[int32]int64{} // partition → offset of the batch that just failed, +1
	calls := map[int32]int{}
	testConsumer(t, cfg, unique(t), topic, func(_ context.Context, batch []Message) error {
		mu.Lock()
		defer mu.Unlock()
		part := batch[0].Partition
		if at := failed[part]; at > 0 && at-1 != batch[0].Offset {
			t.Errorf("partition %d: offset %d after a failure at %d", part, batch[0].Offset, at-1)
		}
		failed[part] = 0
		if calls[part]++; calls[part]%4 != 0 && calls[part] < 8 {
			failed[part] = batch[0].Offset + 1
			l.apply(batch[:len(batch)/2]) // half done, then an error: handled again
			return errors.New("not now")
		}
		l.apply(batch)
		return nil
	})
	l.wait(t, keys*versions)
	mu.Lock()
	defer mu.Unlock()
	if calls[0] < 4 || calls[1] < 4 {
		t.Errorf("calls by partition: %v", calls)
	}
}

// A restarted member goes on where the group was, and a batch under way when it
// stopped is handled again.
func TestConsumerResumes(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	topic, group := testTopic(t, cfg, 1), unique(t)
	p := testProducer(t, cfg)
	publish := func(v int64) {
		if _, err := publishAll(testContext(t), p, []Message{versioned(topic, "k", v)}); err != nil {
			t.Fatal(err)
		}
	}
	publish(1)
	seen := make(chan int64, 10)
	blocked := make(chan struct{})
	first := testConsumer(t, cfg, group, topic, func(ctx context.Context, batch []Message) error {
		if version(batch[0]) == 2 {
			close(blocked)
			<-ctx.Done() // stops only because the session ends
			return ctx.Err()
		}
		seen <- version(batch[0])
		return nil
	})
	if v := <-seen; v != 1 {
		t.Fatal(v)
	}
	publish(2)
	<-blocked
	_ = first.Close()
	testConsumer(t, cfg, group, topic, func(_ context.Context, batch []Message) error {
		for _, m := range batch {
			seen <- version(m)
		}
		return nil
	})
	if v := <-seen; v != 2 {
		t.Fatalf("resumed at %d", v)
	}
}

// lines collects a log.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

// Messages that the topic lost before the group read them do not stop the group for good: it goes on at the oldest one
// that is left, and says so.
func TestLostMessagesAreReportedAndPassed(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(t *testing.T, cfg Config, p *Producer, topic string){
		"deleted": func(t *testing.T, cfg Config, p *Producer, topic string) {
			publishVersions(t, p, topic, 3, 8)
			if err := testAdmin(t, cfg).DeleteRecords(topic, map[int32]int64{0: 5}); err != nil {
				t.Fatal(err)
			}
		},
		"made anew": func(t *testing.T, cfg Config, p *Producer, topic string) {
			admin := testAdmin(t, cfg)
			if err := admin.DeleteTopic(topic); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the topic is made anew", func() bool {
				return EnsureTopics(testContext(t), cfg, Topic{Name: topic, Partitions: 1}) == nil
			})
			publishVersions(t, p, topic, 8, 8)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(t)
			topic, group := testTopic(t, cfg, 1), unique(t)
			publishVersions(t, testProducer(t, cfg), topic, 1, 2)
			l := newLedger()
			c := testConsumer(t, cfg, group, topic, func(_ context.Context, batch []Message) error { l.apply(batch); return nil })
			l.wait(t, 2)
			_ = c.Close() // commits offset 2
			lose(t, cfg, testProducer(t, cfg), topic)
			if name == "made anew" { // Kafka may forget the offsets with the topic; a group that kept them is the hard case
				commit(t, cfg, group, topic, 2)
			}
			log := &lines{}
			cfg.Log = slog.New(slog.NewTextHandler(log, nil))
			var last atomic.Int64
			c = testConsumer(t, cfg, group, topic, func(_ context.Context, batch []Message) error {
				last.Store(version(batch[len(batch)-1]))
				return nil
			})
			eventually(t, "what is left is handled", func() bool { return last.Load() == 8 })
			if c.Losses() == 0 || log.count("messages were lost before they were handled") == 0 {
				t.Errorf("%d losses were counted, and the log says nothing", c.Losses())
			}
			_ = c.Close()
			c = testConsumer(t, cfg, group, topic, func(context.Context, []Message) error { return nil })
			eventually(t, "it joins again", c.Ready)
			if c.Losses() != 0 {
				t.Error("the loss is found again")
			}
		})
	}
}

// publishVersions publishes the versions from one to another of one key.
func publishVersions(t *testing.T, p *Producer, topic string, from, to int64) {
	t.Helper()
	for v := from; v <= to; v++ {
		if _, err := publishAll(testContext(t), p, []Message{versioned(topic, "k", v)}); err != nil {
			t.Fatal(err)
		}
	}
}

// commit commits a group's offset from outside of it.
func commit(t *testing.T, cfg Config, group, topic string, offset int64) {
	t.Helper()
	client, err := sarama.NewClient(cfg.Brokers, cfg.sarama())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	manager, err := sarama.NewOffsetManagerFromClient(group, client)
	if err != nil {
		t.Fatal(err)
	}
	partition, err := manager.ManagePartition(topic, 0)
	if err != nil {
		t.Fatal(err)
	}
	partition.MarkOffset(offset, "")
	manager.Commit()
	_ = partition.Close()
	_ = manager.Close()
}

func TestLatency(t *testing.T) {
	cfg := testConfig(t)
	topic := testTopic(t, cfg, 1)
	p := testProducer(t, cfg)
	got := make(chan struct{}, 1)
	testConsumer(t, cfg, unique(t), topic, func(context.Context, []Message) error { got <- struct{}{}; return nil })
	var took []time.Duration
	for i := range 201 {
		start := time.Now()
		if _, err := publishAll(testContext(t), p, []Message{versioned(topic, "k", int64(i))}); err != nil {
			t.Fatal(err)
		}
		<-got
		if i > 0 { // the first waits for the group
			took = append(took, time.Since(start))
		}
	}
	slices.Sort(took)
	t.Logf("produce to consume: p50 %v, p99 %v, max %v", took[100], took[198], took[199])
	if took[100] > 100*time.Millisecond { // 250 ms would mean that fetches wait for their timeout
		t.Errorf("p50 %v", took[100])
	}
}
