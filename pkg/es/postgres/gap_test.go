package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/subscription"
)

// Commits are delayed at random while subscribers follow: 100,000 events, none missed, none twice, order kept.
//
// Writers of two stores append groups of random sizes. Transactions take their number before they wait for the log, so that they commit
// in another order than they began; some sleep with the log locked, before or after their positions are taken; some are rolled back
// at the end. Two subscribers read along, one of which stops and resumes. Beside them instances share a subscription of several
// partitions, and stop or die, before, after and while what they do is committed.
func TestNoEventIsMissed(t *testing.T) {
	total := int64(100_000)
	if testing.Short() {
		total = 10_000
	}
	g := newGap(t, total)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var following, writing sync.WaitGroup
	following.Go(func() { g.follow(ctx, false) })
	following.Go(func() { g.follow(ctx, true) })
	handling, stop := context.WithCancel(ctx)
	defer stop()
	var instances sync.WaitGroup
	for range 3 {
		instances.Go(func() { g.live(handling) })
	}
	const writers = 8
	for w := range writers {
		writing.Go(func() { g.write(ctx, g.stores[w%2], total/writers) })
	}
	writing.Wait()
	following.Wait()
	g.awaitCheckpoints(ctx)
	stop()
	instances.Wait()
	if !t.Failed() {
		g.check()
	}
	t.Logf("%d events: %d groups, %d of them rolled back; %d transactions committed behind one that began later; %d instances stopped, %d died",
		total, g.groups.Load(), g.refused.Load(), g.overtaken(), g.stopped.Load(), g.died.Load())
}

const partitions = 5

// gap is the test's books.
type gap struct {
	t       *testing.T
	pool    *pgxpool.Pool
	stores  [2]*postgres.Store
	total   int64
	groups  atomic.Int64
	refused atomic.Int64 // groups of which items were rolled back
	stopped atomic.Int64 // instances that gave back what they had
	died    atomic.Int64
}

// one says yes once in n times.
func one(n int) bool { return rand.IntN(n) == 0 }

var errRefused = errors.New("refused at the end")

func newGap(t *testing.T, total int64) *gap {
	_, pool := open(t)
	exec(t, pool, `CREATE TABLE effect (n bigserial PRIMARY KEY, position bigint, stream_id text COLLATE "C", version bigint)`)
	g := &gap{t: t, pool: pool, total: total}
	inline := func(b *pgx.Batch, _ []es.Event) error {
		switch {
		case one(8): // with the positions taken
			b.Queue(`SELECT pg_sleep(random() * 0.01)`)
		case one(30):
			b.Queue(`SELECT es_require(false)`)
		}
		return nil
	}
	for i := range g.stores {
		c := pool.Config()
		c.MaxConns = 8
		c.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
			if !one(3) {
				return true, nil
			}
			_, err := conn.Exec(ctx, `BEGIN; SELECT pg_current_xact_id(), pg_sleep(random() * 0.02)`) // the append goes on with it
			return err == nil, err
		}
		own, err := pgxpool.NewWithConfig(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(own.Close)
		g.stores[i] = postgres.New(own, postgres.Options{Inline: inline})
	}
	return g
}

// write appends so many events to streams of its own, in groups of up to 100. What was rolled back it appends again.
func (g *gap) write(ctx context.Context, s *postgres.Store, events int64) {
	var streams [40]es.Stream
	for i := range streams {
		streams[i] = stream(uuid.NewString())
	}
	versions := map[es.Stream]int64{}
	for events > 0 {
		var items [][]es.Append
		next, left := map[es.Stream]int64{}, min(events, 1+rand.Int64N(100))
		for left > 0 {
			st, n := streams[rand.IntN(len(streams))], min(left, 1+rand.Int64N(8))
			items = append(items, []es.Append{after(st, versions[st]+next[st], int(n))})
			next[st] += n
			left -= n
		}
		var errs []error
		if one(4) {
			errs = s.AppendWith(ctx, items, late())
		} else {
			errs = s.AppendBatch(ctx, items)
		}
		g.groups.Add(1)
		for i, err := range errs {
			var unavailable *es.UnavailableError
			switch {
			case err == nil:
				versions[items[i][0].Stream] += int64(len(items[i][0].Events))
				events -= int64(len(items[i][0].Events))
			case errors.As(err, &unavailable): // its outcome is not known, and nothing here breaks
				g.t.Error(err)
				return
			}
		}
		if errors.Join(errs...) != nil {
			g.refused.Add(1)
		}
	}
}

// late is a part of a transaction that takes its time with the log locked, and may refuse it at the end.
func late() postgres.With {
	return postgres.With{
		Read: func(b *pgx.Batch) { b.Queue(`SELECT pg_sleep(random() * 0.005)`) },
		Write: func(*pgx.Batch, []int, func(int, error)) error {
			if one(8) {
				return errRefused
			}
			return nil
		},
	}
}

// follow reads everything. If it resumes it stops now and then, and goes on behind what it has seen.
func (g *gap) follow(ctx context.Context, resumes bool) {
	var last int64
	versions := map[es.Stream]int64{}
	for last < g.total && ctx.Err() == nil {
		o := es.SubscribeOptions{Wake: g.stores[0].Committed(), BatchMax: 1 + rand.IntN(700)}
		for events, err := range es.Subscribe(ctx, g.stores[1], "", last, o) {
			for _, e := range events {
				if e.Position != last+1 || e.Version != versions[e.Stream]+1 {
					err = fmt.Errorf("position %d, version %d of %s follow %d, %d", e.Position, e.Version, e.Stream, last, versions[e.Stream])
					break
				}
				last, versions[e.Stream] = e.Position, e.Version
			}
			if err != nil {
				g.t.Errorf("a subscriber: %v", err)
				return
			}
			if last >= g.total || resumes && one(20) {
				break
			}
		}
	}
	if last != g.total {
		g.t.Errorf("a subscriber has seen %d events, want %d", last, g.total)
	}
}

// live runs instances of the subscription, one after the other, until ctx ends. Each ends after some batches.
func (g *gap) live(ctx context.Context) {
	for ctx.Err() == nil {
		alive, end := context.WithCancel(ctx)
		pool, cut := pgtest.Severed(g.t, g.pool)
		g.instance(alive, end, pool, cut, 1+rand.Int64N(60))
		end()
		pool.Close()
	}
}

// instance is one that ends with its n-th batch.
func (g *gap) instance(ctx context.Context, end func(), pool *pgxpool.Pool, cut func(), n int64) {
	var batches atomic.Int64
	die := func() {
		g.died.Add(1)
		cut()
		end()
	}
	s, err := subscription.New(subscription.Config{
		Name: "effects", Partitions: partitions, Pool: pool, LeaseTTL: 300 * time.Millisecond, RetryMax: 50 * time.Millisecond, BatchMax: 2000,
		OnError: func(err error, _ time.Duration) {
			if ctx.Err() == nil && batches.Load() < n {
				g.t.Logf("an instance: %v", err)
			}
		},
		Handle: func(ctx context.Context, tx pgx.Tx, events []es.Event) error {
			last, how := batches.Add(1) == n, rand.IntN(4)
			if last && how == 0 {
				die() // before it has begun
			}
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"effect"}, []string{"position", "stream_id", "version"}, pgx.CopyFromSlice(len(events), func(i int) ([]any, error) {
				return []any{events[i].Position, events[i].Stream.ID, events[i].Version}, nil
			}))
			switch {
			case last && how == 1:
				die() // before the commit
			case last && how == 2:
				go die() // some time in the commit
			case last && how == 3:
				g.stopped.Add(1)
				end()
			}
			return err
		},
	})
	if err == nil {
		err = s.Run(ctx)
	}
	if err != nil {
		g.t.Error(err)
	}
}

// awaitCheckpoints waits until every partition's is at the end.
func (g *gap) awaitCheckpoints(ctx context.Context) {
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for !g.t.Failed() {
		n := number(g.t, g.pool, `SELECT count(*) FROM subscription_partition WHERE position = $1`, g.total)
		if n == partitions {
			return
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			g.t.Errorf("%d checkpoints are at the end, want %d", n, partitions)
		}
	}
}

// check holds the books against each other.
func (g *gap) check() {
	for what, sql := range map[string]string{
		"the log's end":     `SELECT es_end()`,
		"the last position": `SELECT max(position) FROM es_event`,
		"events":            `SELECT count(*) FROM es_event`,
		"effects":           `SELECT count(*) FROM effect`,
		"events with one effect, which is theirs": `SELECT count(*) FROM es_event e JOIN effect f USING (position, stream_id, version)`,
		"effects in the order of their stream":    `SELECT count(*) FROM (SELECT version, row_number() OVER (PARTITION BY stream_id ORDER BY n) AS nth FROM effect) o WHERE version = nth`,
	} {
		if n := number(g.t, g.pool, sql); n != g.total {
			g.t.Errorf("%s: %d, want %d", what, n, g.total)
		}
	}
	for what, n := range map[string]int64{
		"groups that were rolled back":                            g.refused.Load(),
		"transactions that committed behind one that began later": g.overtaken(),
		"instances that died":                                     g.died.Load(),
	} {
		if n == 0 {
			g.t.Errorf("there are no %s", what)
		}
	}
}

// overtaken is how many transactions committed right behind one that had taken its number later.
func (g *gap) overtaken() int64 {
	return number(g.t, g.pool, `SELECT count(*) FROM (SELECT xmin::text::bigint AS x, lag(xmin::text::bigint) OVER (ORDER BY position) AS before FROM es_event) e WHERE x < before`)
}
