// Package postgres is the event store on PostgreSQL: events, heads, snapshots and the outbox rows commit together.
//
// A group of appends costs one round trip where the versions it expects are those stored, and is refused as a whole where they are
// not. Then it costs two more: the first takes the log's row lock and reads the heads and ids the group needs; who passes is decided
// in Go; the second writes everything and commits. Positions are taken under the log's lock, so they have no gaps and follow commit
// order: a reader that has seen position n has seen everything before it.
package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/pgwritable"
)

// Migrations are the store's own tables, the outbox's among them; see package migrate.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// MigrationsTable records which of Migrations were applied.
const MigrationsTable = "es_migration"

// readPage is how many events ReadAll fetches at a time.
const readPage = 1000

// Options of a store. The zero value is a plain store.
type Options struct {
	// Inline adds statements to the transaction that commits these events, in position order, behind those that insert them: a table that
	// must never lag behind the events. Their positions are not known yet. It must not write to the store's own tables.
	Inline func(b *pgx.Batch, events []es.Event) error
}

// Store is an es.Store on one database. Safe for concurrent use, and beside other processes on the same database.
type Store struct {
	pool      *pgxpool.Pool
	inline    func(*pgx.Batch, []es.Event) error
	committed chan struct{}
	recent    recent
	recall    es.Recall
	elsewhere elsewhere
	apart     atomic.Int64 // groups that are not to be sent whole, before the next that is
	history   history
}

// New returns a store on a database that Migrations were applied to.
func New(pool *pgxpool.Pool, o Options) *Store {
	return &Store{pool: pool, inline: o.Inline, committed: make(chan struct{}, 1)}
}

// Scope is the whole store.
func (s *Store) Scope() es.Scope { return es.ScopeStore }

// Committed has a value after this process committed events: a hint for its relay.
func (s *Store) Committed() <-chan struct{} { return s.committed }

// Decode reads an event's JSON; that of an event which this process committed a while ago costs a look-up.
func (s *Store) Decode(b []byte) (es.Event, error) { return s.recall.Decode(b) }

// Secret is the database's own random key, made with its first migration.
func (s *Store) Secret(ctx context.Context) ([]byte, error) {
	var secret []byte
	err := s.pool.QueryRow(ctx, `SELECT secret FROM es_log`).Scan(&secret)
	return secret, Classify("read secret", err)
}

// Load is es.Store's.
func (s *Store) Load(ctx context.Context, st es.Stream, after int64, limit int) ([]es.Event, error) {
	return s.query(ctx, "load "+st.String(),
		`SELECT position, recorded_at, payload FROM es_event WHERE stream_id = $1 AND stream_type = $2 AND version > $3 ORDER BY version LIMIT nullif($4, 0)`,
		st.ID, st.Type, after, limit)
}

// How often, and how long apart, Clock looks for the end of a commit under way before it waits for the log's lock.
const (
	clockLooks = 20
	clockPause = 2 * time.Millisecond
)

// Clock is es.Store's. It does not stand in the queue for the log's lock, so that reading the past holds up no commit: while
// others append it looks for 40 ms until they have recorded something after it was called. Only then it waits for the lock.
func (s *Store) Clock(ctx context.Context) (time.Time, error) {
	var began time.Time
	for look := 1; ; look++ {
		lock := tryLockLog
		if look > clockLooks {
			lock = waitLockLog
		}
		var (
			recorded, now time.Time
			idle          bool
		)
		b := &pgx.Batch{} // one transaction: the log is read under the lock
		b.Queue("SELECT " + lock).QueryRow(func(row pgx.Row) error { return row.Scan(&idle) })
		b.Queue(`SELECT coalesce((SELECT recorded_at FROM es_event ORDER BY position DESC LIMIT 1), 'epoch'), clock_timestamp()`).
			QueryRow(func(row pgx.Row) error { return row.Scan(&recorded, &now) })
		if err := s.pool.SendBatch(ctx, b).Close(); err != nil {
			return time.Time{}, Classify("read the clock", err)
		}
		if began.IsZero() {
			began = now
		}
		next := recorded.Add(time.Microsecond) // the earliest time of what comes
		switch {
		case idle && now.After(next):
			return now.UTC(), nil
		case idle || next.After(began):
			return next.UTC(), nil
		}
		select {
		case <-time.After(clockPause):
		case <-ctx.Done():
			return time.Time{}, Classify("read the clock", ctx.Err())
		}
	}
}

// Lookup is es.Store's.
func (s *Store) Lookup(ctx context.Context, ids []string) ([]es.Event, error) {
	return s.query(ctx, "look up events", `SELECT position, recorded_at, payload FROM es_event WHERE event_id = ANY($1::uuid[])`, ids)
}

// Heads is es.Store's.
func (s *Store) Heads(ctx context.Context, streams []es.Stream) ([]es.Head, error) {
	types, ids := split(streams)
	rows, err := s.pool.Query(ctx,
		`SELECT w.n, h.version, h.snapshot, h.snapshot_version
		 FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w(t, id, n)
		 JOIN es_head h ON h.stream_id = w.id AND h.stream_type = w.t`, types, ids)
	if err != nil {
		return nil, Classify("read heads", err)
	}
	heads := make([]es.Head, len(streams))
	var (
		n int64
		h es.Head
	)
	_, err = pgx.ForEachRow(rows, []any{&n, &h.Version, &h.Snapshot, &h.SnapshotVersion}, func() error {
		heads[n-1] = h
		h.Snapshot = nil // the next row gets an array of its own
		return nil
	})
	return heads, Classify("read heads", err)
}

// Snapshot is es.Store's.
func (s *Store) Snapshot(ctx context.Context, st es.Stream, version int64) (es.Head, error) {
	var h es.Head
	err := s.pool.QueryRow(ctx, `SELECT version, snapshot, version FROM es_snapshot
		WHERE stream_id = $1 AND stream_type = $2 AND version <= $3 ORDER BY version DESC LIMIT 1`,
		st.ID, st.Type, version).Scan(&h.Version, &h.Snapshot, &h.SnapshotVersion)
	if errors.Is(err, pgx.ErrNoRows) {
		return es.Head{}, nil
	}
	return h, Classify("read snapshot", err)
}

// ReadAll is es.Store's. It reads in pages, so that memory stays bounded and no transaction stays open.
func (s *Store) ReadAll(ctx context.Context, aggregateType string, from es.From) iter.Seq2[es.Event, error] {
	return func(yield func(es.Event, error) bool) {
		after := from.After
		for {
			events, err := s.query(ctx, "read all",
				`SELECT position, recorded_at, payload FROM es_event
				 WHERE position > $1 AND ($2 = '' OR stream_type = $2) AND recorded_at >= $3 ORDER BY position LIMIT $4`,
				after, aggregateType, from.Since, readPage)
			if err != nil {
				yield(es.Event{}, err)
				return
			}
			for _, e := range events {
				if !yield(e, nil) {
					return
				}
				after = e.Position
			}
			if len(events) < readPage {
				return
			}
		}
	}
}

// End is es.Store's.
func (s *Store) End(ctx context.Context) (int64, error) {
	var end int64
	err := s.pool.QueryRow(ctx, `SELECT es_end()`).Scan(&end)
	return end, Classify("read the log's end", err)
}

func (s *Store) query(ctx context.Context, op, sql string, args ...any) ([]es.Event, error) {
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, Classify(op, err)
	}
	events, err := pgx.CollectRows(rows, scanEvent)
	return events, Classify(op, err)
}

// eventRow is an event as it is stored.
type eventRow struct {
	position int64
	at       time.Time
	payload  []byte
}

func (r *eventRow) event() (es.Event, error) {
	e, err := es.Decode(r.payload)
	e.Position, e.RecordedAt = r.position, r.at.UTC()
	return e, err
}

func scanEvent(row pgx.CollectableRow) (es.Event, error) {
	var r eventRow
	if err := row.Scan(&r.position, &r.at, &r.payload); err != nil {
		return es.Event{}, err
	}
	return r.event()
}

func split(streams []es.Stream) (types, ids []string) {
	types, ids = make([]string, len(streams)), make([]string, len(streams))
	for i, st := range streams {
		types[i], ids[i] = st.Type, st.ID
	}
	return types, ids
}

// refusedWriteError is an error of a server that takes no writes now.
type refusedWriteError struct{ error }

func (e refusedWriteError) Unwrap() error { return e.error }

// Unwritable tells an es.Executor that asking again within the same request is in vain.
func (refusedWriteError) Unwritable() bool { return true }

// Classify names the operation, and tells a definite no of the database from no answer: the latter is an
// *es.UnavailableError. What a definite error refused was rolled back. Nil stays nil.
func Classify(op string, err error) error {
	if err == nil {
		return nil
	}
	// The phase comes before the code: a server that refuses a connection has executed nothing, whatever its reason
	// (wrong password, no such database, still starting).
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		return &es.UnavailableError{Op: op, Err: err}
	}
	var pg *pgconn.PgError
	if pgwritable.IsRefusal(err) || errors.As(err, &pg) && pg.Code == clockAhead {
		return &es.UnavailableError{Op: op, Err: refusedWriteError{err}}
	}
	if errors.As(err, &pg) {
		switch {
		case strings.HasPrefix(pg.Code, "57"), strings.HasPrefix(pg.Code, "08"), strings.HasPrefix(pg.Code, "53"), strings.HasPrefix(pg.Code, "40"),
			strings.HasPrefix(pg.Code, "58"), pg.Code == "25006", pg.Code == "25P03", pg.Code == "55P03",
			pg.Code == otherHistory:
			// Shutting down, cancelled, connection trouble, out of resources (a full disk), deadlock, an error of the
			// server's disk, read-only after a failover, idle for too long, lock not to be had, another history: asking
			// again can help.
			return &es.UnavailableError{Op: op, Err: err}
		}
		return fmt.Errorf("%s: %w", op, err)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || pgconn.SafeToRetry(err) || isConnection(err) {
		return &es.UnavailableError{Op: op, Err: err}
	}
	return fmt.Errorf("%s: %w", op, err)
}
