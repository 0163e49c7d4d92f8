package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
	"example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/pgtest"
)

// migrated is a database with the store's tables, and one that is inline.
func migrated(t *testing.T) *pgxpool.Pool {
	t.Helper()
	_, pool := open(t)
	exec(t, pool, `CREATE TABLE counted (n bigint NOT NULL); INSERT INTO counted VALUES (0)`)
	return pool
}

// counting is a store whose inline table counts the events.
func counting(pool *pgxpool.Pool) *postgres.Store {
	return postgres.New(pool, postgres.Options{Inline: func(b *pgx.Batch, events []es.Event) error {
		b.Queue(`UPDATE counted SET n = n + $1`, len(events))
		return nil
	}})
}

func replica(pool *pgxpool.Pool, from es.Store, name string, published bool) *postgres.Replica {
	return postgres.NewReplica(postgres.ReplicaConfig{To: counting(pool), From: from, Name: name, Published: published, Log: slog.New(slog.DiscardHandler)})
}

// happened appends n events to a stream.
func happened(ctx context.Context, s es.Store, st es.Stream, after int64, n int) error {
	a := es.Append{Stream: st, Expected: after}
	for i := range n {
		a.Events = append(a.Events, es.Event{
			ID: uuid.NewString(), Type: "Happened", Stream: st, Version: after + int64(i) + 1, At: time.Now(), CorrelationID: "c <&>",
			Metadata: map[string]any{"tenantId": "Zoë", "b": 1.5}, Data: []byte(fmt.Sprintf(`{"n":%d}`, i)),
		})
	}
	return s.Append(ctx, a)
}

// all is all that a store has, as text.
func all(t *testing.T, s es.Store) string {
	t.Helper()
	text := ""
	for e, err := range s.ReadAll(t.Context(), "", es.From{}) {
		if err != nil {
			t.Fatal(err)
		}
		b, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintf("%d %s %s\n", e.Position, e.RecordedAt.Truncate(time.Microsecond), b)
	}
	return text
}

// Two processes copy what is written meanwhile: the database has it once, in its order, with what is inline.
func TestReplica(t *testing.T) {
	for _, published := range []bool{true, false} {
		t.Run(fmt.Sprintf("published=%t", published), func(t *testing.T) {
			pool, source := migrated(t), memory.New()
			ctx, cancel := context.WithCancel(t.Context())
			var running sync.WaitGroup
			defer running.Wait()
			defer cancel()
			var copies []*postgres.Replica
			for range 2 {
				r := replica(pool, source, "memory", published)
				if err := r.Begin(ctx); err != nil {
					t.Fatal(err)
				}
				copies = append(copies, r)
				running.Go(func() {
					if err := r.Run(ctx); err != nil {
						t.Error(err)
					}
				})
			}
			const streams, events = 20, 3000
			versions := map[es.Stream]int64{}
			for n := 0; n < events; {
				st := es.Stream{Type: "Test", ID: fmt.Sprint(rand.IntN(streams))}
				k := 1 + rand.IntN(7)
				if err := happened(ctx, source, st, versions[st], k); err != nil {
					t.Fatal(err)
				}
				versions[st] += int64(k)
				n += k
				if rand.IntN(10) == 0 {
					copies[rand.IntN(2)].Wake()
				}
			}
			for _, r := range copies {
				if err := errors.Join(r.Await(ctx), r.AwaitVersions(ctx, versions)); err != nil {
					t.Fatal(err)
				}
			}
			to := counting(pool)
			if got, want := all(t, to), all(t, source); got != want {
				t.Errorf("the database has\n%.2000s\nwant\n%.2000s", got, want)
			}
			end, err := source.End(ctx)
			if err != nil {
				t.Fatal(err)
			}
			var counted, relayed, outgoing int64
			if err := pool.QueryRow(ctx, `SELECT n, (SELECT position FROM outbox_relay), (SELECT coalesce(sum(events), 0) FROM outbox_batch) FROM counted`).Scan(&counted, &relayed, &outgoing); err != nil {
				t.Fatal(err)
			}
			wantRelayed := end
			if !published {
				wantRelayed = 0
			}
			if counted != end || relayed != wantRelayed || outgoing != end {
				t.Errorf("%d events: %d inline, the relay at %d, %d in the outbox; want %d", end, counted, relayed, outgoing, wantRelayed)
			}
			for st, v := range versions {
				if heads, err := to.Heads(ctx, []es.Stream{st}); err != nil || heads[0].Version != v {
					t.Errorf("%s is at %v (%v), want %d", st, heads, err, v)
				}
			}
		})
	}
}

// A database never follows a store that has another history, and is written to by nobody else while it follows.
func TestReplicaOfAnotherHistory(t *testing.T) {
	pool, one, other := migrated(t), memory.New(), memory.New()
	st := es.Stream{Type: "Test", ID: "a"}
	for _, s := range []es.Store{one, other} {
		if err := happened(t.Context(), s, st, 0, 3); err != nil {
			t.Fatal(err)
		}
	}
	if err := counting(pool).RefuseCopy(t.Context()); err != nil {
		t.Fatalf("a database of its own: %v", err)
	}
	r := replica(pool, one, "one", true)
	if err := r.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	if err := r.Await(t.Context()); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	var history *postgres.OtherHistoryError
	for name, s := range map[string]es.Store{"other": other, "empty": memory.New()} {
		if err := replica(pool, s, name, true).Begin(t.Context()); !errors.As(err, &history) || history.Position != 3 || history.Name != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := replica(pool, one, "one", true).Begin(t.Context()); err != nil {
		t.Errorf("the same store: %v", err)
	}
	var follows *postgres.FollowsError
	if err := counting(pool).RefuseCopy(t.Context()); !errors.As(err, &follows) || follows.Name != "one" {
		t.Errorf("a copy: %v", err)
	}
	for _, to := range []*postgres.Store{counting(pool), postgres.New(pool, postgres.Options{})} {
		if err := happened(t.Context(), to, st, 3, 1); err == nil {
			t.Error("appended to a copy")
		}
	}
	promote(t, pool, one)
	if err := happened(t.Context(), counting(pool), st, 3, 1); err != nil {
		t.Errorf("append to a copy that was promoted: %v", err)
	}
}

// What does not follow is refused, whole.
func TestImportOfWhatDoesNotFollow(t *testing.T) {
	pool, source := migrated(t), memory.New()
	st := es.Stream{Type: "Test", ID: "a"}
	if err := happened(t.Context(), source, st, 0, 5); err != nil {
		t.Fatal(err)
	}
	events, err := source.Load(t.Context(), st, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	to := counting(pool)
	if err := to.Import(t.Context(), events[:2], postgres.ImportOptions{Published: true}); err != nil {
		t.Fatal(err)
	}
	again := append([]es.Event{}, events[2:]...)
	again[0].ID = events[0].ID // stored already
	for what, batch := range map[string][]es.Event{"again": events[:2], "a gap": events[3:], "an id that is stored": again} {
		var notNext *postgres.NotNextError
		if err := to.Import(t.Context(), batch, postgres.ImportOptions{Published: true}); !errors.As(err, &notNext) || notNext.First != batch[0].Position {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := to.Import(t.Context(), []es.Event{events[2], events[4]}, postgres.ImportOptions{Published: true}); err == nil {
		t.Error("a gap within was imported")
	}
	if end, err := to.End(t.Context()); err != nil || end != 2 {
		t.Errorf("the end is %d (%v), want 2", end, err)
	}
	var n int
	if err := pool.QueryRow(t.Context(), `SELECT n FROM counted`).Scan(&n); err != nil || n != 2 {
		t.Errorf("%d inline (%v), want 2", n, err)
	}
}

// promote promotes a copy that ends at position 3. It is refused while a process leads and at another position. No process can lead afterwards.
func promote(t *testing.T, pool *pgxpool.Pool, followed es.Store) {
	t.Helper()
	ctx, leader := t.Context(), postgres.Leader{Holder: "a", Address: "a:1"}
	if _, err := postgres.Lead(ctx, pool, leader, time.Hour); err != nil {
		t.Fatal(err)
	}
	var served *postgres.ServedError
	for what, err := range map[string]error{"asked": counting(pool).RefuseServed(ctx), "promoted": counting(pool).Promote(ctx, 3, false)} {
		if !errors.As(err, &served) {
			t.Errorf("%s while a process leads: %v", what, err)
		}
	}
	if err := postgres.Resign(ctx, pool, leader); err != nil {
		t.Fatal(err)
	}
	if err := counting(pool).Promote(ctx, 2, false); err == nil {
		t.Error("promoted at a position that is not its end")
	}
	if err := errors.Join(counting(pool).Promote(ctx, 3, false), counting(pool).RefuseCopy(ctx)); err != nil {
		t.Errorf("a copy that was promoted: %v", err)
	}
	if now, err := postgres.Lead(ctx, pool, leader, time.Hour); err != nil || now.Holder == "a" {
		t.Errorf("%v leads a database that was promoted (%v)", now, err)
	}
	if err := replica(pool, followed, "one", true).Begin(ctx); !errors.Is(err, postgres.ErrPromoted) {
		t.Errorf("a promoted database follows: %v", err)
	}
}

// A lease that a clock an hour ahead has written does not keep the others out.
func TestALeaseOfAWrongClockIsVoid(t *testing.T) {
	pool := migrated(t)
	for _, who := range []string{"a", "b"} {
		now, err := postgres.Lead(t.Context(), pool, postgres.Leader{Holder: who}, time.Minute)
		if err != nil || now.Holder != who {
			t.Fatalf("%s asked, and %v leads (%v)", who, now, err)
		}
		if _, err := pool.Exec(t.Context(), `UPDATE es_leader SET leased_until = clock_timestamp() + interval '1 hour'`); err != nil {
			t.Fatal(err)
		}
	}
}

// One leads at a time: the next one when the first has resigned, or was not heard of for the time of a lease.
func TestLead(t *testing.T) {
	pool := migrated(t)
	lead := func(who string, ttl time.Duration) postgres.Leader {
		t.Helper()
		now, err := postgres.Lead(t.Context(), pool, postgres.Leader{Holder: who, Address: who + ":1"}, ttl)
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	for _, who := range []string{"a", "b", "a"} {
		if now := lead(who, time.Hour); now != (postgres.Leader{Holder: "a", Address: "a:1"}) {
			t.Fatalf("%s asked, and %v leads", who, now)
		}
	}
	if err := postgres.Resign(t.Context(), pool, postgres.Leader{Holder: "b"}); err != nil {
		t.Fatal(err)
	}
	if now := lead("b", time.Hour); now.Holder != "a" {
		t.Fatalf("another one resigned, and %v leads", now)
	}
	if err := postgres.Resign(t.Context(), pool, postgres.Leader{Holder: "a"}); err != nil {
		t.Fatal(err)
	}
	if now := lead("b", 0); now.Holder != "b" { // a lease that has ended at once
		t.Fatalf("the leader has resigned, and %v leads", now)
	}
	if now := lead("a", time.Hour); now.Holder != "a" {
		t.Fatalf("the leader's lease is over, and %v leads", now)
	}
	var n int
	var wg sync.WaitGroup
	var mu sync.Mutex
	if err := postgres.Resign(t.Context(), pool, postgres.Leader{Holder: "a"}); err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		wg.Go(func() {
			who := fmt.Sprint(i)
			now, err := postgres.Lead(t.Context(), pool, postgres.Leader{Holder: who}, time.Hour)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if now.Holder == who {
				n++
			}
		})
	}
	if wg.Wait(); n != 1 {
		t.Errorf("%d of 8 lead", n)
	}
}

// Events that something copied here which does not know the inline tables are brought into them when the service starts, each once; before that
// nothing can be appended, for it would be passed over.
func TestInlineTablesCatchUp(t *testing.T) {
	pool, source := migrated(t), memory.New()
	st := es.Stream{Type: "Test", ID: "a"}
	if err := happened(t.Context(), source, st, 0, 2500); err != nil { // more than a page
		t.Fatal(err)
	}
	events, err := source.Load(t.Context(), st, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	plain, s := postgres.New(pool, postgres.Options{}), counting(pool)
	if err := errors.Join(plain.Import(t.Context(), events[:2000], postgres.ImportOptions{Published: true}), plain.Import(t.Context(), events[2000:2400], postgres.ImportOptions{Published: true})); err != nil {
		t.Fatal(err)
	}
	if err := happened(t.Context(), s, st, 2400, 1); err == nil {
		t.Error("appended although the inline tables are behind")
	}
	var notNext *postgres.NotNextError
	if err := s.Import(t.Context(), events[2400:], postgres.ImportOptions{Published: true}); !errors.As(err, &notNext) {
		t.Errorf("imported although the inline tables are behind: %v", err)
	}
	for range 2 {
		if err := s.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.Import(t.Context(), events[2400:], postgres.ImportOptions{Published: true}), happened(t.Context(), s, st, 2500, 3)); err != nil {
		t.Error(err)
	}
	var n, inlined, end int64
	if err := pool.QueryRow(t.Context(), `SELECT n, es_end() - not_inlined, es_end() FROM counted, es_log`).Scan(&n, &inlined, &end); err != nil || n != 2503 || inlined != 2503 || end != 2503 {
		t.Errorf("%d inline up to position %d of %d (%v), want 2503", n, inlined, end, err)
	}
}

// losing is a store that loses what it had.
type losing struct {
	es.Store
	mu  sync.Mutex
	now es.Store
}

func (l *losing) store() es.Store {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

func (l *losing) End(ctx context.Context) (int64, error) { return l.store().End(ctx) }

func (l *losing) ReadAll(ctx context.Context, aggregateType string, from es.From) iter.Seq2[es.Event, error] {
	return l.store().ReadAll(ctx, aggregateType, from)
}

// A store that has lost events which the database has, such as a log on brokers that lost power, is not followed any further: whether it has ended
// earlier, or has gone on with others.
func TestReplicaOfAStoreThatLosesEvents(t *testing.T) {
	for _, others := range []int{0, 2, 5, 9} {
		pool, st := migrated(t), es.Stream{Type: "Test", ID: "a"}
		whole, rest := memory.New(), memory.New()
		if err := happened(t.Context(), whole, st, 0, 5); err != nil {
			t.Fatal(err)
		}
		if others > 0 {
			if err := happened(t.Context(), rest, st, 0, others); err != nil {
				t.Fatal(err)
			}
		}
		source := &losing{now: whole}
		r := replica(pool, source, "log", true)
		if err := r.Begin(t.Context()); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- r.Run(t.Context()) }()
		if err := r.Await(t.Context()); err != nil {
			t.Fatal(err)
		}
		source.mu.Lock()
		source.now = rest
		source.mu.Unlock()
		r.Wake()
		var history *postgres.OtherHistoryError
		select {
		case err := <-ended:
			if !errors.As(err, &history) || history.Position != 5 {
				t.Errorf("%d others: %v", others, err)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%d others: it is followed on", others)
		}
		if end, err := counting(pool).End(t.Context()); err != nil || end != 5 {
			t.Errorf("%d others: the copy ends at %d (%v)", others, end, err)
		}
	}
}

// A database that loses a part of its copy, as by a fail-over to a standby that lagged, gets it again, whether or not something new comes.
func TestACopyThatLostItsEndIsCopiedAgain(t *testing.T) {
	pool, source := migrated(t), memory.New()
	st := es.Stream{Type: "Test", ID: "a"}
	if err := happened(t.Context(), source, st, 0, 10); err != nil {
		t.Fatal(err)
	}
	r := replica(pool, source, "source", true)
	if err := r.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	if err := r.Await(t.Context()); err != nil {
		t.Fatal(err)
	}
	loseBehind(t, pool, 6)
	exec(t, pool, `UPDATE counted SET n = 6`)
	pgtest.Eventually(t, "the copy is whole again", func() bool {
		return number(t, pool, `SELECT es_end()`) == 10 && number(t, pool, `SELECT n FROM counted`) == 10
	})
	if got, want := all(t, postgres.New(pool, postgres.Options{})), all(t, source); got != want {
		t.Errorf("copied\n%s\nwant\n%s", got, want)
	}
}
