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
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/page"
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
	found, err := s.pool.Query(ctx, `
		INSERT INTO saga_state (saga_id, tenant_id, saga_type, status, revision, created_at, updated_at, state)
		SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::timestamptz[], $7::timestamptz[], $8::bytea[])
		ON CONFLICT DO NOTHING RETURNING saga_id::text`,
		rows.ids, rows.tenants, rows.types, rows.statuses, rows.revisions, rows.created, rows.updated, rows.states)
	if err != nil {
		return nil, espg.Classify("insert sagas", err)
	}
	ids, err := pgx.CollectRows(found, pgx.RowTo[string])
	if err != nil {
		return nil, espg.Classify("insert sagas", err)
	}
	added := make([]saga.State, len(ids))
	for i, id := range ids {
		added[i] = byID[id]
	}
	return added, nil
}

// Save is saga.Store's: one transaction for the group, with the events of the sagas that ended.
//
// If the database refuses the group for a reason that is no conflict, halves of it are tried, until the state at fault
// stands alone.
func (s *Store) Save(ctx context.Context, sagas []saga.State) []error {
	errs := s.save(ctx, sagas)
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

func (s *Store) save(ctx context.Context, sagas []saga.State) []error {
	var (
		items = make([][]es.Append, len(sagas))
		ids   = make([]string, len(sagas))
		have  = make(map[string]int64, len(sagas))
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
	errs := s.events.AppendWith(ctx, items, espg.With{
		Read: func(b *pgx.Batch) {
			b.Queue(`SELECT saga_id::text, revision FROM saga_state WHERE saga_id = ANY($1::uuid[])`, ids).Query(func(rows pgx.Rows) error {
				var (
					id string
					r  int64
				)
				_, err := pgx.ForEachRow(rows, []any{&id, &r}, func() error { have[id] = r; return nil })
				return err
			})
		},
		Write: func(b *pgx.Batch, accepted []int, reject func(int, error)) error {
			newest := make(map[string]saga.State, len(accepted))
			for _, i := range accepted {
				st := sagas[i]
				r, known := have[st.SagaID]
				switch {
				case bad[i] != nil:
					reject(i, bad[i])
				case !known || r != st.Revision:
					reject(i, stale(st))
				default:
					st.Revision++
					have[st.SagaID], newest[st.SagaID] = st.Revision, st
				}
			}
			rows := newRows(len(newest))
			for _, st := range newest {
				if err := rows.add(st); err != nil {
					return err
				}
			}
			b.Queue(`UPDATE saga_state AS g SET status = s, revision = r, updated_at = u, state = d
				FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::timestamptz[], $5::bytea[]) AS x(i, s, r, u, d) WHERE g.saga_id = x.i`,
				rows.ids, rows.statuses, rows.revisions, rows.updated, rows.states)
			return nil
		},
	})
	for i, err := range errs {
		var conflict *es.ConflictError
		if errors.As(err, &conflict) {
			errs[i] = stale(sagas[i]) // another writer has ended it
		}
	}
	return errs
}

func stale(st saga.State) error {
	return fmt.Errorf("save saga %s at revision %d: %w", st.SagaID, st.Revision, saga.ErrStale)
}

// Get is saga.Store's.
func (s *Store) Get(ctx context.Context, id string) (saga.State, error) {
	states, err := s.query(ctx, `SELECT revision, state FROM saga_state WHERE saga_id = $1`, id)
	if err != nil {
		return saga.State{}, espg.Classify("get saga "+id, err)
	}
	if len(states) == 0 {
		return saga.State{}, fmt.Errorf("saga %s: %w", id, saga.ErrNotFound)
	}
	return states[0], nil
}

// List is saga.Store's.
func (s *Store) List(ctx context.Context, f saga.Filter) ([]saga.State, error) {
	before, id := f.Before.Key()
	states, err := s.query(ctx, `SELECT revision, state FROM saga_state
		WHERE tenant_id = $1 AND (created_at, saga_id) < ($2, $3) AND ($4 = '' OR status = $4) AND ($5 = '' OR saga_type = $5)
		ORDER BY created_at DESC, saga_id DESC LIMIT $6`, f.TenantID, before, id, string(f.Status), f.Type, f.Limit)
	if err != nil {
		return nil, espg.Classify("list sagas", err)
	}
	return states, nil
}

// Unfinished is saga.Store's.
func (s *Store) Unfinished(ctx context.Context, idle time.Duration, after page.Cursor, limit int) ([]saga.State, error) {
	behind := after.ID
	if behind == "" {
		behind = uuid.Nil.String()
	}
	states, err := s.query(ctx, `SELECT revision, state FROM saga_state
		WHERE status IN ('in_progress', 'compensating') AND ($1 OR updated_at <= $2) AND (created_at, saga_id) > ($3, $4)
		ORDER BY created_at, saga_id LIMIT $5`, idle == 0, time.Now().Add(-idle), after.CreatedAt, behind, limit)
	if err != nil {
		return nil, espg.Classify("read unfinished sagas", err)
	}
	return states, nil
}

func (s *Store) query(ctx context.Context, sql string, args ...any) ([]saga.State, error) {
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (saga.State, error) {
		var (
			st       saga.State
			revision int64
			b        []byte
		)
		if err := row.Scan(&revision, &b); err != nil {
			return st, err
		}
		if err := json.Unmarshal(b, &st); err != nil {
			return st, fmt.Errorf("decode state: %w", err)
		}
		st.Revision = revision
		return st, nil
	})
}

// rows are states as arrays for one multi-row statement.
type rows struct {
	ids, tenants, types, statuses []string
	revisions                     []int64
	created, updated              []time.Time
	states                        [][]byte
}

func newRows(n int) *rows {
	return &rows{ids: make([]string, 0, n), states: make([][]byte, 0, n)}
}

func (r *rows) add(st saga.State) error {
	b, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("encode saga %s: %w", st.SagaID, err)
	}
	r.ids, r.tenants = append(r.ids, st.SagaID), append(r.tenants, st.TenantID())
	r.types, r.statuses = append(r.types, st.SagaType), append(r.statuses, string(st.Status))
	r.revisions, r.created, r.updated = append(r.revisions, st.Revision), append(r.created, st.CreatedAt), append(r.updated, st.UpdatedAt)
	r.states = append(r.states, b)
	return nil
}

var _ saga.Store = (*Store)(nil)
