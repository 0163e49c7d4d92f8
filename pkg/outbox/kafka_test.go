package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kfake"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/pgtest"
)

// broker starts a cluster with the topics of two aggregate types.
func broker(t *testing.T) kafka.Config {
	t.Helper()
	fake, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	cfg := kafka.Config{Brokers: fake.ListenAddrs(), ClientID: "test", Log: slog.New(slog.DiscardHandler)}
	if err := kafka.EnsureTopics(t.Context(), cfg, kafka.Topic{Name: "billing.account.events", Partitions: 3},
		kafka.Topic{Name: "billing.transaction.events", Partitions: 3}); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// read consumes topics until n different messages have arrived, and returns all of them, repeated ones included.
func read(t *testing.T, cfg kafka.Config, n int, topics ...string) []kafka.Message {
	t.Helper()
	var (
		mu   sync.Mutex
		got  []kafka.Message
		seen = map[string]bool{}
		done = make(chan struct{})
	)
	c, err := kafka.NewConsumer(kafka.ConsumerConfig{
		Config: cfg, Group: uuid.NewString(), Topics: topics,
		Handle: func(_ context.Context, batch []kafka.Message) error {
			mu.Lock()
			defer mu.Unlock()
			for _, m := range batch {
				got = append(got, m)
				if !seen[string(m.Value)] && len(seen) == n-1 {
					close(done)
				}
				seen[string(m.Value)] = true
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = c.Run(context.Background()) }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Errorf("%d messages did not all arrive", n)
	}
	_ = c.Close()
	return got
}

// inOrder checks that messages are n different events, each stream's versions one after another; some may be repeated.
func inOrder(t *testing.T, messages []kafka.Message, n int) {
	t.Helper()
	have, fresh, repeated := map[string]int64{}, 0, 0
	for _, m := range messages {
		e, err := es.Decode(m.Value)
		if err != nil {
			t.Fatal(err)
		}
		switch kafka.Next(have[e.Stream.ID], e.Version) {
		case kafka.Apply:
			have[e.Stream.ID] = e.Version
			fresh++
		case kafka.Gap:
			t.Fatalf("%s: version %d follows %d", e.Stream, e.Version, have[e.Stream.ID])
		case kafka.Duplicate:
			repeated++
		}
	}
	if fresh != n {
		t.Errorf("%d of %d arrived", fresh, n)
	}
	t.Logf("%d arrived more than once", repeated)
}

func TestTopic(t *testing.T) {
	for aggregateType, want := range map[string]string{"Account": "billing.account.events", "SagaState": "billing.sagastate.events"} {
		if got := Topic("billing", aggregateType); got != want {
			t.Errorf("%s: %s, want %s", aggregateType, got, want)
		}
	}
}

// What is on Kafka is the event's JSON as it was stored, on the topic of its aggregate type, with the aggregate's id as the key,
// five headers, and the versions of each aggregate in order.
func TestEventsArriveAsTheyAreSpecified(t *testing.T) {
	s, pool := open(t)
	cfg := broker(t)
	producer, err := kafka.NewProducer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = producer.Close() })
	start(t, Config{Pool: pool, Publisher: producer, BatchMax: 7, Committed: s.Committed()})

	const streams, versions = 6, 10
	want := map[string]string{}   // event JSON by stream and version
	positions := map[string]int{} // by event
	for v := range int64(versions) {
		for i := range streams {
			st := es.Stream{Type: []string{"Account", "Transaction"}[i%2], ID: fmt.Sprint("id-", i)}
			e := es.Event{
				ID: uuid.NewString(), Type: "BalanceChanged", Stream: st, Version: v + 1, At: time.UnixMilli(1700000000000 + v),
				CorrelationID: fmt.Sprint("corr-", rand.Int()), CausationID: "cmd", Metadata: map[string]any{"actor": "ann"}, Data: []byte(`{"newBalance":"1.00"}`),
			}
			if err := s.Append(t.Context(), es.Append{Stream: st, Expected: v, Events: []es.Event{e}}); err != nil {
				t.Fatal(err)
			}
			b, err := e.Encode()
			if err != nil {
				t.Fatal(err)
			}
			want[fmt.Sprint(st, v+1)] = string(b)
			positions[e.ID] = len(want)
		}
	}
	have := map[string]int64{}
	for _, m := range read(t, cfg, streams*versions, "billing.account.events", "billing.transaction.events") {
		e, err := es.Decode(m.Value)
		if err != nil {
			t.Fatal(err)
		}
		if kafka.Next(have[string(m.Key)], e.Version) != kafka.Apply {
			t.Errorf("%s: version %d follows %d", m.Key, e.Version, have[string(m.Key)])
		}
		have[string(m.Key)] = e.Version
		if m.Topic != Topic("billing", e.Stream.Type) || string(m.Key) != e.Stream.ID {
			t.Errorf("%s is on topic %s with key %s", e.Stream, m.Topic, m.Key)
		}
		if got := string(m.Value); got != want[fmt.Sprint(e.Stream, e.Version)] {
			t.Errorf("value\n got %s\nwant %s", got, want[fmt.Sprint(e.Stream, e.Version)])
		}
		headers := []string{"eventType=BalanceChanged", fmt.Sprint("aggregateVersion=", e.Version), "correlationId=" + e.CorrelationID}
		headers = append(headers, fmt.Sprint("position=", positions[e.ID]), "incarnation=1")
		var got []string
		for _, h := range m.Headers {
			got = append(got, h.Key+"="+string(h.Value))
		}
		if !slices.Equal(got, headers) {
			t.Errorf("headers %q, want %q", got, headers)
		}
	}
	if len(have) != streams {
		t.Errorf("%d streams arrived, want %d", len(have), streams)
	}
}

// Between the relay and Kafka batches fail at random, before or after messages got through: everything arrives, and each
// aggregate's new versions arrive in order.
func TestNothingIsLostOnABadLine(t *testing.T) {
	s, pool := open(t)
	cfg := broker(t)
	producer, err := kafka.NewProducer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = producer.Close() })
	bad := &recorder{before: func(ctx context.Context, batch []kafka.Message) (int, error) {
		n, err := producer.Publish(ctx, batch[:rand.IntN(len(batch)+1)])
		if err == nil && rand.IntN(3) == 0 {
			n, err = rand.IntN(n+1), errors.New("the answer was lost")
		}
		return n, err
	}}
	start(t, Config{Pool: pool, Publisher: bad, BatchMax: 10, RetryMax: time.Millisecond, Committed: s.Committed()})
	const streams, versions = 10, 10
	for range streams {
		happen(t, s, versions)
	}
	pgtest.Eventually(t, "all is delivered", func() bool { return stats(t, pool).Pending == 0 })
	inOrder(t, read(t, cfg, streams*versions, "billing.account.events"), streams*versions)
}
