package outbox

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/pgtest"
)

const ended = time.Nanosecond // a lease that has ended when the next statement looks

func acquire(t *testing.T, tb table, owner string, ttl time.Duration) (lease, bool) {
	t.Helper()
	l, ok, err := tb.acquire(t.Context(), owner, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return l, ok
}

func TestALeaseIsHeldByOne(t *testing.T) {
	_, pool := open(t)
	tb := table{pool}
	a, ok := acquire(t, tb, "a", time.Hour)
	if !ok || a.position != 0 {
		t.Fatalf("a free lease: %+v, %v", a, ok)
	}
	if _, ok := acquire(t, tb, "b", time.Hour); ok {
		t.Error("b took a lease that a holds")
	}
	if again, ok := acquire(t, tb, "a", time.Hour); !ok || again.epoch != a.epoch {
		t.Errorf("renewed: %+v, %v; want epoch %d", again, ok, a.epoch)
	}
	if err := tb.release(t.Context(), a.epoch, "a"); err != nil {
		t.Fatal(err)
	}
	b, ok := acquire(t, tb, "b", time.Hour)
	if !ok || b.epoch <= a.epoch {
		t.Errorf("a released lease: %+v, %v; want an epoch above %d", b, ok, a.epoch)
	}
}

// Who has lost the lease can change nothing: neither the checkpoint nor the stats nor the other's lease.
func TestALostLeaseIsFenced(t *testing.T) {
	s, pool := open(t)
	happen(t, s, 10)
	tb := table{pool}
	a, _ := acquire(t, tb, "a", ended)
	if err := tb.advance(t.Context(), lease{epoch: a.epoch, position: 2, incarnation: 1}, 1, nil, "a", ended); err != nil {
		t.Fatalf("a lease that has ended, and that nobody took: %v", err)
	}
	b, ok := acquire(t, tb, "b", time.Hour)
	if !ok || b.position != 2 {
		t.Fatalf("an ended lease: %+v, %v", b, ok)
	}
	for _, position := range []int64{5, 3} { // it never goes back
		if err := tb.advance(t.Context(), lease{epoch: b.epoch, position: position, incarnation: 1}, 1, nil, "b", time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	_, late := tb.failed(t.Context(), a.epoch, 3, 7, errors.New("late"))
	for what, err := range map[string]error{
		"advance":                         tb.advance(t.Context(), lease{epoch: a.epoch, position: 9, incarnation: 1}, 1, nil, "a", time.Hour),
		"advance under the other's epoch": tb.advance(t.Context(), lease{epoch: b.epoch, position: 9, incarnation: 1}, 1, nil, "a", time.Hour),
		"failed":                          late,
	} {
		if !errors.Is(err, ErrFenced) {
			t.Errorf("%s: %v, want %v", what, err, ErrFenced)
		}
	}
	if err := tb.release(t.Context(), a.epoch, "a"); err != nil {
		t.Errorf("release: %v", err)
	}
	if _, ok := acquire(t, tb, "c", time.Hour); ok {
		t.Error("a's release ended b's lease")
	}
	if p, st := checkpoint(t, pool), stats(t, pool); p != 5 || st.LastError != "" || st.Retries != 0 {
		t.Errorf("checkpoint %d, stats %+v", p, st)
	}
}

func TestASecondRelayStandsByUntilTheFirstStops(t *testing.T) {
	s, pool := open(t)
	a, b := &recorder{}, &recorder{}
	stop := start(t, Config{Pool: pool, Publisher: a, LeaseTTL: time.Hour})
	first := happen(t, s, 1)
	pgtest.Eventually(t, "a works", func() bool { return len(a.published()) == 1 })
	start(t, Config{Pool: pool, Publisher: b, LeaseTTL: time.Hour})
	for range 5 {
		first = append(first, happen(t, s, 2)...)
		pgtest.Eventually(t, "a goes on", func() bool { return checkpoint(t, pool) == int64(len(first)) })
	}
	stop() // hands over at once: the lease has another hour
	second := happen(t, s, 3)
	pgtest.Eventually(t, "b takes over", func() bool { return len(b.published()) == 3 })
	if !slices.Equal(a.published(), first) || !slices.Equal(b.published(), second) {
		t.Errorf("a published %d of %d, b %d of %d", len(a.published()), len(first), len(b.published()), len(second))
	}
}

// A relay falls silent in the middle of a publish. Another one takes over when the lease has ended, and what the first one says
// later is not heard.
func TestASecondRelayTakesOverFromASilentOne(t *testing.T) {
	s, pool := open(t)
	silent, wake := make(chan struct{}), make(chan struct{})
	a, b := &recorder{}, &recorder{}
	a.before = func(ctx context.Context, _ []kafka.Message) (int, error) {
		select {
		case <-silent:
		default:
			close(silent)
			select {
			case <-wake:
			case <-ctx.Done():
			}
		}
		return 2, nil
	}
	stop := start(t, Config{Pool: pool, Publisher: a, LeaseTTL: 100 * time.Millisecond})
	ids := happen(t, s, 5)
	<-silent
	start(t, Config{Pool: pool, Publisher: b, LeaseTTL: time.Hour})
	pgtest.Eventually(t, "b takes over", func() bool { return checkpoint(t, pool) == 5 })
	close(wake)
	pgtest.Eventually(t, "a is heard of again", func() bool { return len(a.published()) == 2 })
	ids = append(ids, happen(t, s, 5)...)
	pgtest.Eventually(t, "b goes on", func() bool { return checkpoint(t, pool) == 10 })
	stop()
	if p := checkpoint(t, pool); p != 10 || !slices.Equal(b.published(), ids) || len(a.published()) != 2 {
		t.Errorf("checkpoint %d, a published %d, b %d of %d", p, len(a.published()), len(b.published()), len(ids))
	}
}

// watch makes a pool on the same database, and a channel that has a value after each look for events to publish.
func watch(t *testing.T, pool *pgxpool.Pool) (*pgxpool.Pool, <-chan struct{}) {
	t.Helper()
	looked := make(looks, 100)
	cfg := pool.Config().Copy()
	cfg.ConnConfig.Tracer = looked
	watched, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watched.Close)
	return watched, looked
}

// looks is a tracer of queries for events.
type looks chan struct{}

type sqlKey struct{}

func (looks) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, sqlKey{}, q.SQL)
}

func (l looks) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if sql, _ := ctx.Value(sqlKey{}).(string); strings.Contains(sql, "FROM es_event e WHERE position >") {
		l <- struct{}{}
	}
}

// A relay that slept while another one came and went begins where that one ended.
func TestARelayThatSleptBeginsAtTheCheckpoint(t *testing.T) {
	s, pool := open(t)
	wake := make(chan struct{})
	r := &recorder{}
	first := happen(t, s, 5)
	watched, looked := watch(t, pool)
	start(t, Config{Pool: watched, Publisher: r, Committed: wake, PollInterval: time.Hour, LeaseTTL: ended})
	<-looked // finds the first 5
	<-looked // finds no more, and sleeps
	happen(t, s, 5)
	tb := table{pool}
	other, ok := acquire(t, tb, "other", time.Hour)
	if !ok {
		t.Fatal("the lease has not ended")
	}
	if err := errors.Join(tb.advance(t.Context(), lease{epoch: other.epoch, position: 10, incarnation: 1}, 1, nil, "other", time.Hour), tb.release(t.Context(), other.epoch, "other")); err != nil {
		t.Fatal(err)
	}
	last := happen(t, s, 1)
	wake <- struct{}{}
	pgtest.Eventually(t, "it works again", func() bool { return checkpoint(t, pool) == 11 })
	if got := r.published(); !slices.Equal(got, append(first, last...)) {
		t.Errorf("published %d events, want the first 5 and the last one", len(got))
	}
}

// A lease that ends later than its length from now was written by a clock that was ahead. It does not keep other relays away.
func TestALeaseOfAWrongClockIsVoid(t *testing.T) {
	_, pool := open(t)
	tb := table{pool}
	if _, ok := acquire(t, tb, "a", 5*time.Second); !ok {
		t.Fatal("a free lease")
	}
	if _, ok := acquire(t, tb, "b", 5*time.Second); ok {
		t.Error("b took a lease that a holds")
	}
	exec(t, pool, `UPDATE outbox_relay SET leased_until = clock_timestamp() + interval '1 hour'`)
	if _, ok := acquire(t, tb, "b", 5*time.Second); !ok {
		t.Error("a lease of five seconds that ends in an hour keeps b away")
	}
}

// A relay that knows positions of a history that the database does not have any more moves no checkpoint by them, and begins where
// the database's own checkpoint is. What it had published beyond is noted as lost.
func TestARelayBeginsAnewInAnotherHistory(t *testing.T) {
	s, pool := open(t)
	r := &recorder{}
	start(t, Config{Pool: pool, Publisher: r, LeaseTTL: 100 * time.Millisecond})
	lost := happen(t, s, 5)
	pgtest.Eventually(t, "all is published", func() bool { return checkpoint(t, pool) == 5 })
	// The standby that is promoted lacks positions 3 to 5.
	exec(t, pool, `WITH gone AS (DELETE FROM es_event WHERE position > 2), heads AS (UPDATE es_head SET version = 2),
		old AS (UPDATE es_incarnation SET identity = 'the old primary'), batches AS (DELETE FROM outbox_batch)
		UPDATE outbox_relay SET position = 2`)
	present := espg.New(pool, espg.Options{})
	kept := happen(t, present, 2) // at positions 3 and 4
	pgtest.Eventually(t, "what the present history has is published", func() bool {
		return slices.Equal(r.published(), append(slices.Clone(lost), kept...)) && checkpoint(t, pool) == 4
	})
	gone, err := present.Unrecovered(t.Context())
	if err != nil || len(gone) != 1 || gone[0].FromPosition != 2 || gone[0].KnownTo != 5 {
		t.Errorf("lost: %+v (%v), want positions 3 to 5", gone, err)
	}
}
