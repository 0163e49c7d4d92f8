// Package parking is what a person sees of parked lanes and does about them. A lane is a sequence that must keep its order,
// such as one aggregate's stream: what cannot pass is parked there, and whatever comes behind it waits. Packages outbox and
// inbox each keep a table of such rows, and decide what is parked; the columns that this package reads are the same in both.
package parking

import (
	"context"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/page"
)

// The statuses of what was parked.
const (
	Parked    = "parked"    // waits for a person
	Requeued  = "requeued"  // a person sent it on its way; done once it is through
	Discarded = "discarded" // a person decided that it is never handled
)

// ErrUnknown is returned for an id that nothing parked has.
var ErrUnknown = errors.New("nothing parked has this id")

// ErrDone is returned when what is to be discarded is through already, or may be at any moment: it is on its way.
var ErrDone = errors.New("it is done already, or on its way")

// errorMax is how much of an error is kept, in characters.
const errorMax = 1000

// Row is one parked event or message.
type Row struct {
	ID            string
	Subscription  string // empty for what goes out
	EventID       string // empty where the message could not be read
	EventType     string
	AggregateType string
	AggregateID   string
	Version       int64
	Attempts      int64  // 0 = it waits behind another one
	LastError     string // empty = it waits behind another one
	ParkedAt      time.Time
	Status        string
	DecidedAt     time.Time // when a person requeued or discarded it; zero = nobody did
	DecidedBy     string
	Reason        string
	DoneAt        time.Time // when it was through, or discarded; zero = it still waits
}

// Filter selects rows, newest first.
type Filter struct {
	Before page.Cursor
	Limit  int
}

// Counts is how much waits in parked lanes.
type Counts struct {
	Rows   int64
	Lanes  int64
	Oldest time.Duration // since the oldest was parked
}

// Lanes is one table of parked rows.
type Lanes struct {
	Pool  *pgxpool.Pool
	Table string
	// Key is the columns that make a lane.
	Key string
	// Subscription is the expression of Row.Subscription, EventID that of Row.EventID.
	Subscription, EventID string
	// Lock begins every decision: a statement that keeps out whoever parks. Without it a row parked at the same moment would
	// stay behind when its lane is requeued.
	Lock string
}

func (l Lanes) columns() string {
	return `id::text, ` + l.Subscription + `, coalesce(` + l.EventID + `::text, ''), event_type, stream_type, stream_id, version, attempts,
		coalesce(last_error, ''), parked_at, status, decided_at, coalesce(decided_by, ''), coalesce(decided_reason, ''), done_at`
}

// List returns rows, newest first.
func (l Lanes) List(ctx context.Context, f Filter) ([]Row, error) {
	at, id := f.Before.Key()
	rows, err := l.Pool.Query(ctx, `SELECT `+l.columns()+` FROM `+l.Table+` WHERE (parked_at, id) < ($1, $2) ORDER BY parked_at DESC, id DESC LIMIT $3`, at, id, f.Limit)
	if err != nil {
		return nil, espg.Classify("list "+l.Table, err)
	}
	found, err := pgx.CollectRows(rows, scan)
	return found, espg.Classify("list "+l.Table, err)
}

func scan(row pgx.CollectableRow) (Row, error) {
	var (
		r             Row
		decided, done *time.Time
	)
	err := row.Scan(&r.ID, &r.Subscription, &r.EventID, &r.EventType, &r.AggregateType, &r.AggregateID, &r.Version, &r.Attempts,
		&r.LastError, &r.ParkedAt, &r.Status, &decided, &r.DecidedBy, &r.Reason, &done)
	r.ParkedAt = r.ParkedAt.UTC()
	if decided != nil {
		r.DecidedAt = decided.UTC()
	}
	if done != nil {
		r.DoneAt = done.UTC()
	}
	return r, err
}

// Count counts what waits, whether a person has requeued it or not.
func (l Lanes) Count(ctx context.Context) (Counts, error) {
	var (
		c      Counts
		oldest float64
	)
	err := l.Pool.QueryRow(ctx, `SELECT count(*), count(DISTINCT (`+l.Key+`)), coalesce(extract(epoch FROM clock_timestamp() - min(parked_at)), 0)::float8
		FROM `+l.Table+` WHERE done_at IS NULL`).Scan(&c.Rows, &c.Lanes, &oldest)
	c.Oldest = time.Duration(max(oldest, 0) * float64(time.Second))
	return c, espg.Classify("count "+l.Table, err)
}

// Waiting counts the rows that wait, and nothing else about them: by an index alone, also where there are very many.
func (l Lanes) Waiting(ctx context.Context) (n int64, err error) {
	err = l.Pool.QueryRow(ctx, `SELECT count(*) FROM `+l.Table+` WHERE done_at IS NULL`).Scan(&n)
	return n, espg.Classify("count "+l.Table, err)
}

// Requeue sends a row's whole lane on its way again, in order, and returns the row and how many rows were sent. A lane that is
// on its way already, and a row that is through, stay as they are. Errors: ErrUnknown.
func (l Lanes) Requeue(ctx context.Context, id, by, reason string) (Row, int64, error) {
	var n int64
	row, err := l.decide(ctx, "requeue", id, func(tx pgx.Tx, _ Row) error {
		tag, err := tx.Exec(ctx, `UPDATE `+l.Table+` SET status = $4, decided_at = clock_timestamp(), decided_by = $2, decided_reason = $3
			WHERE (`+l.Key+`) = (SELECT `+l.Key+` FROM `+l.Table+` WHERE id = $1 AND done_at IS NULL) AND done_at IS NULL AND status = $5`,
			id, by, Text(reason), Requeued, Parked)
		n = tag.RowsAffected()
		return err
	})
	return row, n, err
}

// Discard takes one row out of its lane for good; the row stays for the record, and what is behind it waits on. A row that was
// discarded before stays as it is. One on its way may just be handled, and cannot be discarded unless it comes back. Errors:
// ErrUnknown; ErrDone where it is through or on its way.
func (l Lanes) Discard(ctx context.Context, id, by, reason string) (Row, error) {
	return l.decide(ctx, "discard", id, func(tx pgx.Tx, r Row) error {
		if r.Status == Requeued || r.Status != Discarded && !r.DoneAt.IsZero() {
			return ErrDone
		}
		_, err := tx.Exec(ctx, `UPDATE `+l.Table+` SET status = $4, decided_at = clock_timestamp(), decided_by = $2, decided_reason = $3,
			done_at = clock_timestamp() WHERE id = $1 AND done_at IS NULL`, id, by, Text(reason), Discarded)
		return err
	})
}

// decide changes rows while nobody parks, and returns the one with this id as it is then.
func (l Lanes) decide(ctx context.Context, what, id string, change func(tx pgx.Tx, before Row) error) (Row, error) {
	var row Row
	err := pgx.BeginFunc(ctx, l.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, l.Lock); err != nil {
			return err
		}
		var err error
		if row, err = l.get(ctx, tx, id); err != nil {
			return err
		}
		if err := change(tx, row); err != nil {
			return err
		}
		row, err = l.get(ctx, tx, id)
		return err
	})
	if errors.Is(err, ErrUnknown) || errors.Is(err, ErrDone) {
		return row, err
	}
	return row, espg.Classify(what+" "+l.Table, err)
}

// Get returns a row. Errors: ErrUnknown.
func (l Lanes) Get(ctx context.Context, id string) (Row, error) {
	row, err := l.get(ctx, l.Pool, id)
	if errors.Is(err, ErrUnknown) {
		return row, err
	}
	return row, espg.Classify("read "+l.Table, err)
}

func (l Lanes) get(ctx context.Context, from interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}, id string) (Row, error) {
	rows, err := from.Query(ctx, `SELECT `+l.columns()+` FROM `+l.Table+` WHERE id = $1`, id)
	if err != nil {
		return Row{}, err
	}
	row, err := pgx.CollectExactlyOneRow(rows, scan)
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrUnknown
	}
	return row, err
}

// Clean forgets what was done longer ago than keep.
func (l Lanes) Clean(ctx context.Context, keep time.Duration) (int64, error) {
	tag, err := l.Pool.Exec(ctx, `DELETE FROM `+l.Table+` WHERE done_at < clock_timestamp() - $1::interval`, keep)
	return tag.RowsAffected(), espg.Classify("clean up "+l.Table, err)
}

// Text makes text from outside, such as a part of a message or an error that quotes one, fit for a column: UTF-8 without NUL,
// of bounded length.
func Text(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if utf8.RuneCountInString(s) > errorMax {
		s = string([]rune(s)[:errorMax])
	}
	return s
}
