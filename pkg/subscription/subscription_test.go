package subscription

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/pgtest"
)

func TestNewNamesTheField(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"Name must be set":                        func(c *Config) { c.Name = "" },
		"Partitions must be 1 to 256, and is 0":   func(c *Config) { c.Partitions = 0 },
		"Partitions must be 1 to 256, and is 257": func(c *Config) { c.Partitions = 257 },
		"Pool must be set":                        func(c *Config) { c.Pool = nil },
		"Handle must be set":                      func(c *Config) { c.Handle = nil },
		"After must be at least 0, and is -1":     func(c *Config) { c.After = -1 },
		"":                                        func(*Config) {},
	} {
		c := Config{Name: "n", Partitions: 1, Pool: &pgxpool.Pool{}, Handle: effects}
		change(&c)
		if _, err := New(c); want == "" && err != nil || want != "" && (err == nil || !strings.HasSuffix(err.Error(), want)) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// The hash is for ever: another one would hand a stream to another partition.
func TestPartitionIsFixed(t *testing.T) {
	for id, want := range map[string]int{"": 5, "a": 4, "7f3c": 6, "Zürich": 0} {
		if got := Partition(es.Stream{Type: "Test", ID: id}, 8); got != want {
			t.Errorf("%q: %d, want %d", id, got, want)
		}
	}
}

func TestSharesAreEven(t *testing.T) {
	for p := 1; p < 20; p++ {
		for n := 1; n < 25; n++ {
			sum := 0
			for rank := range n {
				s := share(p, n, rank)
				if s < p/n || s > (p+n-1)/n {
					t.Errorf("%d of %d partitions for number %d of %d", s, p, rank, n)
				}
				sum += s
			}
			if sum != p {
				t.Errorf("%d instances share %d of %d partitions", n, sum, p)
			}
		}
	}
}

func TestEveryEventIsHandledOnce(t *testing.T) {
	s, pool := open(t)
	happen(t, s, 30, 5) // before it is there
	c := config(t, pool)
	c.BatchMax = 7
	begin(t, c)
	awaitEffects(t, pool, 150)
	happen(t, s, 30, 5) // while it follows
	awaitEffects(t, pool, 300)
}

// A subscription begins where it is told to, of the type it is told, and goes on where it was.
func TestASubscriptionBeginsAndGoesOn(t *testing.T) {
	s, pool := open(t)
	happen(t, s, 10, 1)
	c := config(t, pool)
	c.After = 6
	stop := begin(t, c)
	count := func(want int64) {
		t.Helper()
		pgtest.Eventually(t, "the events are handled", func() bool { return number(t, pool, `SELECT count(*) FROM effect`) >= want })
		stop()
		if n := number(t, pool, `SELECT count(*) FROM effect WHERE position > 6`); n != want {
			t.Errorf("%d effects, want %d", n, want)
		}
		if n := number(t, pool, `SELECT count(*) FROM effect`); n != want {
			t.Errorf("%d effects in all, want %d", n, want)
		}
	}
	count(4)
	happen(t, s, 3, 1)
	c.After = 0 // is of no account any more
	stop = begin(t, c)
	count(7)
	c.Name, c.AggregateType = "of another type", "Other"
	stop = begin(t, c)
	if err := s.Append(t.Context(), es.Append{Stream: es.Stream{Type: "Other", ID: "x"}, Events: []es.Event{
		{ID: "00000000-0000-4000-8000-000000000001", Type: "Happened", Stream: es.Stream{Type: "Other", ID: "x"}, Version: 1, Data: []byte(`{}`)},
	}}); err != nil {
		t.Fatal(err)
	}
	count(8)
}

// A partition that nothing is in moves on too, with the leases. An instance that stops leaves no lease behind.
func TestCheckpointsFollowWhereNothingHappens(t *testing.T) {
	s, pool := open(t)
	happen(t, s, 1, 20)
	c := config(t, pool)
	c.LeaseTTL = time.Second
	stop := begin(t, c)
	pgtest.Eventually(t, "all checkpoints are at the end", func() bool {
		return number(t, pool, `SELECT count(*) FROM subscription_partition WHERE position = 20`) == 4
	})
	stop()
	c.Name, c.LeaseTTL = "another", time.Hour
	stop = begin(t, c)
	pgtest.Eventually(t, "the events are handled again", func() bool { return number(t, pool, `SELECT count(*) FROM effect`) == 40 })
	stop()
	if n := number(t, pool, `SELECT count(*) FROM subscription_partition WHERE name = 'another' AND (owner <> '' OR leased_until > 'epoch')`); n != 0 {
		t.Errorf("%d partitions are not given back", n)
	}
	if n := number(t, pool, `SELECT count(*) FROM subscription_instance`); n != 0 {
		t.Errorf("%d instances are left behind", n)
	}
}

// The number of partitions is what it was at first.
func TestAnotherNumberOfPartitionsIsAnError(t *testing.T) {
	_, pool := open(t)
	c := config(t, pool)
	newTable(t, pool, "a", time.Hour) // has 2
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var p *PartitionsError
	if err := mustNew(t, c).Run(ctx); !errors.As(err, &p) || p.Recorded != 2 || p.Requested != 4 || !strings.Contains(err.Error(), `"test": Partitions must stay 2`) {
		t.Errorf("%v", err)
	}
}

func TestMissingTablesAreAnError(t *testing.T) {
	c := config(t, pgtest.Pool(t))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := mustNew(t, c).Run(ctx); err == nil || !strings.Contains(err.Error(), `create subscription "test"`) {
		t.Errorf("%v", err)
	}
}

// A handler that fails, or panics, after it has written is called again with the same events, and leaves nothing behind.
func TestAHandlerThatFailsIsCalledAgain(t *testing.T) {
	s, pool := open(t)
	c := config(t, pool)
	c.Partitions = 1
	var calls, reported atomic.Int64
	c.Handle = func(ctx context.Context, tx pgx.Tx, events []es.Event) error {
		if err := effects(ctx, tx, events); err != nil {
			return err
		}
		switch calls.Add(1) {
		case 1:
			return errors.New("not today")
		case 2:
			panic("oh")
		case 3:
			_, err := tx.Exec(ctx, `SELECT 1/0`)
			return err
		case 4:
			_, _ = tx.Exec(ctx, `SELECT 1/0`) // and says nothing of it: the commit fails
		case 5:
			_, _ = tx.Exec(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`)
		}
		return nil
	}
	c.OnError = func(err error, again time.Duration) {
		if !strings.Contains(err.Error(), `subscription "test": partition 0: `) || again <= 0 {
			t.Errorf("%v, again in %s", err, again)
		}
		reported.Add(1)
	}
	happen(t, s, 5, 3)
	begin(t, c)
	awaitEffects(t, pool, 15)
	if n := reported.Load(); n != 5 {
		t.Errorf("%d errors, want 5", n)
	}
}

// owners is how many partitions each instance has.
func owners(t *testing.T, pool *pgxpool.Pool) []int {
	t.Helper()
	rows, err := pool.Query(t.Context(), `SELECT owner FROM subscription_partition WHERE owner <> ''`)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]int{}
	for _, o := range all {
		by[o]++
	}
	return slices.Sorted(maps.Values(by))
}

// Instances that come, go and die share the partitions evenly, and events are handled all the while.
func TestInstancesShareThePartitions(t *testing.T) {
	s, pool := open(t)
	c := config(t, pool)
	c.Partitions, c.LeaseTTL = 7, 300*time.Millisecond
	c.OnError = func(error, time.Duration) {} // one of them is cut off
	want := func(shares ...int) {
		t.Helper()
		pgtest.Eventually(t, fmt.Sprintf("the partitions are shared as %v", shares), func() bool { return slices.Equal(owners(t, pool), shares) })
		n := number(t, pool, `SELECT count(*) FROM es_event`)
		happen(t, s, 10, 2)
		awaitEffects(t, pool, n+20)
	}
	stop := begin(t, c)
	want(7)
	begin(t, c)
	want(3, 4)
	dead := c
	var cut func()
	dead.Pool, cut = pgtest.Severed(t, pool)
	begin(t, dead)
	want(2, 2, 3)
	cut()
	want(3, 4)
	stop()
	want(7)
	for range 8 {
		begin(t, c)
	}
	want(1, 1, 1, 1, 1, 1, 1)
}
