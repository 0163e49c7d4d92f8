package cqrs_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/inbox"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/parking"
	"example.com/billing/pkg/pgtest"
)

func broker(t *testing.T) (kafka.Config, *kafka.Producer) {
	t.Helper()
	fake, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	cfg := kafka.Config{Brokers: fake.ListenAddrs(), ClientID: "test", Log: slog.New(slog.DiscardHandler)}
	if err := kafka.EnsureTopics(t.Context(), cfg, kafka.Topic{Name: "billing.account.events", Partitions: 3}); err != nil {
		t.Fatal(err)
	}
	p, err := kafka.NewProducer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return cfg, p
}

// message is an event as the outbox publishes it.
func message(t *testing.T, e es.Event) kafka.Message {
	t.Helper()
	b, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return kafka.Message{
		Topic: "billing.account.events", Key: []byte(e.Stream.ID), Value: b, Headers: []kafka.Header{{Key: "eventType", Value: []byte(e.Type)}},
	}
}

func publish(t *testing.T, p *kafka.Producer, batch ...kafka.Message) {
	t.Helper()
	if n, err := p.Publish(t.Context(), batch); n != len(batch) || err != nil {
		t.Fatal(n, err)
	}
}

func consume(t *testing.T, b *cqrs.EventBus, cfg kafka.Config) {
	t.Helper()
	consumers, err := b.Consumers(cfg, "billing", "test", nil, es.Decode)
	if err != nil || len(consumers) != len(b.Subscriptions()) {
		t.Fatalf("%d consumers, %v", len(consumers), err)
	}
	for _, c := range consumers {
		go func() { _ = c.Run(context.Background()) }()
		t.Cleanup(func() { _ = c.Close() })
	}
}

// follower is an event handler that keeps each stream's version, as a projection does.
type follower struct {
	mu    sync.Mutex
	have  map[string]int64
	types map[string]int
	gaps  int
	fails int // calls that fail after half of their events
	n     int
	want  int
	done  chan struct{}
}

func follow(want, fails int) *follower {
	return &follower{have: map[string]int64{}, types: map[string]int{}, want: want, fails: fails, done: make(chan struct{})}
}

func (f *follower) handle(_ context.Context, events []es.Event) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var err error
	if f.fails > 0 {
		f.fails--
		events, err = events[:len(events)/2], errors.New("not now")
	}
	for _, e := range events {
		switch kafka.Next(f.have[e.Stream.ID], e.Version) {
		case kafka.Apply:
			f.have[e.Stream.ID] = e.Version
			f.types[e.Type]++
			if f.n++; f.n == f.want {
				close(f.done)
			}
		case kafka.Gap:
			f.gaps++
		case kafka.Duplicate:
		}
	}
	return err
}

func (f *follower) wait(t *testing.T) {
	t.Helper()
	select {
	case <-f.done:
	case <-time.After(30 * time.Second):
		t.Error("not everything arrived")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gaps > 0 || f.fails > 0 {
		t.Errorf("%d gaps, %d failures to come", f.gaps, f.fails)
	}
}

// A saga handler that fails at first and a projection each get every event they want, each stream in order.
func TestConsumersDeliverInOrderAndTryAgain(t *testing.T) {
	const streams, versions = 8, 20
	cfg, p := broker(t)
	for v := range int64(versions) {
		var batch []kafka.Message
		for i := range streams {
			batch = append(batch, message(t, event("Account", "Moved", fmt.Sprint("a", i), v+1)))
		}
		publish(t, p, batch...)
	}
	var b cqrs.EventBus
	saga, projection := follow(streams*versions, 3), follow(streams*versions, 0)
	b.OnSaga("saga", "Account", []string{"Moved"}, saga.handle)
	b.OnProjection("projection", "Account", projection.handle)
	consume(t, &b, cfg)
	saga.wait(t)
	projection.wait(t)
}

// A handler sees the types it asked for, also behind messages that it could not even read.
func TestConsumersSkipWhatIsNotWanted(t *testing.T) {
	cfg, p := broker(t)
	foreign := message(t, event("Account", "Closed", "a", 1))
	foreign.Value = []byte("of a type that nobody here reads")
	publish(t, p, foreign, message(t, event("Account", "Opened", "a", 1)), message(t, event("Account", "Moved", "a", 2)), message(t, event("Account", "Opened", "a", 2)))
	var b cqrs.EventBus
	f := follow(2, 0)
	b.OnSaga("opened", "Account", []string{"Opened"}, f.handle)
	consume(t, &b, cfg)
	f.wait(t)
	if f.types["Opened"] != 2 || len(f.types) != 1 {
		t.Errorf("%v", f.types)
	}
}

// A message that is no event stops its partition, and no other one.
func TestAMessageThatIsNoEventIsNeverSkipped(t *testing.T) {
	cfg, p := broker(t)
	broken := message(t, event("Account", "Moved", "a", 1))
	broken.Value = []byte("broken")
	publish(t, p, broken, message(t, event("Account", "Moved", "a", 1))) // the same key, so the same partition
	var others []kafka.Message
	for i := range 20 {
		others = append(others, message(t, event("Account", "Moved", fmt.Sprint("b", i), 1)))
	}
	publish(t, p, others...)
	var b cqrs.EventBus
	handled := make(chan string, 100)
	b.OnSaga("saga", "Account", nil, func(_ context.Context, events []es.Event) error {
		for _, e := range events {
			handled <- e.Stream.ID
		}
		return nil
	})
	failed := &failures{seen: make(chan struct{}, 100)}
	cfg.Log = slog.New(failed)
	consume(t, &b, cfg)
	for range 3 { // tried again and again
		select {
		case <-failed.seen:
		case <-time.After(30 * time.Second):
			t.Fatal("nobody says that the message is broken")
		}
	}
	if <-handled == "a" {
		t.Error("the broken message was skipped")
	}
	for len(handled) > 0 {
		if <-handled == "a" {
			t.Error("the broken message was skipped")
		}
	}
}

// failures is a log handler that counts warnings about batches that are tried again.
type failures struct{ seen chan struct{} }

func (*failures) Enabled(context.Context, slog.Level) bool { return true }
func (f *failures) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "kafka: batch is tried again" {
		f.seen <- struct{}{}
	}
	return nil
}
func (f *failures) WithAttrs([]slog.Attr) slog.Handler { return f }
func (f *failures) WithGroup(string) slog.Handler      { return f }

// With an inbox it parks its own key, and the others go on: also those of the same partition, and in a projection as in a saga.
func TestAMessageThatIsNoEventParksItsKey(t *testing.T) {
	pool := pgtest.Pool(t)
	if err := migrate.Up(t.Context(), pool, inbox.Migrations, inbox.MigrationsTable); err != nil {
		t.Fatal(err)
	}
	cfg, p := broker(t)
	broken := message(t, event("Account", "Moved", "a", 1))
	broken.Value = []byte("broken")
	batch := []kafka.Message{broken, message(t, event("Account", "Moved", "a", 2))}
	const others = 20
	for i := range others {
		batch = append(batch, message(t, event("Account", "Moved", fmt.Sprint("b", i), 1)))
	}
	publish(t, p, batch...)
	var b cqrs.EventBus
	saga, projection := follow(others, 0), follow(others, 0)
	b.OnSaga("saga", "Account", []string{"Moved"}, saga.handle)
	b.OnProjection("projection", "Account", projection.handle)
	box := inbox.New(inbox.Config{Pool: pool, Log: cfg.Log})
	consumers, err := b.Consumers(cfg, "billing", "test", box, es.Decode)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range consumers {
		go func() { _ = c.Run(context.Background()) }()
		t.Cleanup(func() { _ = c.Close() })
	}
	saga.wait(t)
	projection.wait(t)
	pgtest.Eventually(t, "two messages of each subscription are parked", func() bool {
		found, err := inbox.Lanes(pool).List(t.Context(), parking.Filter{Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		return len(found) == 4
	})
}
