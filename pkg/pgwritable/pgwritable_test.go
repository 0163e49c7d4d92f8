package pgwritable

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/pgtest"
)

// counted counts what the tracer passes on.
type counted struct{ atomic.Int64 }

func (c *counted) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.Add(1)
	return ctx
}
func (c *counted) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) { c.Add(1) }
func (c *counted) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	c.Add(1)
	return ctx
}
func (c *counted) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) { c.Add(1) }
func (c *counted) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     { c.Add(1) }

// traced is a pool with a tracer whose clock the test moves.
func traced(t *testing.T, dsn string) (*pgxpool.Pool, *Tracer, *counted, *atomic.Int64) {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	var seconds atomic.Int64
	next := &counted{}
	tracer := Trace(next)
	tracer.now = func() time.Time { return time.Unix(1_000_000+seconds.Load(), 0) }
	cfg.ConnConfig.Tracer = tracer
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool, tracer, next, &seconds
}

// fail is a statement that the server refuses with a code.
func fail(code string) string {
	return fmt.Sprintf(`DO $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '%s'; END $$`, code)
}

func TestRefusedWriteIsRememberedUntilOneSucceeds(t *testing.T) {
	pool, _, next, seconds := traced(t, pgtest.DSN(t))
	ctx := t.Context()
	if err := Check(ctx, pool); err != nil {
		t.Fatalf("a healthy server: %v", err)
	}
	for _, code := range []string{"23505", "40001", "57014"} {
		_, _ = pool.Exec(ctx, fail(code))
		if err := Check(ctx, pool); err != nil {
			t.Errorf("%s says nothing of writes: %v", code, err)
		}
	}
	for _, refuse := range []func(code string){
		func(code string) { _, _ = pool.Exec(ctx, fail(code)) },
		func(code string) {
			b := &pgx.Batch{}
			b.Queue("SELECT 1")
			b.Queue(fail(code))
			_ = pool.SendBatch(ctx, b).Close()
		},
	} {
		for _, code := range []string{"53100", "25006", "58030"} {
			refuse(code)
			if err := Check(ctx, pool); !IsRefusal(err) {
				t.Errorf("%s: %v", code, err)
			}
			seconds.Add(int64(holdOff/time.Second) - 1)
			refuse(code) // the service's own writes go on failing
			seconds.Add(int64(holdOff/time.Second) - 1)
			if Check(ctx, pool) == nil {
				t.Errorf("%s: writable soon after a refused write", code)
			}
			seconds.Add(1)
			for range 2 {
				if err := Check(ctx, pool); err != nil {
					t.Errorf("%s: a write succeeds again: %v", code, err)
				}
			}
		}
	}
	if next.Load() == 0 {
		t.Error("nothing was passed on")
	}
}

func TestReadOnlyServer(t *testing.T) {
	dsn := pgtest.DSN(t)
	pool, _, _, seconds := traced(t, dsn)
	ctx := t.Context()
	var name string
	if err := pool.QueryRow(ctx, `SELECT current_database()`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	// The pool's own connection stays as it was: it learns of the change by a refused write.
	for _, sql := range []string{`CREATE TABLE x (n int)`, `ALTER DATABASE ` + name + ` SET default_transaction_read_only = on`} {
		if _, err := pool.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	plain, err := pgxpool.New(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if err := plain.Ping(ctx); err != nil {
		t.Fatalf("a ping says nothing of writes: %v", err)
	}
	if err := Check(ctx, plain); err == nil {
		t.Error("a read-only server is called writable")
	}
	if _, err := pool.Exec(ctx, `BEGIN READ ONLY; INSERT INTO x VALUES (1); COMMIT`); !IsRefusal(err) {
		t.Fatalf("the write: %v", err)
	}
	pool.Reset() // connections of before
	seconds.Add(60)
	if err := Check(ctx, pool); err == nil {
		t.Error("new connections are read-only")
	}
	if _, err := plain.Exec(ctx, `BEGIN READ WRITE; ALTER DATABASE `+name+` RESET default_transaction_read_only; COMMIT`); err != nil {
		t.Fatal(err)
	}
	pool.Reset()
	if err := Check(ctx, pool); err != nil {
		t.Errorf("it takes writes again: %v", err)
	}
}

func TestIsRefusal(t *testing.T) {
	for code, want := range map[string]bool{"25006": true, "53100": true, "58030": true, "53300": false, "57P01": false, "23505": false} {
		if got := IsRefusal(fmt.Errorf("commit: %w", &pgconn.PgError{Code: code})); got != want {
			t.Errorf("%s: %v", code, got)
		}
	}
	if IsRefusal(nil) || IsRefusal(context.DeadlineExceeded) {
		t.Error("no answer is no refusal")
	}
}
