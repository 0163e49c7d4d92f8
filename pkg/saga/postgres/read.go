package postgres

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/page"
	"example.com/billing/pkg/saga"
)

// Get is saga.Store's.
func (s *Store) Get(ctx context.Context, id string) (saga.State, error) {
	states, err := s.query(ctx, `SELECT revision, epoch, state FROM saga_state WHERE saga_id = $1`, id)
	if err != nil {
		return saga.State{}, espg.Classify("get saga "+id, err)
	}
	if len(states) == 0 {
		return saga.State{}, fmt.Errorf("saga %s: %w", id, saga.ErrNotFound)
	}
	return states[0], nil
}

// Known is saga.Store's.
func (s *Store) Known(ctx context.Context, ids []string) ([]string, error) {
	rows, err := s.pool.Query(ctx, `SELECT saga_id::text FROM saga_state WHERE saga_id = ANY($1::uuid[])`, ids)
	if err != nil {
		return nil, espg.Classify("look for sagas", err)
	}
	known, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return known, espg.Classify("look for sagas", err)
}

// EndedOrOwned is saga.Store's.
func (s *Store) EndedOrOwned(ctx context.Context, epoch int64, ids []string) ([]saga.State, error) {
	states, err := s.query(ctx, `SELECT revision, epoch, state FROM saga_state WHERE saga_id = ANY($1::uuid[])
		AND (status IN ('completed', 'compensated', 'failed') OR epoch = $2 AND status IN ('in_progress', 'compensating'))`, ids, epoch)
	if err != nil {
		return nil, espg.Classify("read sagas", err)
	}
	return states, nil
}

// selected is the condition of a filter, but for its page, and its arguments.
const selected = `tenant_id = $1 AND ($2 = '' OR status = $2) AND ($3 = '' OR saga_type = $3) AND ($4 = '' OR subjects @> ARRAY[$4])
	AND ($5 = '' OR error_reason = $5) AND created_at >= $6 AND created_at < coalesce($7, 'infinity'::timestamptz)`

func arguments(f saga.Filter) []any {
	return []any{f.TenantID, string(f.Status), f.Type, f.Subject, f.ErrorReason, f.Since, given(f.Until)}
}

// source is where a filter's sagas are looked for: where it asks for what only some have, among those. Their columns have the names of
// saga_state's; $4 is the subject.
type source struct {
	from  string // tables, and a condition
	order string // columns that order them as they were created
}

// stateOf is the row of a saga. The planner is kept from looking for it in any other way.
func stateOf(id string) string {
	return `, LATERAL (SELECT * FROM saga_state g WHERE g.saga_id = ` + id + ` OFFSET 0) s WHERE `
}

func sourceOf(f saga.Filter) source {
	switch {
	case f.Status != "" && !f.Status.Ended():
		return source{`(SELECT saga_id AS open_id FROM saga_open) o` + stateOf("open_id"), `created_at, saga_id`}
	case f.Subject != "":
		return source{`saga_subject j` + stateOf("j.id") + `j.subject = $4 AND `, `started_at, id`}
	case f.Status == saga.Failed || f.Status == saga.Compensated:
		return source{`saga_state WHERE not_completed AND `, `created_at, saga_id`}
	}
	return source{`saga_state WHERE `, `created_at, saga_id`}
}

// List is saga.Store's.
func (s *Store) List(ctx context.Context, f saga.Filter) ([]saga.State, error) {
	before, id := f.Before.Key()
	of := sourceOf(f)
	states, err := s.query(ctx, `SELECT revision, epoch, state FROM `+of.from+selected+` AND (`+of.order+`) < ($8, $9)
		ORDER BY `+strings.ReplaceAll(of.order, ",", " DESC,")+` DESC LIMIT $10`, append(arguments(f), before, id, f.Limit)...)
	if err != nil {
		return nil, espg.Classify("list sagas", err)
	}
	return states, nil
}

// Count is saga.Store's.
func (s *Store) Count(ctx context.Context, f saga.Filter) ([]saga.Count, error) {
	rows, err := s.pool.Query(ctx, `SELECT saga_type, status, coalesce(error_reason, ''), count(*), min(created_at) FROM `+sourceOf(f).from+selected+`
		GROUP BY 1, 2, 3 ORDER BY 1, 2, 3`, arguments(f)...)
	if err != nil {
		return nil, espg.Classify("count sagas", err)
	}
	counts, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c saga.Count, err error) {
		err = row.Scan(&c.Type, &c.Status, &c.ErrorReason, &c.Sagas, &c.Oldest)
		c.Oldest = c.Oldest.UTC()
		return c, err
	})
	if err != nil {
		return nil, espg.Classify("count sagas", err)
	}
	return counts, nil
}

// Unfinished is saga.Store's.
func (s *Store) Unfinished(ctx context.Context, epoch int64, idle time.Duration, after page.Cursor, limit int) ([]page.Cursor, error) {
	behind := after.ID
	if behind == "" {
		behind = uuid.Nil.String()
	}
	rows, err := s.pool.Query(ctx, `SELECT o.created_at, o.saga_id::text`+unfinished+` AND epoch = $1 AND ($2 OR updated_at <= $3) AND (o.created_at, o.saga_id) > ($4, $5)
		ORDER BY o.created_at, o.saga_id LIMIT $6`, epoch, idle == 0, time.Now().Add(-idle), after.CreatedAt, behind, limit)
	if err != nil {
		return nil, espg.Classify("read unfinished sagas", err)
	}
	places, err := pgx.CollectRows(rows, pgx.RowToStructByPos[page.Cursor])
	return places, espg.Classify("read unfinished sagas", err)
}
