package auditor

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// ask reads one number.
func ask(ctx context.Context, dsn, sql string) (n int64, err error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = conn.QueryRow(ctx, sql).Scan(&n)
	return n, err
}

// database goes through one service's database in one snapshot: all events in the order of their positions, handing each to fold;
// what is kept about them; then the service's own tables.
func (x *audit) database(ctx context.Context, dsn, kind string, fold func(event, data), tables func(context.Context, pgx.Tx) error) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return err
	}
	if err := x.snapshots(ctx, tx); err != nil {
		return err
	}
	last, err := x.events(ctx, tx, kind, fold)
	if err != nil {
		return err
	}
	if err := x.heads(ctx, tx, kind); err != nil {
		return err
	}
	rows, err := tx.Query(ctx, `SELECT number, from_position FROM es_incarnation`)
	if err != nil {
		return err
	}
	var i incarnation
	if _, err := pgx.ForEachRow(rows, []any{&i.number, &i.from}, func() error {
		x.incarnations[kind] = append(x.incarnations[kind], i)
		return nil
	}); err != nil {
		return err
	}
	if err := x.outbox(ctx, tx, kind, last); err != nil {
		return err
	}
	return tables(ctx, tx)
}

// snapshots reads the snapshots that heads and history keep; the fold compares itself with them when it comes to their versions.
func (x *audit) snapshots(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `SELECT stream_type, stream_id, snapshot_version, snapshot FROM es_head WHERE snapshot IS NOT NULL
		UNION ALL SELECT stream_type, stream_id, version, snapshot FROM es_snapshot`)
	if err != nil {
		return err
	}
	var (
		s       stream
		version int64
		state   []byte
	)
	_, err = pgx.ForEachRow(rows, []any{&s.kind, &s.id, &version, &state}, func() error {
		if x.kept[s] == nil {
			x.kept[s] = map[int64][]byte{}
		}
		x.kept[s][version] = state
		state = nil // the next row gets an array of its own
		return nil
	})
	return err
}

// row is a row of es_event.
type row struct {
	position   int64
	id         uuid.UUID
	stream     stream
	version    int64
	kind, corr string
	recorded   time.Time
	payload    []byte
}

func (x *audit) events(ctx context.Context, tx pgx.Tx, kind string, fold func(event, data)) (last int64, err error) {
	rows, err := tx.Query(ctx, `SELECT position, event_id, stream_type, stream_id, version, event_type, correlation_id, recorded_at, payload FROM es_event ORDER BY position`)
	if err != nil {
		return 0, err
	}
	var (
		r        row
		recorded time.Time
	)
	_, err = pgx.ForEachRow(rows, []any{&r.position, &r.id, &r.stream.kind, &r.stream.id, &r.version, &r.kind, &r.corr, &r.recorded, &r.payload}, func() error {
		what := fmt.Sprintf("%s database, position %d", kind, r.position)
		if r.position != last+1 {
			x.wrong("order", what, "follows position %d", last)
		}
		if r.recorded.Before(recorded) {
			x.wrong("order", what, "was recorded at %s, before the one before it (%s)", r.recorded, recorded)
		}
		last, recorded = r.position, r.recorded
		x.event(what, kind, r, fold)
		r.payload = nil
		return nil
	})
	return last, err
}

// event takes one event: its columns say what its JSON says, and its version is the next of its stream.
func (x *audit) event(what, kind string, r row, fold func(event, data)) {
	x.checked("events in the databases", 1)
	var e event
	if err := json.Unmarshal(r.payload, &e); err != nil {
		x.wrong("order", what, "is no event: %v", err)
		return
	}
	if e.ID != r.id.String() || e.stream() != r.stream || e.Version != r.version || e.Type != r.kind || e.CorrelationID != r.corr {
		x.wrong("order", what, "its columns %s %s %d %s differ from its JSON %s", r.id, r.stream, r.version, r.kind, r.payload)
	}
	if e.AggregateType != kind {
		x.wrong("order", what, "is of a %s", e.AggregateType)
	}
	if was := x.versions[e.stream()]; e.Version != was+1 {
		x.wrong("order", e.what(), "follows version %d", was)
	}
	x.versions[e.stream()] = e.Version
	if other := x.published[r.id]; other != nil {
		x.wrong("order", e.what(), "has the id of %s version %d", other.stream, other.version)
	}
	x.published[r.id] = &published{stream: e.stream(), version: e.Version, digest: digest(r.payload)}
	d, err := e.data()
	if err != nil {
		x.wrong("order", e.what(), "its data cannot be read: %v", err)
		return
	}
	fold(e, d)
}

// heads: every stream's head is at its last event, and there is none without events.
func (x *audit) heads(ctx context.Context, tx pgx.Tx, kind string) error {
	heads, err := collect(ctx, tx, `SELECT stream_type, stream_id, version FROM es_head`, func(r pgx.CollectableRow) (s stream, v int64, err error) {
		err = r.Scan(&s.kind, &s.id, &v)
		return s, v, err
	})
	if err != nil {
		return err
	}
	for s, v := range x.versions {
		if s.kind == kind {
			expect(x, "order", s.String(), "the head's version", heads[s], v)
			delete(heads, s)
		}
	}
	for s := range heads {
		x.wrong("order", s.String(), "has a head and no events")
	}
	return nil
}

// outbox: the log ends at the last event, everything up to there is acknowledged by Kafka, and the group commits that are
// remembered cover the log without gaps.
func (x *audit) outbox(ctx context.Context, tx pgx.Tx, kind string, last int64) error {
	var end, relay int64
	if err := tx.QueryRow(ctx, `SELECT es_end(), (SELECT position FROM outbox_relay)`).Scan(&end, &relay); err != nil {
		return err
	}
	expect(x, "order", kind+" database", "the log's end", end, last)
	expect(x, "outbox", kind+" database", "the relay's checkpoint", relay, last)
	rows, err := tx.Query(ctx, `SELECT from_position, to_position, events FROM outbox_batch ORDER BY from_position`)
	if err != nil {
		return err
	}
	var from, to, n, covered int64
	_, err = pgx.ForEachRow(rows, []any{&from, &to, &n}, func() error {
		x.checked("group commits", 1)
		if covered != 0 && from != covered+1 || to-from+1 != n {
			x.wrong("outbox", kind+" database", "the batch of %d events from %d to %d follows %d", n, from, to, covered)
		}
		covered = to
		return nil
	})
	if err == nil && covered != last && last > 0 {
		x.wrong("outbox", kind+" database", "the batches end at %d, the events at %d", covered, last)
	}
	return err
}

// collect reads rows into a map.
func collect[K comparable, V any](ctx context.Context, tx pgx.Tx, sql string, scan func(pgx.CollectableRow) (K, V, error)) (map[K]V, error) {
	rows, err := tx.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	out := map[K]V{}
	defer rows.Close()
	for rows.Next() {
		k, v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out[k] = v
	}
	return out, rows.Err()
}

// ids reads a column of ids.
func ids(ctx context.Context, tx pgx.Tx, sql string) (map[string]bool, error) {
	return collect(ctx, tx, sql, func(r pgx.CollectableRow) (id string, _ bool, err error) {
		err = r.Scan(&id)
		return id, true, err
	})
}
