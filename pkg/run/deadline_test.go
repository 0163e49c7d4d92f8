package run_test

import (
	"context"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/nettest"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/run"
)

// limit is the deadline of the tests' statements, and ends within what a hung statement may take: the limit and some more, for
// a slow machine, but far less than the 15 s for which pgx says goodbye.
const (
	limit = time.Second
	ends  = 8 * time.Second
)

// through opens an app's pool whose connections go through a proxy.
func through(t *testing.T, limit time.Duration) (*pgxpool.Pool, *nettest.Proxy) {
	t.Helper()
	u, err := url.Parse(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	p := nettest.NewProxy(t, u.Host)
	u.Host = p.Addr()
	a := newApp(t.Context())
	t.Cleanup(func() { _ = a.Close() })
	pool, err := a.Postgres(run.Database{DSN: u.String(), Limit: limit})
	if err != nil {
		t.Fatal(err)
	}
	return pool, p
}

// within fails the test if f takes longer.
func within(t *testing.T, d time.Duration, what string, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(d):
		t.Fatalf("%s has not ended after %s", what, d)
		return nil
	}
}

// uses are the ways to use a pool. Each begins before the freeze and goes on behind it. None has a deadline of its own.
var uses = map[string]func(pool *pgxpool.Pool, freeze func()) error{
	"ping": func(pool *pgxpool.Pool, freeze func()) error {
		freeze()
		return pool.Ping(context.Background())
	},
	"exec": func(pool *pgxpool.Pool, freeze func()) error {
		freeze()
		_, err := pool.Exec(context.Background(), `SELECT 1`)
		return err
	},
	"query": func(pool *pgxpool.Pool, freeze func()) error {
		return pool.AcquireFunc(context.Background(), func(c *pgxpool.Conn) error {
			freeze()
			return c.QueryRow(context.Background(), `SELECT 1`).Scan(new(int))
		})
	},
	"batch": func(pool *pgxpool.Pool, freeze func()) error {
		return pool.AcquireFunc(context.Background(), func(c *pgxpool.Conn) error {
			freeze()
			var b pgx.Batch
			b.Queue(`SELECT 1`)
			b.Queue(`SELECT 2`)
			return c.SendBatch(context.Background(), &b).Close()
		})
	},
	"a large write": func(pool *pgxpool.Pool, freeze func()) error {
		return pool.AcquireFunc(context.Background(), func(c *pgxpool.Conn) error {
			freeze()
			_, err := c.Exec(context.Background(), `SELECT $1::bytea`, make([]byte, 32<<20))
			return err
		})
	},
	"commit": func(pool *pgxpool.Pool, freeze func()) error {
		return pgx.BeginFunc(context.Background(), pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(context.Background(), `SELECT 1`)
			freeze()
			return err
		})
	},
	"rollback": func(pool *pgxpool.Pool, freeze func()) error {
		tx, err := pool.Begin(context.Background())
		freeze()
		if err != nil {
			return err
		}
		return tx.Rollback(context.Background())
	},
	"a caller that gives up": func(pool *pgxpool.Pool, freeze func()) error {
		return pool.AcquireFunc(context.Background(), func(c *pgxpool.Conn) error {
			freeze()
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			_, err := c.Exec(ctx, `SELECT 1`)
			return err
		})
	},
}

// A server that stops answering without closing its sockets is given up, and its connections leave the pool at once.
func TestAHungServerIsGivenUp(t *testing.T) {
	for name, use := range uses {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, proxy := through(t, limit)
			err := within(t, ends, name, func() error { return use(pool, proxy.Freeze) })
			if err == nil {
				t.Error("no error")
			}
			proxy.Replace()
			if err := within(t, ends, "serving again", func() error { return pool.Ping(context.Background()) }); err != nil {
				// The first connection may have been tried while nothing got through.
				if err := within(t, ends, "serving again", func() error { return pool.Ping(context.Background()) }); err != nil {
					t.Error(err)
				}
			}
			pgtest.Eventually(t, "no connection is held", func() bool { return pool.Stat().AcquiredConns() == 0 })
		})
	}
}

// A pool that is full of hung connections ends every acquire, and serves again once there is a server.
func TestAFullPoolOfHungConnectionsServesAgain(t *testing.T) {
	pool, proxy := through(t, limit)
	var all, begun sync.WaitGroup
	for range 3 * pool.Config().MaxConns {
		begun.Add(1)
		all.Go(func() {
			begun.Done()
			for range 3 {
				_, _ = pool.Exec(context.Background(), `SELECT pg_sleep(0.05)`)
			}
		})
	}
	begun.Wait()
	proxy.Freeze()
	_ = within(t, 30*time.Second, "all that use the pool", func() error { all.Wait(); return nil })
	proxy.Replace()
	pgtest.Eventually(t, "serving again", func() bool { return pool.Ping(context.Background()) == nil })
	if n := pool.Stat().AcquiredConns(); n != 0 {
		t.Errorf("%d connections are held", n)
	}
}

// An acquire ends although its caller set no deadline.
func TestAnAcquireEnds(t *testing.T) {
	pool, _ := through(t, limit)
	for range pool.Config().MaxConns {
		c, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Release()
	}
	if err := within(t, ends, "acquire", func() error { return pool.Ping(context.Background()) }); err == nil {
		t.Error("there was no connection left, and one was acquired")
	}
}

// A statement that waits, on a server that serves others, ends alone.
func TestALongStatementDoesNotTakeTheOthersWithIt(t *testing.T) {
	pool, _ := through(t, 2*time.Second)
	slow := make(chan error, 1)
	go func() {
		_, err := pool.Exec(context.Background(), `SET statement_timeout = 0; SELECT pg_sleep(30)`)
		slow <- err
	}()
	for range 40 {
		if _, err := pool.Exec(t.Context(), `SELECT pg_sleep(0.1)`); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-slow:
		if err == nil {
			t.Error("a statement of 30 s ended well within 4 s")
		}
	case <-time.After(ends):
		t.Error("the slow statement has not ended")
	}
}

// A caller that gives up on a commit closes the connection. A cancel request would end the commit's wait for a synchronous
// standby, and show what nobody acknowledged.
func TestNoCancelRequestIsSent(t *testing.T) {
	pool, _ := through(t, time.Minute)
	seen := pgtest.Pool(t)
	ctx, cancel := context.WithCancel(t.Context())
	const slow = `SELECT pg_sleep(2.5) /* TestNoCancelRequestIsSent */`
	done := make(chan error, 1)
	go func() {
		_, err := pool.Exec(ctx, slow)
		done <- err
	}()
	active := func() (n int) {
		if err := seen.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE query = $1 AND state = 'active'`, slow).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	pgtest.Eventually(t, "the statement runs", func() bool { return active() == 1 })
	cancel()
	if err := within(t, ends, "the caller", func() error { return <-done }); err == nil {
		t.Error("no error")
	}
	pgtest.Eventually(t, "the connection left the pool", func() bool { return pool.Stat().TotalConns() == 0 })
	if active() != 1 {
		t.Error("the statement was cancelled")
	}
}

// A server that has become read-only loses its connections: new ones look for the primary.
func TestAReadOnlyServerLosesItsConnections(t *testing.T) {
	pool, _ := through(t, limit)
	pids := map[uint32]bool{}
	for range 3 {
		err := pool.AcquireFunc(t.Context(), func(c *pgxpool.Conn) error {
			pids[c.Conn().PgConn().PID()] = true
			if _, err := c.Exec(t.Context(), `SET default_transaction_read_only = on`); err != nil {
				return err
			}
			_, err := c.Exec(t.Context(), `CREATE TABLE refused ()`)
			return err
		})
		if err == nil {
			t.Fatal("a read-only server made a table")
		}
	}
	if len(pids) != 3 {
		t.Errorf("%d connections for 3 refusals", len(pids))
	}
}

// Behind a PgBouncer in transaction mode a pool works without a word in its DSN.
func TestAPoolFindsOutThatItIsBehindAPooler(t *testing.T) {
	dsn := pgtest.DSN(t)
	a := newApp(t.Context())
	t.Cleanup(func() { _ = a.Close() })
	for name, tc := range map[string]struct {
		dsn  string
		mode pgx.QueryExecMode
	}{
		"without": {dsn, pgx.QueryExecModeCacheStatement},
		"behind":  {pgtest.Bouncer(t, dsn), pgx.QueryExecModeCacheDescribe},
	} {
		pool, err := a.Postgres(run.Database{DSN: tc.dsn, Limit: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if mode := pool.Config().ConnConfig.DefaultQueryExecMode; mode != tc.mode {
			t.Errorf("%s: statements are sent in mode %s", name, mode)
		}
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for n := range 20 {
					var got int
					if err := pool.QueryRow(t.Context(), `SELECT $1::int + 1`, n).Scan(&got); err != nil || got != n+1 {
						t.Errorf("%s: %d, %v", name, got, err)
					}
				}
			})
		}
		all.Wait()
	}
}

// A pooler that refuses a setting of the connections is an error that says so: no waiting changes it.
func TestASettingThatThePoolerRefusesIsAnError(t *testing.T) {
	a := newApp(t.Context())
	t.Cleanup(func() { _ = a.Close() })
	_, err := a.Postgres(run.Database{
		DSN: pgtest.Bouncer(t, pgtest.DSN(t)), Limit: 10 * time.Second, Settings: map[string]string{"work_mem": "8MB"},
	})
	if err == nil || !strings.Contains(err.Error(), "ignore_startup_parameters") {
		t.Errorf("got %v", err)
	}
}
