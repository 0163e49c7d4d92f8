// Package pgtest gives a test a PostgreSQL database of its own on a real server.
package pgtest

import (
	"context"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/dsn"
	"example.com/billing/pkg/migrate"
)

// Env names the variable with the server's DSN; `make test` sets it.
const Env = "BILLING_TEST_POSTGRES_DSN"

// DSN creates a database that is dropped at the end of the test. Without a server the test is skipped, or fails under
// CI=true.
func DSN(t testing.TB) string {
	t.Helper()
	server := os.Getenv(Env)
	if server == "" {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not set: run the tests by `make test`", Env)
		}
		t.Skipf("needs a PostgreSQL server in %s; `make test` starts one", Env)
	}
	name := "test_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	execute(t, server, "CREATE DATABASE "+name)
	t.Cleanup(func() { execute(t, server, "DROP DATABASE "+name+" WITH (FORCE)") })
	u, err := dsn.URL(server)
	if err != nil {
		t.Fatalf("%s: %v", Env, err)
	}
	u.Path = "/" + name
	return u.String()
}

// Pool opens a pool on a database of the test's own.
func Pool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(context.Background(), DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// Migrated opens a pool on a database of the test's own that migrations were applied to; table records which.
func Migrated(t testing.TB, migrations fs.FS, table string) *pgxpool.Pool {
	t.Helper()
	pool := Pool(t)
	if err := migrate.Up(context.Background(), pool, migrations, table); err != nil {
		t.Fatal(err)
	}
	return pool
}

func execute(t testing.TB, server, sql string) {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		t.Fatalf("connect to %s: %v", Env, err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// AwaitLock returns once n locks on a table are waited for, or enough says that there will be none; nil = there will be.
func AwaitLock(t testing.TB, pool *pgxpool.Pool, table string, n int, enough func() bool) {
	t.Helper()
	look := time.NewTicker(3 * time.Millisecond)
	defer look.Stop()
	late := time.After(20 * time.Second)
	for {
		var waiting int
		if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE relation = $1::text::regclass AND NOT granted`, table).Scan(&waiting); err != nil {
			t.Fatal(err)
		}
		if waiting >= n || enough != nil && enough() {
			return
		}
		select {
		case <-look.C:
		case <-late:
			t.Fatalf("%d wait for a lock on %s, want %d", waiting, table, n)
		}
	}
}

// Eventually polls a condition, such as what a database holds in the end.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	look := time.NewTicker(3 * time.Millisecond)
	defer look.Stop()
	late := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-look.C:
		case <-late:
			t.Fatalf("never: %s", what)
		}
	}
}

// Waiting is how many statements on the test's database wait for a lock.
func Waiting(t testing.TB, pool *pgxpool.Pool) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// Severed opens a pool on another's database as a process of its own would have it. Cut is the death of that process: its connections
// are closed in the middle of what they say, and there are no further ones.
func Severed(t testing.TB, p *pgxpool.Pool) (pool *pgxpool.Pool, cut func()) {
	t.Helper()
	var (
		mu    sync.Mutex
		dead  bool
		conns []net.Conn
	)
	c := p.Config()
	dial := c.ConnConfig.DialFunc
	c.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		if dead {
			_ = conn.Close()
			return nil, net.ErrClosed
		}
		conns = append(conns, conn)
		return conn, nil
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool, func() {
		mu.Lock()
		defer mu.Unlock()
		dead = true
		for _, conn := range conns {
			_ = conn.Close()
		}
	}
}
