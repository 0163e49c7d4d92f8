package outbox

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/parking"
	"example.com/billing/pkg/pgtest"
)

// remembering is the configuration of a relay that sends what its process remembers.
func remembering(s *espg.Store, pool *pgxpool.Pool, p Publisher) Config {
	return Config{Pool: pool, Publisher: p, Committed: s.Committed(), Recent: s.Recent, RetryMax: time.Millisecond}
}

// logged are the ids of all events in the order of their positions.
func logged(t *testing.T, pool *pgxpool.Pool) []string {
	t.Helper()
	rows, err := pool.Query(context.Background(), `SELECT event_id::text FROM es_event ORDER BY position`)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// Commits of this process and of another one in any order, a line that breaks now and then: all is published in order, and what is
// acknowledged is not sent again.
func TestWhatIsRememberedIsPublishedInOrder(t *testing.T) {
	for _, bad := range []bool{false, true} {
		s, pool := open(t)
		other := espg.New(pool, espg.Options{})
		r := &recorder{before: func(_ context.Context, batch []kafka.Message) (int, error) {
			if bad && rand.IntN(4) == 0 {
				return rand.IntN(len(batch) + 1), errors.New("the broker is away")
			}
			return len(batch), nil
		}}
		c := remembering(s, pool, r)
		c.BatchMax = 7
		start(t, c)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for range 30 {
					happen(t, []*espg.Store{s, s, other}[rand.IntN(3)], 1+rand.IntN(4))
				}
			})
		}
		wg.Wait()
		want := logged(t, pool)
		pgtest.Eventually(t, "all is published", func() bool { return len(r.published()) >= len(want) && stats(t, pool).Pending == 0 })
		if !slices.Equal(r.published(), want) {
			t.Errorf("published %d of %d events, or in another order", len(r.published()), len(want))
		}
	}
}

// What this process has committed is not read back; what another one has is looked for, however much goes on here.
func TestWhatIsRememberedIsNotRead(t *testing.T) {
	s, pool := open(t)
	watched, looked := watch(t, pool)
	r := &recorder{}
	c := remembering(s, watched, r)
	c.PollInterval = time.Hour
	start(t, c)
	<-looked // there is nothing yet
	var want []string
	for range 20 {
		want = append(want, happen(t, s, 3)...)
		pgtest.Eventually(t, "published", func() bool { return len(r.published()) == len(want) })
	}
	pgtest.Eventually(t, "noted", func() bool { return checkpoint(t, pool) == int64(len(want)) })
	if n := len(looked); n > 0 {
		t.Errorf("read %d times what is in memory", n)
	}
	want = append(append(want, happen(t, espg.New(pool, espg.Options{}), 2)...), happen(t, s, 1)...)
	pgtest.Eventually(t, "a gap is read at once", func() bool { return len(r.published()) == len(want) })
	if !slices.Equal(r.published(), want) {
		t.Errorf("published %v, want %v", r.published(), want)
	}
}

// Another process's events are looked for within the poll interval of the last look, also where a wake-up came in between.
func TestWhatAnotherProcessCommitsIsPolled(t *testing.T) {
	s, pool := open(t)
	watched, looked := watch(t, pool)
	wake := make(chan struct{})
	r := &recorder{}
	c := remembering(s, watched, r)
	c.Committed, c.PollInterval = wake, 800*time.Millisecond
	start(t, c)
	<-looked
	at := time.Now()
	want := happen(t, espg.New(pool, espg.Options{}), 2)
	<-time.After(c.PollInterval * 3 / 4)
	wake <- struct{}{}
	select {
	case <-looked:
	case <-time.After(20 * time.Second):
		t.Fatal("never looked again")
	}
	if d := time.Since(at); d > c.PollInterval*3/2 {
		t.Errorf("looked after %v, want %v", d, c.PollInterval)
	}
	pgtest.Eventually(t, "published", func() bool { return slices.Equal(r.published(), want) })
}

// A refused event is parked, and what comes behind it in its lane too, though it is remembered; the others flow on.
func TestWhatIsRememberedOfAParkedLaneWaits(t *testing.T) {
	s, pool := open(t)
	sick := es.Stream{Type: "Account", ID: uuid.NewString()}
	poison := happened(sick, 2)
	var well atomic.Bool
	r := picky(func() []string {
		if well.Load() {
			return nil
		}
		return []string{poison.ID}
	})
	watched, looked := watch(t, pool)
	c := remembering(s, watched, r)
	c.BatchMax = 1000
	start(t, c)
	lane := []string{commit(t, s, sick, 1, 0)}
	behind := happened(sick, 3)
	healthy := es.Append{Stream: es.Stream{Type: "Account", ID: uuid.NewString()}}
	healthy.Events = []es.Event{happened(healthy.Stream, 1), happened(healthy.Stream, 2)}
	if err := s.Append(t.Context(), es.Append{Stream: sick, Expected: 1, Events: []es.Event{poison, behind}}, healthy); err != nil {
		t.Fatal(err)
	}
	lane = append(lane, poison.ID, behind.ID)
	others := eventsOf(healthy)
	pgtest.Eventually(t, "the lane is parked", func() bool { return waiting(t, pool).Rows == 2 })
	for v := int64(4); v <= 6; v++ {
		lane = append(lane, commit(t, s, sick, v, 0))
		others = append(others, happen(t, s, 2)...)
	}
	pgtest.Eventually(t, "what comes behind waits, the others flow", func() bool { return waiting(t, pool).Rows == 5 && stats(t, pool).Pending == 0 })
	if got := r.published(); !slices.Equal(got, append(lane[:1:1], others...)) {
		t.Errorf("published %v", got)
	}
	if rows := parked(t, pool); rows[0].Attempts != 5 || rows[1].Attempts != 0 || rows[4].Status != parking.Parked {
		t.Errorf("%+v", rows)
	}
	well.Store(true)
	requeue(t, pool, poison.ID)
	pgtest.Eventually(t, "the lane is through", func() bool { return waiting(t, pool).Rows == 0 })
	for len(looked) > 0 {
		<-looked
	}
	lane = append(lane, commit(t, s, sick, 7, 0))
	pgtest.Eventually(t, "and as any other", func() bool { return len(r.published()) == len(lane)+len(others) })
	if of := slices.DeleteFunc(r.published(), func(id string) bool { return slices.Contains(others, id) }); !slices.Equal(of, lane) {
		t.Errorf("published\n %v of the lane, want\n %v", of, lane)
	}
}

func eventsOf(a es.Append) (ids []string) {
	for _, e := range a.Events {
		ids = append(ids, e.ID)
	}
	return ids
}

// saves counts the writes of the checkpoint.
type saves struct{ n atomic.Int64 }

func (s *saves) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	if strings.HasPrefix(q.SQL, "UPDATE outbox_relay SET position") {
		s.n.Add(1)
	}
	return ctx
}

func (*saves) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// The checkpoint is written from time to time while events flow, soon after the last one, and at the stop.
func TestTheCheckpointFollows(t *testing.T) {
	s, pool := open(t)
	cfg, written := pool.Config().Copy(), &saves{}
	cfg.ConnConfig.Tracer = written
	watched, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watched.Close)
	r := &recorder{}
	c := remembering(s, watched, r)
	c.PollInterval = time.Hour
	stop := start(t, c)
	began := time.Now()
	const events = 200
	for n := range events {
		happen(t, s, 1)
		pgtest.Eventually(t, "published", func() bool { return len(r.published()) == n+1 })
	}
	pgtest.Eventually(t, "noted", func() bool { return checkpoint(t, pool) == events })
	if n, most := written.n.Load(), int64(time.Since(began)/checkpointEvery)+2; n > most || n == 0 {
		t.Errorf("the checkpoint was written %d times in %v", n, time.Since(began))
	}
	if got := stats(t, pool); got.Delivered != events || got.ProcessedAt.IsZero() {
		t.Errorf("%+v", got)
	}
	happen(t, s, 1) // the checkpoint was written just now
	pgtest.Eventually(t, "published", func() bool { return len(r.published()) == events+1 })
	stop()
	if p := checkpoint(t, pool); p != events+1 {
		t.Errorf("checkpoint %d after the stop", p)
	}
}

// A relay loses its lease before it has written what it published: another one publishes at least that, and what the first one says
// later is not heard.
func TestNothingIsLostWithTheCheckpoint(t *testing.T) {
	s, pool := open(t)
	a, b := &recorder{}, &recorder{}
	var taken atomic.Bool
	a.before = func(_ context.Context, batch []kafka.Message) (int, error) {
		if len(a.published()) == 3 && !taken.Swap(true) {
			exec(t, pool, `UPDATE outbox_relay SET leased_until = 'epoch'`)
			pgtest.Eventually(t, "b takes over", func() bool { return checkpoint(t, pool) == 6 })
			<-time.After(checkpointEvery) // a lease lasts much longer
		}
		return len(batch), nil
	}
	first := remembering(s, pool, a)
	first.LeaseTTL = time.Hour
	start(t, first)
	ids := happen(t, s, 1)
	pgtest.Eventually(t, "a works", func() bool { return checkpoint(t, pool) == 1 })
	start(t, Config{Pool: pool, Publisher: b, LeaseTTL: time.Hour})
	ids = append(ids, happen(t, s, 2)...) // published by a, and not noted
	pgtest.Eventually(t, "a goes on", func() bool { return len(a.published()) == 3 })
	from := checkpoint(t, pool)
	ids = append(ids, happen(t, s, 3)...)
	pgtest.Eventually(t, "a is late", func() bool { return len(a.published()) == 6 })
	ids = append(ids, happen(t, s, 4)...)
	pgtest.Eventually(t, "b goes on", func() bool { return checkpoint(t, pool) == int64(len(ids)) })
	if got := b.published(); len(got) < len(ids)-3 || !slices.Equal(got, ids[len(ids)-len(got):]) || int64(len(ids)-len(got)) < from {
		t.Errorf("b published %d of the %d events behind position %d", len(got), len(ids), from)
	}
	if got := a.published(); !slices.Equal(got, ids[:6]) {
		t.Errorf("a published %d events, want the first 6", len(got))
	}
}

// A relay stops between the publish and the writing down of what waits behind a parked lane: that is not passed.
func TestWhatWaitsIsNotPassedByAStop(t *testing.T) {
	s, pool := open(t)
	sick := es.Stream{Type: "Account", ID: uuid.NewString()}
	poison := commit(t, s, sick, 1, 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := picky(func() []string { return []string{poison} })
	refuse := r.before
	r.before = func(ctx context.Context, batch []kafka.Message) (int, error) {
		n, err := refuse(ctx, batch)
		if err == nil {
			cancel()
		}
		return n, err
	}
	done := make(chan error, 1)
	c := remembering(s, pool, r)
	c.Prefix, c.PollInterval, c.Log = "billing", 5*time.Millisecond, slog.New(slog.DiscardHandler)
	go func() { done <- NewRelay(c).Run(ctx) }()
	pgtest.Eventually(t, "the lane is parked", func() bool { return waiting(t, pool).Rows == 1 })
	healthy := es.Append{Stream: es.Stream{Type: "Account", ID: uuid.NewString()}}
	healthy.Events = []es.Event{happened(healthy.Stream, 1)}
	if err := s.Append(t.Context(), healthy, es.Append{Stream: sick, Expected: 1, Events: []es.Event{happened(sick, 2)}}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	start(t, Config{Pool: pool, Publisher: &recorder{}})
	pgtest.Eventually(t, "another relay goes on", func() bool { return checkpoint(t, pool) == 3 })
	if n := waiting(t, pool).Rows; n != 2 {
		t.Errorf("%d events of the lane are parked, want 2", n)
	}
}

// What the stats tell of a failure outlives the checkpoint of what was acknowledged before it.
func TestAFailureOutlivesTheCheckpointOfEarlierEvents(t *testing.T) {
	s, pool := open(t)
	var failures atomic.Int64
	told := make(chan Stats, 100)
	r := &recorder{}
	r.before = func(_ context.Context, batch []kafka.Message) (int, error) {
		if len(r.published()) < 2 {
			return 1, nil
		}
		if failures.Add(1) > 1 {
			told <- stats(t, pool)
		}
		return 0, errors.New("the broker is away")
	}
	c := remembering(s, pool, r)
	c.BatchMax, c.RetryMax = 1, time.Second
	happen(t, s, 3)
	start(t, c)
	for n := range int64(2) {
		got := <-told
		if got.OldestPending, got.ProcessedAt = 0, (time.Time{}); got != (Stats{Pending: 1, Delivered: 2, Failed: 1, Retries: n + 1, LastError: "the broker is away"}) {
			t.Errorf("after %d failures: %+v", n+1, got)
		}
	}
}

// The same where it is a requeued lane that cannot be published.
func TestAFailureOfALaneOutlivesTheCheckpointOfEarlierEvents(t *testing.T) {
	s, pool := open(t)
	sick, well := es.Stream{Type: "Account", ID: uuid.NewString()}, es.Stream{Type: "Account", ID: uuid.NewString()}
	poison := commit(t, s, sick, 1, 0)
	var away atomic.Bool
	told := make(chan Stats, 100)
	r := picky(func() []string { return []string{poison} })
	refuse := r.before
	failures := 0
	r.before = func(ctx context.Context, batch []kafka.Message) (int, error) {
		switch {
		case !away.Load():
			return refuse(ctx, batch)
		case string(batch[0].Key) == well.ID:
			requeue(t, pool, poison)
			return len(batch), nil
		}
		if failures++; failures > 1 {
			told <- stats(t, pool)
		}
		return 0, errors.New("the broker is away")
	}
	c := remembering(s, pool, r)
	c.PollInterval = time.Millisecond
	start(t, c)
	pgtest.Eventually(t, "the lane is parked", func() bool { return waiting(t, pool).Rows == 1 })
	commit(t, s, well, 1, 0)
	pgtest.Eventually(t, "the other one flows, and that is written", func() bool { return checkpoint(t, pool) == 2 })
	away.Store(true)
	commit(t, s, well, 2, 0)
	if got := <-told; got.LastError != "the broker is away" || got.Retries != 1 {
		t.Errorf("after the first failure: %+v", got)
	}
}
