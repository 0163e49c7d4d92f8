package subscription

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/pgtest"
)

func newTable(t *testing.T, pool *pgxpool.Pool, owner string, ttl time.Duration) table {
	t.Helper()
	tb := table{pool: pool, name: "test", owner: owner, ttl: ttl}
	if err := tb.create(t.Context(), 2, 0); err != nil {
		t.Fatal(err)
	}
	return tb
}

func balance(t *testing.T, tb table, held ...lease) []lease {
	t.Helper()
	leases, _, err := tb.balance(t.Context(), held, nil)
	if err != nil {
		t.Fatal(err)
	}
	return leases
}

func TestALeaseIsHeldByOne(t *testing.T) {
	_, pool := open(t)
	a, b := newTable(t, pool, "a", time.Hour), newTable(t, pool, "b", time.Hour)
	if got := balance(t, a); !slices.Equal(got, []lease{{0, 1, 0}, {1, 1, 0}}) {
		t.Fatalf("free partitions: %v", got)
	}
	if got := balance(t, b); len(got) != 0 {
		t.Errorf("b took %v, which a holds", got)
	}
	held := []lease{{0, 1, 5}, {1, 1, 7}}
	if got := balance(t, a, held...); !slices.Equal(got, held) {
		t.Errorf("renewed: %v, want %v", got, held)
	}
	if err := a.release(t.Context(), lease{1, 1, 9}); err != nil {
		t.Fatal(err)
	}
	if got := balance(t, b); !slices.Equal(got, []lease{{1, 2, 9}}) {
		t.Errorf("a released partition: %v", got)
	}
}

// A lease that a clock an hour ahead has written keeps nobody out, and its instance does not count.
func TestALeaseOfAWrongClockIsVoid(t *testing.T) {
	_, pool := open(t)
	a, b := newTable(t, pool, "a", time.Minute), newTable(t, pool, "b", time.Minute)
	late := balance(t, a)[0]
	exec(t, pool, `UPDATE subscription_partition SET leased_until = clock_timestamp() + interval '1 hour'`)
	exec(t, pool, `UPDATE subscription_instance SET leased_until = clock_timestamp() + interval '1 hour'`)
	if got := balance(t, b); !slices.Equal(got, []lease{{0, 2, 0}, {1, 2, 0}}) {
		t.Fatalf("b has %v", got)
	}
	if err := a.commit(t.Context(), late, 1, func(pgx.Tx) error { return nil }); !errors.Is(err, errMoved) {
		t.Errorf("an effect under a void lease: %v", err)
	}
}

// Who has lost a lease can change nothing: neither effects nor the checkpoint nor the other's lease.
func TestALostLeaseIsFenced(t *testing.T) {
	s, pool := open(t)
	happen(t, s, 1, 10)
	a, b := newTable(t, pool, "a", ended), newTable(t, pool, "b", time.Hour)
	late := balance(t, a)[0]
	write := func(tb table, l lease, to int64) error {
		return tb.commit(t.Context(), l, to, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), `INSERT INTO effect (position) VALUES ($1)`, to)
			return err
		})
	}
	if err := write(a, late, 2); err != nil {
		t.Fatalf("a lease that has ended, and that nobody took: %v", err)
	}
	late.position = 2
	taken := balance(t, b)[0]
	if taken != (lease{0, 2, 2}) {
		t.Fatalf("an ended lease: %v", taken)
	}
	if err := write(a, late, 3); !errors.Is(err, errMoved) {
		t.Errorf("an effect under a lost lease: %v", err)
	}
	if err := write(b, lease{0, 1, 2}, 3); !errors.Is(err, errMoved) {
		t.Errorf("an effect under an epoch that is over: %v", err)
	}
	if err := write(b, lease{0, 2, 1}, 3); !errors.Is(err, errMoved) {
		t.Errorf("an effect behind the checkpoint: %v", err)
	}
	if err := a.release(t.Context(), lease{0, 1, 9}); err != nil {
		t.Errorf("release: %v", err)
	}
	if _, lost, err := a.checkpoint(t.Context(), late); !lost || err != nil {
		t.Errorf("a's lease is not lost (%v)", err)
	}
	if got := balance(t, b, lease{0, 1, 9}); !slices.Equal(got, []lease{{0, 2, 2}, {1, 2, 0}}) {
		t.Errorf("b has %v", got)
	}
	if n := number(t, pool, `SELECT count(*) FROM effect`); n != 1 {
		t.Errorf("%d effects, want 1", n)
	}
}

// A transaction under way keeps its partition, however long the lease has been over: another instance takes what is left.
func TestWhatIsBeingHandledIsNotTaken(t *testing.T) {
	_, pool := open(t)
	a, b := newTable(t, pool, "a", ended), newTable(t, pool, "b", time.Hour)
	a.ttl = ended
	balance(t, a)
	a.ttl = time.Hour // of the transaction
	err := a.commit(t.Context(), lease{1, 1, 0}, 4, func(pgx.Tx) error {
		exec(t, pool, `DELETE FROM subscription_instance`)
		if got := balance(t, b); !slices.Equal(got, []lease{{0, 2, 0}}) {
			t.Errorf("b took %v", got)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// An instance that stops in the middle of a transaction, and says nothing any more, does not keep its partition for ever. When it
// goes on, it has lost it.
func TestAnInstanceThatIsPausedIsFenced(t *testing.T) {
	s, pool := open(t)
	happen(t, s, 3, 3)
	c := config(t, pool)
	c.Partitions, c.LeaseTTL = 1, 200*time.Millisecond
	c.OnError = func(error, time.Duration) {} // its connection is lost
	paused, goOn := make(chan struct{}), make(chan struct{})
	first := c
	first.Handle = func(ctx context.Context, tx pgx.Tx, events []es.Event) error {
		if err := effects(ctx, tx, events); err != nil {
			return err
		}
		close(paused)
		<-goOn
		return nil
	}
	r := newRun(mustNew(t, first).config)
	if err := r.table.create(t.Context(), 1, 0); err != nil {
		t.Fatal(err)
	}
	if err := r.balance(t.Context()); err != nil { // once: its heart does not beat
		t.Fatal(err)
	}
	r.tail.advance(9)
	<-paused
	begin(t, c)
	awaitEffects(t, pool, 9)
	close(goOn)
	pgtest.Eventually(t, "the first has noticed", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.workers) == 0
	})
	checkEffects(t, pool)
}

func mustNew(t *testing.T, c Config) *Subscription {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
