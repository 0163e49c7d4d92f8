package books

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	espg "example.com/billing/pkg/es/postgres"
)

// RollUpEvery is how often a service moves what commits added.
const RollUpEvery = time.Second

const (
	rollUpMax  = 5000             // rows that one transaction moves
	rollUpTime = 10 * time.Second // for one transaction
	rollUpLock = 5125014          // advisory lock: one roll-up at a time
)

// RollUp moves what commits added into book_total, and returns how many rows it moved. It moves at most 5,000, and none while
// another roll-up is under way. Commits do not wait for it.
func RollUp(ctx context.Context, pool *pgxpool.Pool) (moved int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, rollUpTime)
	defer cancel()
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		var ours bool
		if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, rollUpLock).Scan(&ours); err != nil || !ours {
			return err
		}
		return tx.QueryRow(ctx, `
			WITH moving AS MATERIALIZED (SELECT id FROM book_delta WHERE id > (SELECT up_to FROM book_rolled) ORDER BY id LIMIT $1),
			gone AS (DELETE FROM book_delta WHERE id >= (SELECT min(id) FROM moving) AND id <= (SELECT max(id) FROM moving)
			         RETURNING id, currency, user_total, external_total, system_total, in_transit),
			mark AS (UPDATE book_rolled SET up_to = (SELECT max(id) FROM moving) WHERE EXISTS (SELECT FROM moving)),
			total AS (INSERT INTO book_total AS t (currency, user_total, external_total, system_total, in_transit)
				SELECT currency, sum(user_total), sum(external_total), sum(system_total), sum(in_transit) FROM gone GROUP BY currency ORDER BY currency
				ON CONFLICT (currency) DO UPDATE SET user_total = t.user_total + excluded.user_total,
					external_total = t.external_total + excluded.external_total, system_total = t.system_total + excluded.system_total,
					in_transit = t.in_transit + excluded.in_transit)
			SELECT count(*) FROM gone`, rollUpMax).Scan(&moved)
	})
	return moved, espg.Classify("roll up the books", err)
}

// RollUpAll rolls up until nothing, or only what commits add meanwhile, is left. The books are right without it, and slower to read.
func RollUpAll(ctx context.Context, pool *pgxpool.Pool) error {
	for {
		if moved, err := RollUp(ctx, pool); err != nil || moved < rollUpMax {
			return err
		}
	}
}
