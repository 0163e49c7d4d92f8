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
	err := s.commit(ctx, g, with)
	var unavailable *es.UnavailableError
	switch {
	case err == nil:
		if len(g.written) > 0 {
			s.recent.add(g.written)
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
	written  []Committed // accepted, with their positions
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
			return Classify("check versions", err)
		}
		g.accept(heads, nil)
		return nil
	}
	log, heads, stored, err := s.lock(ctx, conn, g, with)
	if err != nil {
		return Classify("append", err)
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
	if err := s.write(b, g, accepted, log); err != nil {
		return err
	}
	b.Queue("COMMIT")
	return Classify("append", conn.SendBatch(ctx, b).Close())
}

// logEnd is the end of the log as read under its lock.
type logEnd struct {
	position   int64
	recordedAt time.Time
}

// lock is the first round trip: begin, lock the log, read the heads and find ids that are stored already.
func (s *Store) lock(ctx context.Context, conn *pgxpool.Conn, g *group, with *With) (logEnd, map[es.Stream]int64, map[string]bool, error) {
	var (
		log    logEnd
		heads  = make(map[es.Stream]int64, len(g.streams))
		stored = map[string]bool{}
	)
	b := &pgx.Batch{}
	b.Queue("BEGIN")
	b.Queue("SELECT position, recorded_at FROM es_log FOR UPDATE").QueryRow(func(row pgx.Row) error {
		return row.Scan(&log.position, &log.recordedAt)
	})
	b.Queue("SELECT clock_timestamp()").QueryRow(func(row pgx.Row) error { // under the lock, not while waiting for it
		var now time.Time
		if err := row.Scan(&now); err != nil {
			return err
		}
		if now.After(log.recordedAt) {
			log.recordedAt = now
		}
		return nil
	})
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
	return log, heads, stored, err
}

func (s *Store) checkHeads(ctx context.Context, conn *pgxpool.Conn, streams []es.Stream) (map[es.Stream]int64, error) {
	heads := make(map[es.Stream]int64, len(streams))
	b := &pgx.Batch{}
	queueHeads(b, streams, heads)
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

// write queues the second round trip: events, heads, the log's new end, the outbox row, and the inline statements.
func (s *Store) write(b *pgx.Batch, g *group, accepted []int, log logEnd) error {
	var (
		c      columns
		events []es.Event
		ends   = map[es.Stream]*es.Append{}
		order  []es.Stream
		kept   []*es.Append
	)
	position := log.position
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
				position++
				e := &a.Events[k]
				c.add(position, e, g.payloads[e])
				committed := *e
				committed.Position, committed.RecordedAt = position, log.recordedAt
				events = append(events, committed)
				g.written = append(g.written, Committed{
					Position: position, Stream: e.Stream, Version: e.Version, Type: e.Type, CorrelationID: e.CorrelationID, Payload: g.payloads[e],
				})
			}
		}
	}
	if len(events) == 0 {
		return nil
	}
	c.queue(b, log.recordedAt)
	queueEnds(b, order, ends)
	queueKept(b, kept)
	b.Queue("UPDATE es_log SET position = $1, recorded_at = $2", position, log.recordedAt)
	b.Queue("INSERT INTO outbox_batch (from_position, to_position, events, created_at) VALUES ($1, $2, $3, $4)",
		log.position+1, position, len(events), log.recordedAt)
	if s.inline == nil {
		return nil
	}
	if err := s.inline(b, events); err != nil {
		return fmt.Errorf("inline: %w", err)
	}
	return nil
}

// columns are the events as arrays for one multi-row insert.
type columns struct {
	positions, versions                    []int64
	ids, types, streams, names, correlated []string
	payloads                               [][]byte
}

func (c *columns) add(position int64, e *es.Event, payload []byte) {
	c.positions = append(c.positions, position)
	c.ids = append(c.ids, e.ID)
	c.types = append(c.types, e.Stream.Type)
	c.streams = append(c.streams, e.Stream.ID)
	c.versions = append(c.versions, e.Version)
	c.names = append(c.names, e.Type)
	c.correlated = append(c.correlated, e.CorrelationID)
	c.payloads = append(c.payloads, payload)
}

func (c *columns) queue(b *pgx.Batch, at time.Time) {
	b.Queue(`INSERT INTO es_event (position, event_id, stream_type, stream_id, version, event_type, correlation_id, recorded_at, payload)
	         SELECT p, i, t, s, v, n, c, $8, d
	         FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[], $9::bytea[]) AS e(p, i, t, s, v, n, c, d)`,
		c.positions, c.ids, c.types, c.streams, c.versions, c.names, c.correlated, at, c.payloads)
}

// queueEnds writes the new heads. A head without a new snapshot keeps its old one.
func queueEnds(b *pgx.Batch, order []es.Stream, ends map[es.Stream]*es.Append) {
	types, ids := split(order)
	versions := make([]int64, len(order))
	snapshots := make([][]byte, len(order))
	for i, st := range order {
		a := ends[st]
		versions[i] = a.Expected + int64(len(a.Events))
		snapshots[i] = a.Snapshot
	}
	b.Queue(`INSERT INTO es_head AS h (stream_type, stream_id, version, snapshot, snapshot_version)
	         SELECT t, s, v, d, CASE WHEN d IS NULL THEN 0 ELSE v END
	         FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bytea[]) AS e(t, s, v, d)
	         ON CONFLICT (stream_id, stream_type) DO UPDATE SET version = excluded.version,
	           snapshot = coalesce(excluded.snapshot, h.snapshot),
	           snapshot_version = CASE WHEN excluded.snapshot IS NULL THEN h.snapshot_version ELSE excluded.snapshot_version END`,
		types, ids, versions, snapshots)
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
