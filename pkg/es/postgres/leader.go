package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Leader is who leads an event store that has one leader, and where it serves.
type Leader struct {
	Holder  string // a process
	Address string // of its gRPC
}

// Lead takes or renews the leadership for a process, unless another one's has not ended, and returns who leads. It only says whose turn it
// is: what keeps two leaders apart is the store. All processes use the same ttl. A lease that ends later than a ttl from now was written
// by a wrong clock. It is void: it would block everybody for as long as that clock was wrong. No clock writes infinity.
func Lead(ctx context.Context, pool *pgxpool.Pool, me Leader, ttl time.Duration) (now Leader, err error) {
	err = pool.QueryRow(ctx, `WITH led AS (
		    UPDATE es_leader SET holder = $1, address = $2, leased_until = clock_timestamp() + $3::interval
		    WHERE holder = $1 OR leased_until < clock_timestamp() OR (leased_until > clock_timestamp() + $3::interval AND leased_until <> 'infinity')
		    RETURNING holder, address)
		SELECT holder, address FROM led UNION ALL SELECT holder, address FROM es_leader WHERE NOT EXISTS (SELECT FROM led)`,
		me.Holder, me.Address, ttl).Scan(&now.Holder, &now.Address)
	return now, Classify("take the lead", err)
}

// Resign ends a process's leadership, so that the next one need not wait.
func Resign(ctx context.Context, pool *pgxpool.Pool, me Leader) error {
	_, err := pool.Exec(ctx, `UPDATE es_leader SET holder = '', leased_until = 'epoch' WHERE holder = $1`, me.Holder)
	return Classify("resign", err)
}
