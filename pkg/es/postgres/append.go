package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
)

// Append is es.Store's.
func (s *Store) Append(ctx context.Context, streams ...es.Append) error {
	return s.AppendBatch(ctx, [][]es.Append{streams})[0]
}

// AppendBatch is es.Store's: one transaction for the whole group. If the database refuses the group for a reason that is no
// conflict, halves of it are tried, until the item at fault stands alone.
func (s *Store) AppendBatch(ctx context.Context, items [][]es.Append) []error {
	g := newGroup(items)
	return s.appendGroup(ctx, g, nil)
}

// appendGroup commits a group, with a caller's own statements in the same transaction if with is not nil.
func (s *Store) appendGroup(ctx context.Context, g *group, with *With) []error {
	var err error
	if ctx, g.incarnation, err = s.withIncarnation(ctx); err == nil {
		err = s.commit(ctx, g, with)
	}
	var unavailable *es.UnavailableError
	switch {
	case err == nil:
		if len(g.written) > 0 {
			s.recent.add(g.incarnation, g.written)
			s.elsewhere.commit(g.incarnation, g.written)
			for i, c := range g.written {
				s.recall.Add(c.Payload, *g.events[i])
			}
			select {
			case s.committed <- struct{}{}:
			default:
			}
		}
	case errors.As(err, &unavailable) || len(g.items) <= 1 || with != nil:
		g.fail(err)
	default:
		half := len(g.items) / 2
		return append(s.AppendBatch(ctx, g.items[:half]), s.AppendBatch(ctx, g.items[half:])...)
	}
	return g.errs
}

// With is a caller's own part of an append's transaction: its state rows, written first, under the log's lock.
type With struct {
	// Read queues statements that run once the log is locked.
	Read func(*pgx.Batch)
	// Write queues statements that run with the events, for the items whose versions hold; it may reject some of those.
	Write func(b *pgx.Batch, items []int, reject func(item int, err error)) error
	// Once does what both do, in statements that fail by es_require unless what is stored is what these items are written upon. It
	// returns false where it cannot tell, having queued nothing. nil = it never can.
	Once func(b *pgx.Batch, items []int) (ok bool, err error)
}

// AppendWith is AppendBatch with a caller's own statements in the same transaction, all under the log's lock.
func (s *Store) AppendWith(ctx context.Context, items [][]es.Append, w With) []error {
	return s.appendGroup(ctx, newGroup(items), &w)
}

// group is one transaction's worth of appends.
type group struct {
	items    [][]es.Append
	errs     []error
	payloads map[*es.Event][]byte
	streams  []es.Stream // distinct, in order of appearance
	ids      []string
	written  []Committed // accepted, once committed with their positions
	events   []*es.Event // those of written

	incarnation int64 // of the database, upon which the items were decided
}

func newGroup(items [][]es.Append) *group {
	g := &group{items: items, errs: make([]error, len(items)), payloads: map[*es.Event][]byte{}}
	seen := map[es.Stream]bool{}
	for i, item := range items {
		if g.errs[i] = g.encode(item); g.errs[i] != nil {
			continue
		}
		for _, a := range item {
			if !seen[a.Stream] {
				seen[a.Stream] = true
				g.streams = append(g.streams, a.Stream)
			}
			for j := range a.Events {
				g.ids = append(g.ids, a.Events[j].ID)
			}
		}
	}
	return g
}

// encode checks an item and writes its events' JSON, before any lock is held.
func (g *group) encode(item []es.Append) error {
	if err := es.CheckAppends(item); err != nil {
		return err
	}
	for _, a := range item {
		for j := range a.Events {
			e := &a.Events[j]
			payload, err := e.Encode()
			if err != nil {
				return err
			}
			if len(payload) > es.EventBytesMax {
				return &es.LimitError{Stream: a.Stream, Limit: "event size in bytes", Max: es.EventBytesMax, Actual: len(payload)}
			}
			g.payloads[e] = payload
		}
	}
	return nil
}

// fail gives every item that has no error of its own this one.
func (g *group) fail(err error) {
	for i := range g.errs {
		if g.errs[i] == nil {
			g.errs[i] = err
		}
	}
}

// commit runs the group's transaction. A nil error means that the items without an error of their own are committed.
func (s *Store) commit(ctx context.Context, g *group, with *With) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return Classify("append", err)
	}
	defer conn.Release() // a connection with an open transaction is closed by the pool, which rolls back
	if len(g.ids) == 0 && with == nil {
		heads, err := s.checkHeads(ctx, conn, g.streams)
		if err != nil {
			return s.historyError(ctx, "check versions", err)
		}
		g.accept(heads, nil)
		return nil
	}
	if done, err := s.atOnce(ctx, conn, g, with); done || err != nil {
		return err
	}
	heads, stored, err := s.lock(ctx, conn, g, with)
	if err != nil {
		return s.historyError(ctx, "append", err)
	}
	accepted := g.accept(heads, stored)
	if len(accepted) == 0 && with == nil {
		_, err := conn.Exec(ctx, "ROLLBACK")
		return Classify("append", err)
	}
	b := &pgx.Batch{}
	if with != nil {
		if err := with.Write(b, accepted, func(i int, err error) { g.errs[i] = err }); err != nil {
			return fmt.Errorf("append: %w", err)
		}
		accepted = g.accept(heads, stored)
	}
	end, err := s.write(ctx, b, g, accepted, heads)
	if err != nil {
		return err
	}
	b.Queue("COMMIT")
	if err := conn.SendBatch(ctx, b).Close(); err != nil {
		return s.historyError(ctx, "append", err)
	}
	g.place(*end)
	return nil
}

// place gives the written events their positions, which end with the log.
func (g *group) place(end int64) {
	for i := range g.written {
		g.written[i].Position = end - int64(len(g.written)-1-i)
	}
}

// LockLog takes the log's lock until the transaction ends. It goes before the statement that reads the log's end and the clock: one
// that waited for the lock itself would have read them before. An advisory lock leaves no row behind whose versions pile up.
const LockLog = "SELECT pg_advisory_xact_lock(1248, 0)"

// tryLockLog is true if no append is under way. It then keeps appends out until the transaction ends.
const tryLockLog = "pg_try_advisory_xact_lock_shared(1248, 0)"

// waitLockLog is tryLockLog that waits until it is true.
const waitLockLog = "pg_advisory_xact_lock_shared(1248, 0) IS NOT NULL"

// lock is the first round trip: begin, lock the log, read the heads and find ids that are stored already.
func (s *Store) lock(ctx context.Context, conn *pgxpool.Conn, g *group, with *With) (map[es.Stream]int64, map[string]bool, error) {
	var (
		heads  = make(map[es.Stream]int64, len(g.streams))
		stored = map[string]bool{}
	)
	b := &pgx.Batch{}
	b.Queue("BEGIN")
	b.Queue(LockLog)
	queueHeads(b, g.streams, heads)
	b.Queue("SELECT event_id::text FROM es_event WHERE event_id = ANY($1::uuid[])", g.ids).Query(func(rows pgx.Rows) error {
		var id string
		_, err := pgx.ForEachRow(rows, []any{&id}, func() error { stored[id] = true; return nil })
		return err
	})
	if with != nil {
		with.Read(b)
	}
	err := conn.SendBatch(ctx, b).Close()
	return heads, stored, err
}

// checkHeads reads the versions of streams that nothing is written to. It commits a message without a reader, so that it waits as a
// write does, with a synchronous standby for that one too: the answer that is given upon these versions may be the repeat of a
// commit whose own answer was lost, and which the standby may not have.
func (s *Store) checkHeads(ctx context.Context, conn *pgxpool.Conn, streams []es.Stream) (map[es.Stream]int64, error) {
	heads := make(map[es.Stream]int64, len(streams))
	b := &pgx.Batch{}
	queueHeads(b, streams, heads)
	b.Queue("SELECT es_append_to($1)", es.IncarnationFrom(ctx))
	b.Queue("SELECT pg_logical_emit_message(true, 'es', '')")
	return heads, conn.SendBatch(ctx, b).Close()
}

func queueHeads(b *pgx.Batch, streams []es.Stream, heads map[es.Stream]int64) {
	types, ids := split(streams)
	b.Queue(`SELECT h.stream_type, h.stream_id, h.version FROM unnest($1::text[], $2::text[]) AS w(t, id)
	         JOIN es_head h ON h.stream_id = w.id AND h.stream_type = w.t`, types, ids).Query(func(rows pgx.Rows) error {
		var (
			st es.Stream
			v  int64
		)
		_, err := pgx.ForEachRow(rows, []any{&st.Type, &st.ID, &v}, func() error { heads[st] = v; return nil })
		return err
	})
}

// accept decides item by item, in order, which may be written, and gives the others their error. It is pure but for errs.
func (g *group) accept(heads map[es.Stream]int64, stored map[string]bool) (accepted []int) {
	at := make(map[es.Stream]int64, len(heads))
	ids := map[string]bool{}
	for i, item := range g.items {
		if g.errs[i] != nil {
			continue
		}
		if g.errs[i] = check(item, heads, at, stored, ids); g.errs[i] != nil {
			continue
		}
		for _, a := range item {
			at[a.Stream] = a.Expected + int64(len(a.Events))
			for _, e := range a.Events {
				ids[e.ID] = true
			}
		}
		accepted = append(accepted, i)
	}
	return accepted
}

func check(item []es.Append, heads, at map[es.Stream]int64, stored, ids map[string]bool) error {
	for _, a := range item {
		actual, ok := at[a.Stream]
		if !ok {
			actual = heads[a.Stream]
		}
		if actual != a.Expected {
			return &es.ConflictError{Stream: a.Stream, Expected: a.Expected, Actual: actual}
		}
		var twice []string
		for _, e := range a.Events {
			if stored[e.ID] || ids[e.ID] {
				twice = append(twice, e.ID)
			}
		}
		if twice != nil {
			return &es.DuplicateError{Stream: a.Stream, IDs: twice}
		}
	}
	return nil
}

// write queues what is written: the log's new end, events, heads, the outbox row, and the inline statements. It fails unless the streams
// written to have these heads. The log's new end is read when the batch is.
func (s *Store) write(ctx context.Context, b *pgx.Batch, g *group, accepted []int, heads map[es.Stream]int64) (end *int64, err error) {
	var (
		c      columns
		events []es.Event
		ends   = map[es.Stream]*es.Append{}
		order  []es.Stream
		kept   []*es.Append
	)
	end, g.written, g.events = new(int64), nil, nil
	for _, i := range accepted {
		for j := range g.items[i] {
			a := &g.items[i][j]
			if len(a.Events) == 0 {
				continue
			}
			if ends[a.Stream] == nil {
				order = append(order, a.Stream)
			}
			ends[a.Stream] = a
			if a.Kept() {
				kept = append(kept, a)
			}
			for k := range a.Events {
				e := &a.Events[k]
				c.add(e, g.payloads[e])
				events = append(events, *e)
				g.written = append(g.written, Committed{
					Stream: e.Stream, Version: e.Version, Type: e.Type, CorrelationID: e.CorrelationID, Payload: g.payloads[e],
				})
				g.events = append(g.events, e)
			}
		}
	}
	if len(events) == 0 {
		b.Queue("SELECT es_append_to($1)", es.IncarnationFrom(ctx))
		return end, nil
	}
	b.Queue(s.insertEvents(), c.args(es.IncarnationFrom(ctx), time.Now())...).QueryRow(func(row pgx.Row) error { return row.Scan(end, nil, nil) })
	queueEnds(b, order, ends, heads)
	queueKept(b, kept)
	if s.inline == nil {
		return end, nil
	}
	if err := s.inline(b, events); err != nil {
		return nil, fmt.Errorf("inline: %w", err)
	}
	return end, nil
}

// insertEvents inserts events and their outbox row behind the log's end, and returns the new end. The log must be locked. It fails
// where the writer knows another history than the database has, where the database is a copy of another store, and where there are
// inline tables that are not up to it: see RefuseCopy and CatchUp.
func (s *Store) insertEvents() string {
	require := "follows = ''"
	if s.inline != nil {
		require += " AND not_inlined = 0"
	}
	return `WITH l AS MATERIALIZED (
		SELECT coalesce(p.position, 0) AS position, es_clock(p.recorded_at, $10) AS recorded_at, ` + require + ` AS ready
		FROM es_log LEFT JOIN LATERAL (SELECT position, recorded_at FROM es_event ORDER BY position DESC LIMIT 1) p ON true
	), events AS (
		INSERT INTO es_event (position, event_id, stream_type, stream_id, version, event_type, correlation_id, recorded_at, payload)
		SELECT l.position + e.n, e.i, e.t, e.s, e.v, e.y, e.c, l.recorded_at, e.d
		FROM l, unnest($2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::bytea[]) WITH ORDINALITY AS e(i, t, s, v, y, c, d, n)
	), batch AS (
		INSERT INTO outbox_batch (from_position, to_position, events, created_at)
		SELECT position + 1, position + $1::bigint, $1::bigint, recorded_at FROM l
	)
	SELECT position + $1::bigint, es_require(ready), es_append_to($9) FROM l`
}

// columns are the events as arrays for one multi-row insert.
type columns struct {
	versions                               []int64
	ids, types, streams, names, correlated []string
	payloads                               [][]byte
}

func (c *columns) add(e *es.Event, payload []byte) {
	c.ids = append(c.ids, e.ID)
	c.types = append(c.types, e.Stream.Type)
	c.streams = append(c.streams, e.Stream.ID)
	c.versions = append(c.versions, e.Version)
	c.names = append(c.names, e.Type)
	c.correlated = append(c.correlated, e.CorrelationID)
	c.payloads = append(c.payloads, payload)
}

// args are those of insertEvents.
func (c *columns) args(incarnation int64, now time.Time) []any {
	return []any{len(c.ids), c.ids, c.types, c.streams, c.versions, c.names, c.correlated, c.payloads, incarnation, now}
}

// queueEnds writes the heads: one row per stream, with its last version, wherever in the group its events stand. It fails unless they
// are as they were taken to be. A head without a new snapshot keeps its old one.
func queueEnds(b *pgx.Batch, order []es.Stream, ends map[es.Stream]*es.Append, heads map[es.Stream]int64) {
	var created, moved ended
	for _, st := range order {
		if heads[st] == 0 {
			created.add(st, 0, ends[st])
		} else {
			moved.add(st, heads[st], ends[st])
		}
	}
	if len(created.ids) > 0 {
		b.Queue(`INSERT INTO es_head (stream_type, stream_id, version, snapshot, snapshot_version)
		         SELECT t, s, v, d, CASE WHEN d IS NULL THEN 0 ELSE v END FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bytea[]) AS e(t, s, v, d)`,
			created.types, created.ids, created.to, created.snapshots)
	}
	if len(moved.ids) > 0 {
		b.Queue(`WITH moved AS (
		             UPDATE es_head h SET version = e.v, snapshot = coalesce(e.d, h.snapshot),
		               snapshot_version = CASE WHEN e.d IS NULL THEN h.snapshot_version ELSE e.v END
		             FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bytea[]) AS e(t, s, f, v, d)
		             WHERE h.stream_id = e.s AND h.stream_type = e.t AND h.version = e.f RETURNING 1)
		         SELECT es_require(count(*) = $6) FROM moved`,
			moved.types, moved.ids, moved.from, moved.to, moved.snapshots, len(moved.ids))
	}
}

// ended are streams' new heads as arrays.
type ended struct {
	types, ids []string
	from, to   []int64
	snapshots  [][]byte
}

func (e *ended) add(st es.Stream, from int64, a *es.Append) {
	e.types, e.ids = append(e.types, st.Type), append(e.ids, st.ID)
	e.from, e.to, e.snapshots = append(e.from, from), append(e.to, a.Expected+int64(len(a.Events))), append(e.snapshots, a.Snapshot)
}

// queueKept writes the snapshots that are kept for good.
func queueKept(b *pgx.Batch, kept []*es.Append) {
	for _, a := range kept { // one in es.SnapshotEvery events
		b.Queue(`INSERT INTO es_snapshot (stream_type, stream_id, version, snapshot) VALUES ($1, $2, $3, $4)`,
			a.Stream.Type, a.Stream.ID, a.Expected+int64(len(a.Events)), a.Snapshot)
	}
}

// isConnection: the connection broke, so the server's answer is missing.
func isConnection(err error) bool {
	var (
		network net.Error
		connect *pgconn.ConnectError
	)
	return errors.As(err, &network) || errors.As(err, &connect) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || strings.Contains(err.Error(), "conn closed") || strings.Contains(err.Error(), "closed pool")
}
