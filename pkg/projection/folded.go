package projection

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/jackc/pgx/v5"

	"example.com/billing/pkg/es"
)

// Row is a read model's row: a stream's folded state.
type Row[S any] struct {
	ID      string
	Version int64
	State   S
	Encoded []byte   // State as its snapshot
	First   es.Event // for a new row: the stream's first event, whose metadata tells of its origin
	New     bool
}

// Folded is a Model whose rows hold the state that a decider folds from the stream's events. Its table has the columns id
// uuid, version bigint and state bytea, and whatever Write adds to filter by. Write writes to the table it is told, which is
// another than Table while the model is rebuilt, and never takes a row back to an older version.
type Folded[S, C any] struct {
	Table   string
	Decider *es.Decider[S, C] // with Snapshots
	Write   func(ctx context.Context, tx pgx.Tx, table string, rows []Row[S]) error

	waiting atomic.Int64 // calls of Wait
}

// Open is Model's.
func (f *Folded[S, C]) Open(ctx context.Context, tx pgx.Tx, streams []es.Stream) (Rows, error) {
	roots, err := f.read(ctx, tx, f.Table, streams)
	return foldedRows[S, C]{f, tx, roots}, err
}

// foldedRows are some rows as Open found them.
type foldedRows[S, C any] struct {
	model *Folded[S, C]
	tx    pgx.Tx
	roots map[es.Stream]es.Root[S]
}

// Version is Rows's.
func (r foldedRows[S, C]) Version(s es.Stream) int64 { return r.roots[s].Version }

// Apply is Rows's: each row is folded and written once, however many events it gets.
func (r foldedRows[S, C]) Apply(ctx context.Context, events []es.Event) error {
	streams, byStream := group(events)
	return r.model.fold(ctx, r.tx, r.model.Table, r.roots, streams, byStream)
}

// fold writes the rows of these streams to a table: roots, where they are known, and the events after them.
func (f *Folded[S, C]) fold(ctx context.Context, tx pgx.Tx, table string, roots map[es.Stream]es.Root[S], streams []es.Stream, byStream map[es.Stream][]es.Event) error {
	rows := make([]Row[S], 0, len(streams))
	for _, s := range streams {
		root, known := roots[s]
		if !known || root.Version == Unreadable {
			root = f.Decider.New()
		}
		if err := f.Decider.Replay(&root, byStream[s]...); err != nil {
			return err
		}
		b, err := f.Decider.Snapshots.Take(root.State)
		if err != nil {
			return fmt.Errorf("encode %s: %w", s, err)
		}
		rows = append(rows, Row[S]{ID: s.ID, Version: root.Version, State: root.State, Encoded: b, First: byStream[s][0], New: !known})
	}
	return f.Write(ctx, tx, table, rows)
}

// Scan reads a row of the columns id (as text), version and state.
func (f *Folded[S, C]) Scan(row pgx.CollectableRow) (Row[S], error) {
	var r Row[S]
	if err := row.Scan(&r.ID, &r.Version, &r.Encoded); err != nil {
		return r, err
	}
	var err error
	r.State, err = f.Decider.Snapshots.Restore(r.Encoded)
	return r, err
}

// read reads rows of a table, and locks them in the one that is in use: nobody else writes one that is being made.
func (f *Folded[S, C]) read(ctx context.Context, tx pgx.Tx, table string, streams []es.Stream) (map[es.Stream]es.Root[S], error) {
	ids := make([]string, len(streams))
	for i, s := range streams {
		ids[i] = s.ID
	}
	lock := ""
	if table == f.Table {
		lock = " FOR UPDATE"
	}
	rows, err := tx.Query(ctx, `SELECT id::text, version, state FROM `+table+` WHERE id = ANY($1::uuid[])`+lock, ids)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", table, err)
	}
	roots := make(map[es.Stream]es.Root[S], len(streams))
	var (
		id      string
		version int64
		encoded []byte
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &version, &encoded}, func() error {
		state, err := f.Decider.Snapshots.Restore(encoded)
		if err != nil {
			version = Unreadable // another schema's
		}
		roots[es.Stream{Type: f.Decider.Type, ID: id}] = es.Root[S]{State: state, Version: version}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", table, err)
	}
	return roots, nil
}
