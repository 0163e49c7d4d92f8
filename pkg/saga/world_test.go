package saga_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/saga"
	sagapg "example.com/billing/pkg/saga/postgres"
)

var errLost = errors.New("the answer was lost")

// world is the services that actions call. It keeps the promise that actions rely on: a call with a key that was used has the
// answer of the first one, and no further effect. What the world should answer is up to its hooks.
type world struct {
	// decide answers a key's first call; nil = done.
	decide func(c saga.Call) saga.Answer
	// before and after are called around every call; an error is what the engine sees. The effect stands between them.
	before, after func(ctx context.Context, c saga.Call, nth int) error

	mu      sync.Mutex
	calls   map[string]int // by key
	first   map[string]string
	answers map[string]saga.Answer
	done    map[string][]string // actions done, by saga, in order
	bad     []string            // broken promises of the engine's
}

func newWorld() *world {
	return &world{calls: map[string]int{}, first: map[string]string{}, answers: map[string]saga.Answer{}, done: map[string][]string{}}
}

func (w *world) act(ctx context.Context, c saga.Call) (saga.Answer, error) {
	key := c.SagaID + "/" + c.Action
	w.mu.Lock()
	w.calls[key]++
	nth := w.calls[key]
	content, _ := json.Marshal(c)
	if w.first[key] == "" {
		w.first[key] = string(content)
	}
	if w.first[key] != string(content) {
		w.bad = append(w.bad, fmt.Sprintf("call %d of %s is %s, was %s", nth, key, content, w.first[key]))
	}
	w.mu.Unlock()
	if w.before != nil {
		if err := w.before(ctx, c, nth); err != nil {
			return saga.Answer{}, err
		}
	}
	answer := w.effect(c, key)
	if w.after != nil {
		if err := w.after(ctx, c, nth); err != nil {
			return saga.Answer{}, err
		}
	}
	return answer, nil
}

func (w *world) effect(c saga.Call, key string) saga.Answer {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a, ok := w.answers[key]; ok {
		return a
	}
	a := saga.Answer{Outcome: saga.Done, Result: map[string]any{"did": c.Action}}
	if w.decide != nil {
		if d := w.decide(c); d.Outcome != saga.Done {
			a = d
		}
	}
	w.answers[key] = a
	if a.Outcome == saga.Done {
		w.done[c.SagaID] = append(w.done[c.SagaID], c.Action)
	}
	return a
}

// actions are all of the transfer's.
func (w *world) actions() map[string]saga.Action {
	out := map[string]saga.Action{}
	for _, a := range []string{"reserve", "release", "debit", "debit_back", "credit", "complete", "tell_failed", "tell_compensated"} {
		out[a] = w.act
	}
	return out
}

// check fails the test unless exactly these actions had an effect for a saga, in this order, each of them once.
func (w *world) check(t *testing.T, id string, want ...string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.done[id], want) {
		t.Errorf("saga %s had the effects %v, want %v", id, w.done[id], want)
	}
	for _, b := range w.bad {
		t.Error(b)
	}
}

// eachStore runs a test on every store.
func eachStore(t *testing.T, test func(*testing.T, saga.Store)) {
	t.Run("memory", func(t *testing.T) { test(t, saga.NewMemory()) })
	t.Run("postgres", func(t *testing.T) {
		pool := pgtest.Pool(t)
		if err := errors.Join(migrate.Up(t.Context(), pool, espg.Migrations, espg.MigrationsTable),
			migrate.Up(t.Context(), pool, sagapg.Migrations, sagapg.MigrationsTable)); err != nil {
			t.Fatal(err)
		}
		test(t, sagapg.New(pool, espg.New(pool, espg.Options{}), func(s saga.State) (es.Event, error) {
			st := es.Stream{Type: "Saga", ID: s.SagaID}
			return es.Event{ID: es.EventID(st, "end", 0), Type: "SagaEnded", Stream: st, Version: 1, At: s.UpdatedAt, CorrelationID: "c", Data: []byte(`{}`)}, nil
		}))
	})
}

// newEngine makes an engine with short pauses that stops at the end of the test.
func newEngine(t *testing.T, store saga.Store, w *world, change func(*saga.Config)) *saga.Engine {
	t.Helper()
	r, err := saga.NewRegistry(transfer())
	if err != nil {
		t.Fatal(err)
	}
	cfg := saga.Config{
		Registry: r, Actions: w.actions(), Store: store, Log: slog.New(slog.DiscardHandler),
		Retry: saga.RetryPolicy{Initial: time.Millisecond, Max: 5 * time.Millisecond}, RecoverEvery: 5 * time.Millisecond, RecoverIdle: time.Millisecond,
	}
	if change != nil {
		change(&cfg)
	}
	e, err := saga.NewEngine(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, e) })
	return e
}

func stop(t *testing.T, e *saga.Engine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := e.Stop(ctx); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// run has an engine look after unfinished sagas until the test ends.
func run(t *testing.T, e *saga.Engine) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

func trigger() saga.Trigger {
	return saga.Trigger{
		SagaID: uuid.NewString(), EventID: uuid.NewString(), EventType: "TransferRequested", Data: json.RawMessage(`{"amount":"1.00"}`),
		CorrelationID: "corr-1", Metadata: map[string]any{"tenantId": "t-1"}, At: now,
	}
}

// begin starts n sagas and returns their ids.
func begin(t *testing.T, e *saga.Engine, n int) []string {
	t.Helper()
	triggers, ids := make([]saga.Trigger, n), make([]string, n)
	for i := range triggers {
		triggers[i] = trigger()
		ids[i] = triggers[i].SagaID
	}
	if added, err := e.Start(t.Context(), triggers); added != n || err != nil {
		t.Fatalf("started %d of %d: %v", added, n, err)
	}
	return ids
}

// settled waits until the store says that a saga has ended or needs a person.
func settled(t *testing.T, store saga.Store, id string) saga.State {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.After(20 * time.Second)
	for {
		s, err := store.Get(t.Context(), id)
		if err == nil && (s.Status.Ended() || s.Status == saga.NeedsAttention) {
			return s
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("saga %s is %s at step %d (%v)", id, s.Status, s.CurrentStep, err)
		}
	}
}

// refuse answers these actions with a refusal.
func refuse(actions ...string) func(saga.Call) saga.Answer {
	return func(c saga.Call) saga.Answer {
		if slices.Contains(actions, c.Action) {
			return refusal()
		}
		return done()
	}
}
