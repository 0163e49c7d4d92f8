// Package postgres keeps saga states in PostgreSQL, in the database of the service's event store: a saga's last state and
// its event commit together.
package postgres

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/failpoint"
	"example.com/billing/pkg/saga"
)

// Migrations are the package's tables; see package migrate.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// MigrationsTable records which of Migrations were applied.
const MigrationsTable = "saga_migration"

// Store is a saga.Store. Safe for concurrent use, and beside other processes on the same database.
type Store struct {
	pool   *pgxpool.Pool
	events *espg.Store
	ended  func(saga.State) (es.Event, error)
}

// New makes a store. ended makes the event that tells of a saga's end.
func New(pool *pgxpool.Pool, events *espg.Store, ended func(saga.State) (es.Event, error)) *Store {
	return &Store{pool: pool, events: events, ended: ended}
}

// Insert is saga.Store's.
func (s *Store) Insert(ctx context.Context, sagas []saga.State) ([]saga.State, error) {
	byID := make(map[string]saga.State, len(sagas))
	rows := newRows(len(sagas))
	for _, st := range sagas {
		if _, twice := byID[st.SagaID]; twice {
			continue
		}
		st.Revision = 1
		byID[st.SagaID] = st
		if err := rows.add(st); err != nil {
			return nil, err
		}
	}
	failpoint.Hit("saga.before_insert")
	found, err := s.pool.Query(ctx, `
		WITH added AS (
			INSERT INTO saga_state (saga_id, tenant_id, saga_type, definition, status, revision, epoch, created_at, updated_at, state, subjects)
			SELECT i, t, y, v, s, r, e, c, u, d, string_to_array(b, ' ')
			FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::timestamptz[], $8::timestamptz[], $9::bytea[], $10::text[], $11::int[])
			AS x(i, t, y, s, r, e, c, u, d, b, v) ORDER BY i
			ON CONFLICT DO NOTHING RETURNING saga_id, created_at, status, subjects
		), opened AS (
			INSERT INTO saga_open SELECT saga_id, created_at FROM added WHERE status IN `+openStatuses+`
		), found_by AS (
			INSERT INTO saga_subject SELECT unnest(subjects), created_at, saga_id FROM added ON CONFLICT DO NOTHING
		)
		SELECT saga_id::text FROM added`,
		rows.ids, rows.tenants, rows.types, rows.statuses, rows.revisions, rows.epochs, rows.created, rows.updated, rows.states, rows.subjects, rows.versions)
	if err != nil {
		return nil, espg.Classify("insert sagas", err)
	}
	ids, err := pgx.CollectRows(found, pgx.RowTo[string])
	failpoint.Hit("saga.after_insert")
	if err != nil {
		return nil, espg.Classify("insert sagas", err)
	}
	isNew := make(map[string]bool, len(ids))
	for _, id := range ids {
		isNew[id] = true
	}
	added := make([]saga.State, 0, len(ids))
	for _, st := range sagas { // in their order, which the database does not keep
		if isNew[st.SagaID] {
			added = append(added, byID[st.SagaID])
			delete(isNew, st.SagaID)
		}
	}
	return added, nil
}

// Save is saga.Store's: one transaction for the group, with the events of the sagas that ended.
//
// If the database refuses the group for a reason that is no conflict, halves of it are tried, until the state at fault
// stands alone.
func (s *Store) Save(ctx context.Context, sagas []saga.State) []error {
	errs := s.save(ctx, sagas, true)
	if slices.Contains(errs, nil) {
		return errs // the group was committed
	}
	for _, err := range errs {
		var (
			unavailable *es.UnavailableError
			conflict    *es.ConflictError
			duplicate   *es.DuplicateError
		)
		if err == nil || len(sagas) == 1 || errors.Is(err, saga.ErrStale) || errors.As(err, &unavailable) || errors.As(err, &conflict) || errors.As(err, &duplicate) {
			continue
		}
		half := len(sagas) / 2
		return append(s.Save(ctx, sagas[:half]), s.Save(ctx, sagas[half:])...)
	}
	return errs
}

// Override is saga.Store's.
func (s *Store) Override(ctx context.Context, st saga.State) error {
	return s.save(ctx, []saga.State{st}, false)[0]
}

// held is what a stored saga is written under.
type held struct{ revision, epoch int64 }

// save writes a group. Unless owned, the epoch that a saga belongs to does not matter, and it belongs to nobody from then on.
func (s *Store) save(ctx context.Context, sagas []saga.State, owned bool) []error {
	var (
		items = make([][]es.Append, len(sagas))
		ids   = make([]string, len(sagas))
		have  = make(map[string]held, len(sagas))
		bad   = map[int]error{} // sagas whose event cannot be made
	)
	for i, st := range sagas {
		ids[i] = st.SagaID
		if !st.Status.Ended() {
			continue
		}
		e, err := s.ended(st)
		if err != nil {
			bad[i] = fmt.Errorf("event of saga %s: %w", st.SagaID, err)
			continue
		}
		items[i] = []es.Append{{Stream: e.Stream, Events: []es.Event{e}}}
	}
	failpoint.Hit("saga.before_save")
	errs := s.events.AppendWith(ctx, items, espg.With{
		Read: func(b *pgx.Batch) {
			b.Queue(`SELECT saga_id::text, revision, epoch FROM saga_state WHERE saga_id = ANY($1::uuid[])`, ids).Query(func(rows pgx.Rows) error {
				var (
					id string
					h  held
				)
				_, err := pgx.ForEachRow(rows, []any{&id, &h.revision, &h.epoch}, func() error { have[id] = h; return nil })
				return err
			})
		},
		Write: func(b *pgx.Batch, accepted []int, reject func(int, error)) error {
			newest := make(map[string]saga.State, len(accepted))
			for _, i := range accepted {
				st := sagas[i]
				h, known := have[st.SagaID]
				switch {
				case bad[i] != nil:
					reject(i, bad[i])
				case !known || h.revision != st.Revision || owned && h.epoch != st.Epoch:
					reject(i, stale(st))
				default:
					if !owned {
						st.Epoch = 0
					}
					st.Revision, st.Epoch = st.Revision+1, st.OwnerStored()
					have[st.SagaID], newest[st.SagaID] = held{st.Revision, st.Epoch}, st
				}
			}
			rows := newRows(len(newest))
			for _, st := range newest {
				if err := rows.add(st); err != nil {
					return err
				}
			}
			b.Queue(updateSagas, rows.args()...)
			rows.queueOpen(b)
			return nil
		},
		Once: func(b *pgx.Batch, accepted []int) (bool, error) {
			if !owned || len(bad) > 0 || len(accepted) < len(sagas) {
				return false, nil
			}
			seen := make(map[string]bool, len(sagas))
			rows, epochs := newRows(len(sagas)), make([]int64, 0, len(sagas))
			for _, st := range sagas {
				if seen[st.SagaID] {
					return false, nil // one behind the other
				}
				seen[st.SagaID] = true
				epochs = append(epochs, st.Epoch)
				st.Revision, st.Epoch = st.Revision+1, st.OwnerStored()
				if err := rows.add(st); err != nil {
					return false, err
				}
			}
			b.Queue(`WITH written AS (`+updateSagas+` AND g.revision = x.r - 1 AND g.epoch = ($9::bigint[])[x.n] RETURNING 1)
				SELECT es_require(count(*) = $10) FROM written`, append(rows.args(), epochs, len(sagas))...)
			rows.queueOpen(b)
			return true, nil
		},
	})
	failpoint.Hit("saga.after_save")
	for i, err := range errs {
		var (
			conflict  *es.ConflictError
			duplicate *es.DuplicateError
		)
		if errors.As(err, &conflict) || errors.As(err, &duplicate) {
			errs[i] = stale(sagas[i]) // another writer has ended it
		}
	}
	return errs
}

// updateSagas writes states as rows.args has them.
const updateSagas = `UPDATE saga_state AS g SET status = s, revision = r, epoch = e, updated_at = u, state = d, error_reason = f, wake_at = w
	FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[], $5::timestamptz[], $6::bytea[], $7::text[], $8::timestamptz[])
	WITH ORDINALITY AS x(i, s, r, e, u, d, f, w, n) WHERE g.saga_id = x.i`

// openStatuses are those of sagas that have a row in saga_open.
const openStatuses = `('in_progress', 'compensating', 'needs_attention')`

// queueOpen keeps saga_open in step with the states.
func (r *rows) queueOpen(b *pgx.Batch) {
	if len(r.ended) > 0 {
		b.Queue(`DELETE FROM saga_open WHERE saga_id = ANY($1::uuid[])`, r.ended)
	}
	if len(r.ended) < len(r.ids) {
		b.Queue(`INSERT INTO saga_open SELECT i, c FROM unnest($1::uuid[], $2::timestamptz[], $3::text[]) AS x(i, c, s) WHERE s IN `+openStatuses+`
			ON CONFLICT DO NOTHING`, r.ids, r.created, r.statuses)
	}
}

func (r *rows) args() []any {
	return []any{r.ids, r.statuses, r.revisions, r.epochs, r.updated, r.states, r.reasons, r.wakes}
}

func stale(st saga.State) error {
	return fmt.Errorf("save saga %s at revision %d of epoch %d: %w", st.SagaID, st.Revision, st.Epoch, saga.ErrStale)
}

func (s *Store) query(ctx context.Context, sql string, args ...any) ([]saga.State, error) {
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}

// scan reads a row of revision, epoch and state.
func scan(row pgx.CollectableRow) (saga.State, error) {
	var (
		st saga.State
		h  held
		b  []byte
	)
	if err := row.Scan(&h.revision, &h.epoch, &b); err != nil {
		return st, err
	}
	if err := json.Unmarshal(b, &st); err != nil {
		return st, fmt.Errorf("decode state: %w", err)
	}
	st.Revision, st.Epoch = h.revision, h.epoch
	return st, nil
}

// rows are states as arrays for one multi-row statement.
type rows struct {
	ids, tenants, types, statuses, subjects []string
	ended                                   []string  // those of ids that have
	reasons                                 []*string // nil = nothing failed
	revisions, epochs                       []int64
	versions                                []int // of the definition
	created, updated                        []time.Time
	wakes                                   []*time.Time // nil = it does not sleep
	states                                  [][]byte
}

func newRows(n int) *rows {
	return &rows{ids: make([]string, 0, n), states: make([][]byte, 0, n)}
}

func (r *rows) add(st saga.State) error {
	b, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("encode saga %s: %w", st.SagaID, err)
	}
	if st.Status.Ended() {
		r.ended = append(r.ended, st.SagaID)
	}
	r.ids, r.tenants = append(r.ids, st.SagaID), append(r.tenants, st.TenantID())
	r.types, r.statuses, r.versions = append(r.types, st.SagaType), append(r.statuses, string(st.Status)), append(r.versions, st.Definition)
	r.revisions, r.created, r.updated = append(r.revisions, st.Revision), append(r.created, st.CreatedAt), append(r.updated, st.UpdatedAt)
	r.states, r.epochs, r.subjects = append(r.states, b), append(r.epochs, st.Epoch), append(r.subjects, strings.Join(st.Subjects, " "))
	r.reasons, r.wakes = append(r.reasons, given(st.ErrorReason)), append(r.wakes, given(st.WakeAt))
	return nil
}

// given is nil for what is not there.
func given[T comparable](v T) *T {
	var none T
	if v == none {
		return nil
	}
	return &v
}

var _ saga.Store = (*Store)(nil)
