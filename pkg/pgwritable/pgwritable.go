// Package pgwritable tells whether a PostgreSQL server takes writes. A server that is read-only, or whose disk is full,
// answers every ping and every read, so a ping alone calls a service ready that can serve no command.
package pgwritable

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// holdOff is how long after the last refused write the server is not called writable. A small write of the check can
// succeed where those of the service still fail, which by then have failed again.
const holdOff = 5 * time.Second

// IsRefusal reports whether an error says that the server takes no writes now: read-only, disk full, or an error of its
// disk. The statement has changed nothing, and asking again at once is in vain.
func IsRefusal(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	switch pg.Code {
	case "25006", "53100", "58030":
		return true
	}
	return false
}

// Tracer watches the statements of a pool for refused writes. It is the pool's tracer, and passes everything on to another
// one. Safe for concurrent use.
type Tracer struct {
	next interface {
		pgx.QueryTracer
		pgx.BatchTracer
	}
	now func() time.Time

	mu     sync.Mutex
	failed time.Time // when a write was last refused; zero = all is well
	why    error
}

// Trace makes a tracer in front of another one.
func Trace(next interface {
	pgx.QueryTracer
	pgx.BatchTracer
},
) *Tracer {
	return &Tracer{next: next, now: time.Now}
}

// TraceQueryStart is pgx.QueryTracer's.
func (t *Tracer) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	return t.next.TraceQueryStart(ctx, conn, data)
}

// TraceQueryEnd is pgx.QueryTracer's.
func (t *Tracer) TraceQueryEnd(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryEndData) {
	t.note(data.Err)
	t.next.TraceQueryEnd(ctx, conn, data)
}

// TraceBatchStart is pgx.BatchTracer's.
func (t *Tracer) TraceBatchStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	return t.next.TraceBatchStart(ctx, conn, data)
}

// TraceBatchQuery is pgx.BatchTracer's.
func (t *Tracer) TraceBatchQuery(ctx context.Context, conn *pgx.Conn, data pgx.TraceBatchQueryData) {
	t.note(data.Err)
	t.next.TraceBatchQuery(ctx, conn, data)
}

// TraceBatchEnd is pgx.BatchTracer's.
func (t *Tracer) TraceBatchEnd(ctx context.Context, conn *pgx.Conn, data pgx.TraceBatchEndData) {
	t.note(data.Err)
	t.next.TraceBatchEnd(ctx, conn, data)
}

func (t *Tracer) note(err error) {
	if err == nil || !IsRefusal(err) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed, t.why = t.now(), err
}

// refused is the last refused write, and when it was; a zero time = none since the last clear.
func (t *Tracer) refused() (time.Time, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failed, t.why
}

// clear forgets the refused write of a time, unless another one came after it.
func (t *Tracer) clear(at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failed.Equal(at) {
		t.failed, t.why = time.Time{}, nil
	}
}

// Check returns nil where the server takes writes, as far as is known: it is no standby, its transactions are not
// read-only, and no write was refused lately. After a refused write it waits for holdOff, and then for a write of its own
// to be committed. A pool without a Tracer is asked for its settings only.
func Check(ctx context.Context, pool *pgxpool.Pool) error {
	var standby, readOnly bool
	err := pool.QueryRow(ctx, `SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'`).Scan(&standby, &readOnly)
	switch {
	case err != nil:
		return fmt.Errorf("ask whether the server takes writes: %w", err)
	case standby:
		return errors.New("the server is a standby: it takes no writes")
	case readOnly:
		return errors.New("the server is read-only")
	}
	t := tracerOf(pool.Config().ConnConfig.Tracer)
	if t == nil {
		return nil
	}
	at, why := t.refused()
	if at.IsZero() {
		return nil
	}
	if t.now().Sub(at) < holdOff {
		return fmt.Errorf("the server refused a write: %w", why)
	}
	// A record in the server's log and nowhere else: it needs no table.
	if _, err := pool.Exec(ctx, `SELECT pg_logical_emit_message(true, 'billing.writable', '')`); err != nil {
		return fmt.Errorf("the server refused a write, and does not take one yet: %w", err)
	}
	t.clear(at)
	return nil
}

// tracerOf finds the tracer of a pool, also behind others that say what they wrap; nil = there is none.
func tracerOf(outer pgx.QueryTracer) *Tracer {
	for {
		switch t := outer.(type) {
		case *Tracer:
			return t
		case interface{ Unwrap() pgx.QueryTracer }:
			outer = t.Unwrap()
		default:
			return nil
		}
	}
}
