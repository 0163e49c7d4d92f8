package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/saga"
)

// Lease is saga.Store's.
func (s *Store) Lease(ctx context.Context, owner string, epoch int64, ttl time.Duration) (int64, error) {
	sql, args := `INSERT INTO saga_engine (owner, leased_until, lasts) VALUES ($1, clock_timestamp() + $2::interval, $2::interval)
		RETURNING epoch`, []any{owner, ttl}
	if epoch != 0 {
		sql, args = `UPDATE saga_engine SET leased_until = clock_timestamp() + $2::interval, lasts = $2::interval
			WHERE epoch = $3 AND owner = $1 RETURNING epoch`, []any{owner, ttl, epoch}
	}
	err := s.pool.QueryRow(ctx, sql, args...).Scan(&epoch)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, fmt.Errorf("renew the lease of epoch %d: %w", epoch, saga.ErrFenced)
	}
	if err != nil {
		return 0, espg.Classify("lease", err)
	}
	return epoch, nil
}

// Release is saga.Store's.
func (s *Store) Release(ctx context.Context, epoch int64) error {
	if _, err := s.pool.Exec(ctx, `DELETE FROM saga_engine WHERE epoch = $1`, epoch); err != nil {
		return espg.Classify("release the lease", err)
	}
	return nil
}

// unfinished are the sagas that do not rest. The few that are open are looked up one by one (hence OFFSET 0): to the planner, which
// counts a table now and then, they are many where there were many a while ago.
const unfinished = ` FROM saga_open o, LATERAL (SELECT * FROM saga_state g WHERE g.saga_id = o.saga_id OFFSET 0) s
	WHERE status IN ('in_progress', 'compensating')`

// claimable are unfinished sagas that no living engine works on, and that do not sleep.
const claimable = unfinished + ` AND (wake_at IS NULL OR wake_at <= clock_timestamp())
	AND NOT EXISTS (SELECT FROM saga_engine e WHERE e.epoch = s.epoch)
	AND EXISTS (SELECT FROM unnest($1::text[], $2::int[]) AS k(t, v) WHERE k.t = s.saga_type AND k.v = s.definition)`

// endLeases ends the leases that were not renewed in time, and those that end later than a lease of their length can: the clock that
// wrote them was ahead, and they would keep their sagas from everybody for as long as it was. An engine that lives begins another.
const endLeases = `DELETE FROM saga_engine WHERE leased_until < clock_timestamp()
	OR leased_until > clock_timestamp() + coalesce(lasts, interval '1 minute')`

// Claim is saga.Store's. It takes sagas under the lock of the log, as Save writes them: a write that found a saga its own is
// committed before the saga is another's.
func (s *Store) Claim(ctx context.Context, epoch int64, kinds []saga.DefinitionID, limit int) (claimed []saga.State, err error) {
	types, versions := make([]string, len(kinds)), make([]int, len(kinds))
	for i, k := range kinds {
		types[i], versions[i] = k.Type, k.Version
	}
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, endLeases); err != nil {
			return err
		}
		var some bool
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT`+claimable+`)`, types, versions).Scan(&some); err != nil || !some {
			return err
		}
		if _, err := tx.Exec(ctx, espg.LockLog); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `WITH mine AS (SELECT o.saga_id`+claimable+` ORDER BY o.created_at, o.saga_id LIMIT $3)
			UPDATE saga_state g SET epoch = $4 FROM mine WHERE g.saga_id = mine.saga_id RETURNING g.revision, g.epoch, g.state`, types, versions, limit, epoch)
		if err != nil {
			return err
		}
		claimed, err = pgx.CollectRows(rows, scan)
		return err
	})
	if err != nil {
		return nil, espg.Classify("claim sagas", err)
	}
	slices.SortFunc(claimed, func(a, b saga.State) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.SagaID, b.SagaID))
	})
	return claimed, nil
}
