package reconcile

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/services/account"
	"example.com/billing/services/account/readmodel"
)

const (
	pageMax  = 500 // events that one statement reads
	chunkMax = 100 // accounts that one transaction looks at
)

type (
	storedEvent struct {
		accountID  string
		version    int64
		position   int64
		recordedAt time.Time
		payload    []byte
	}
	storedHead struct {
		version         int64 // 0 = there is none
		snapshot        []byte
		snapshotVersion int64
	}
	// look is what one snapshot of the database showed of an account.
	look struct {
		id   string
		head storedHead
		row  *readmodel.Shown // nil = there is none
		end  int64            // the newest event's version
	}
)

// accounts are all accounts, in the order of their ids, or one.
type accounts struct {
	pool     *pgxpool.Pool
	one      string // empty = all
	last     string // chunks behind this one are left
	lastRow  string // the same among the rows of the list, whose ids are UUIDs
	finished bool
}

// next looks at the next accounts, in one short transaction; none at the end. A head, a row and a newest version that one
// snapshot shows fit together. The events up to that version never change, so they are read after it.
func (a *accounts) next(ctx context.Context) (chunk []look, err error) {
	if a.finished {
		return nil, nil
	}
	err = pgx.BeginTxFunc(ctx, a.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		// Before the snapshot is taken, which the first query does: a rebuild of the read model could put in its place a table
		// that this snapshot sees empty.
		if _, err := tx.Exec(ctx, `LOCK TABLE `+readmodel.Table+` IN ACCESS SHARE MODE`); err != nil {
			return err
		}
		ids := []string{a.one}
		if a.finished = a.one != ""; !a.finished {
			if ids, err = a.ids(ctx, tx); err != nil {
				return err
			}
		}
		chunk, err = lookAt(ctx, tx, ids)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look at accounts: %w", err)
	}
	a.finished = a.finished || len(chunk) == 0
	return chunk, nil
}

// ids are the lowest ids behind the last that anything stored names: an event, a head, or a row of the list.
func (a *accounts) ids(ctx context.Context, tx pgx.Tx) ([]string, error) {
	// Each of three has its lowest, so that the lowest of all are among them. Of the events, only one of each stream is read.
	rows, err := tx.Query(ctx, `
		WITH RECURSIVE s AS (
			(SELECT stream_id, 1 AS n FROM es_event WHERE stream_type = $1 AND stream_id > $2 ORDER BY stream_id, version LIMIT 1)
			UNION ALL SELECT (SELECT e.stream_id FROM es_event e WHERE e.stream_type = $1 AND e.stream_id > s.stream_id
				ORDER BY e.stream_id, e.version LIMIT 1), s.n + 1 FROM s WHERE s.stream_id IS NOT NULL AND s.n < $3::int
		)
		SELECT stream_id, false FROM s WHERE stream_id IS NOT NULL
		UNION ALL (SELECT stream_id, false FROM es_head WHERE stream_type = $1 AND stream_id > $2 ORDER BY stream_id LIMIT $3::int)
		UNION ALL (SELECT id::text, true FROM `+readmodel.Table+` WHERE id > $4::uuid ORDER BY id LIMIT $3::int)`,
		account.AggregateType, a.last, chunkMax, a.afterRow())
	if err != nil {
		return nil, err
	}
	var (
		ids  []string
		id   string
		list bool
		of   = map[string]bool{} // ids of rows of the list
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &list}, func() error {
		ids = append(ids, id)
		of[id] = of[id] || list
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	ids = ids[:min(len(ids), chunkMax)]
	for _, id := range ids {
		a.last = id
		if of[id] {
			a.lastRow = id
		}
	}
	return ids, nil
}

func (a *accounts) afterRow() string {
	if a.lastRow == "" {
		return uuid.Nil.String() // which no account has
	}
	return a.lastRow
}

// lookAt reads what there is of these accounts.
func lookAt(ctx context.Context, tx pgx.Tx, ids []string) ([]look, error) {
	chunk, at, shown := make([]look, len(ids)), map[string]*look{}, []string{}
	for i, id := range ids {
		chunk[i].id = id
		at[id] = &chunk[i]
		if _, err := uuid.Parse(id); err == nil {
			shown = append(shown, id)
		}
	}
	b := &pgx.Batch{}
	b.Queue(`SELECT stream_id, version, snapshot, snapshot_version FROM es_head WHERE stream_type = $1 AND stream_id = ANY($2)`,
		account.AggregateType, ids).Query(func(rows pgx.Rows) error {
		var id string
		var h storedHead
		_, err := pgx.ForEachRow(rows, []any{&id, &h.version, &h.snapshot, &h.snapshotVersion}, func() error {
			at[id].head = h
			h.snapshot = nil // the next row gets an array of its own
			return nil
		})
		return err
	})
	b.Queue(`SELECT id, coalesce((SELECT e.version FROM es_event e WHERE e.stream_type = $1 AND e.stream_id = w.id ORDER BY e.version DESC LIMIT 1), 0)
		FROM unnest($2::text[]) AS w(id)`, account.AggregateType, ids).Query(func(rows pgx.Rows) error {
		var id string
		var end int64
		_, err := pgx.ForEachRow(rows, []any{&id, &end}, func() error { at[id].end = end; return nil })
		return err
	})
	b.Queue(`SELECT `+readmodel.ShownColumns+` FROM `+readmodel.Table+` WHERE id = ANY($1::uuid[])`, shown).Query(func(rows pgx.Rows) error {
		all, err := pgx.CollectRows(rows, readmodel.ScanShown)
		for _, r := range all {
			at[r.ID].row = &r
		}
		return err
	})
	return chunk, tx.SendBatch(ctx, b).Close()
}

// events reads the events of a range of accounts, stream by stream, each page by a statement of its own.
type events struct {
	pool     *pgxpool.Pool
	last     string // account up to which it reads
	id       string // what is behind this event is left
	version  int64
	page     []storedEvent
	finished bool
}

// peek returns the next event without taking it; nil at the end.
func (v *events) peek(ctx context.Context) (*storedEvent, error) {
	if len(v.page) == 0 && !v.finished {
		rows, err := v.pool.Query(ctx, `SELECT stream_id, version, position, recorded_at, payload FROM es_event
			WHERE stream_type = $1 AND (stream_id, version) > ($2, $3) AND stream_id <= $4 ORDER BY stream_id, version LIMIT $5`,
			account.AggregateType, v.id, v.version, v.last, pageMax)
		if err != nil {
			return nil, fmt.Errorf("read events: %w", err)
		}
		v.page, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (e storedEvent, err error) {
			err = row.Scan(&e.accountID, &e.version, &e.position, &e.recordedAt, &e.payload)
			return e, err
		})
		if err != nil {
			return nil, fmt.Errorf("read events: %w", err)
		}
		v.finished = len(v.page) < pageMax
		if !v.finished {
			v.id, v.version = v.page[pageMax-1].accountID, v.page[pageMax-1].version
		}
	}
	if len(v.page) == 0 {
		return nil, nil
	}
	return &v.page[0], nil
}

// take takes the event that peek returned.
func (v *events) take() { v.page = v.page[1:] }

// skip goes to the next account. Of the one under check there may be ever more events.
func (v *events) skip(id string) {
	for len(v.page) > 0 && v.page[0].accountID == id {
		v.take()
	}
	if len(v.page) == 0 && !v.finished && v.id == id {
		v.version = versionMax
	}
}

// versionMax is behind any version.
const versionMax = int64(1<<63 - 1)
