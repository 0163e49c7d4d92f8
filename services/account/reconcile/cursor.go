package reconcile

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"example.com/billing/services/account"
	"example.com/billing/services/account/readmodel"
)

// pageMax is how many rows a cursor fetches at once.
const pageMax = 500

// cursor reads a query's rows one after the other, of any number in bounded memory. Several may be open in a transaction.
type cursor[T any] struct {
	tx   pgx.Tx
	name string
	scan pgx.RowToFunc[T]
	page []T
	end  bool
}

func open[T any](ctx context.Context, tx pgx.Tx, name string, scan pgx.RowToFunc[T], sql string, args ...any) (*cursor[T], error) {
	if _, err := tx.Exec(ctx, `DECLARE `+name+` NO SCROLL CURSOR FOR `+sql, args...); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return &cursor[T]{tx: tx, name: name, scan: scan}, nil
}

// peek returns the next row without taking it; nil at the end.
func (c *cursor[T]) peek(ctx context.Context) (*T, error) {
	if len(c.page) == 0 && !c.end {
		rows, err := c.tx.Query(ctx, fmt.Sprintf(`FETCH %d FROM %s`, pageMax, c.name), pgx.QueryExecModeDescribeExec)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", c.name, err)
		}
		if c.page, err = pgx.AppendRows(c.page[:0], rows, c.scan); err != nil {
			return nil, fmt.Errorf("read %s: %w", c.name, err)
		}
		c.end = len(c.page) < pageMax
	}
	if len(c.page) == 0 {
		return nil, nil
	}
	return &c.page[0], nil
}

// take takes the row that peek returned.
func (c *cursor[T]) take() { c.page = c.page[1:] }

// The rows of the three tables that are walked through side by side.
type (
	storedEvent struct {
		accountID  string
		version    int64
		position   int64
		recordedAt time.Time
		payload    []byte
	}
	storedHead struct {
		accountID       string
		version         int64
		snapshot        []byte
		snapshotVersion int64
	}
)

// sources are the three tables, each by account.
type sources struct {
	events *cursor[storedEvent]
	heads  *cursor[storedHead]
	rows   *cursor[readmodel.Shown]
}

// openSources opens the cursors on one account, or all if it is empty.
func openSources(ctx context.Context, tx pgx.Tx, accountID string) (s sources, err error) {
	var ofStream, ofRow string
	ofType, one := []any{account.AggregateType}, []any(nil)
	if accountID != "" {
		ofStream, ofRow = ` AND stream_id = $2`, ` WHERE id = $1`
		ofType, one = append(ofType, accountID), append(one, accountID)
	}
	s.events, err = open(ctx, tx, "events", func(row pgx.CollectableRow) (e storedEvent, err error) {
		err = row.Scan(&e.accountID, &e.version, &e.position, &e.recordedAt, &e.payload)
		return e, err
	}, `SELECT stream_id, version, position, recorded_at, payload FROM es_event WHERE stream_type = $1`+ofStream+` ORDER BY stream_id, version`, ofType...)
	if err != nil {
		return s, err
	}
	s.heads, err = open(ctx, tx, "heads", func(row pgx.CollectableRow) (h storedHead, err error) {
		err = row.Scan(&h.accountID, &h.version, &h.snapshot, &h.snapshotVersion)
		return h, err
	}, `SELECT stream_id, version, snapshot, snapshot_version FROM es_head WHERE stream_type = $1`+ofStream+` ORDER BY stream_id`, ofType...)
	if err != nil {
		return s, err
	}
	s.rows, err = open(ctx, tx, "rows", readmodel.ScanShown,
		`SELECT `+readmodel.ShownColumns+` FROM `+readmodel.Table+ofRow+` ORDER BY id`, one...)
	return s, err
}

// next returns the lowest account that any of the tables has more of; empty at the end.
func (s sources) next(ctx context.Context) (string, error) {
	lowest := ""
	see := func(id string) {
		if lowest == "" || id < lowest {
			lowest = id
		}
	}
	if e, err := s.events.peek(ctx); err != nil {
		return "", err
	} else if e != nil {
		see(e.accountID)
	}
	if h, err := s.heads.peek(ctx); err != nil {
		return "", err
	} else if h != nil {
		see(h.accountID)
	}
	if r, err := s.rows.peek(ctx); err != nil {
		return "", err
	} else if r != nil {
		see(r.ID)
	}
	return lowest, nil
}
