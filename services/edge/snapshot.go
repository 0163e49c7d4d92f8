package edge

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	espg "example.com/billing/pkg/es/postgres"
)

// holders are what keeps Postgres from removing dead rows, with the time since when, null where Postgres does not say. Vacuum
// itself holds nothing up. A slot, and a standby with feedback, have no time.
const holders = `
	SELECT 'session ' || pid, coalesce(backend_xmin, backend_xid)::text, xact_start FROM pg_stat_activity
		WHERE (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND (datname = current_database() OR datname IS NULL)
			AND pid <> pg_backend_pid() AND pid NOT IN (SELECT pid FROM pg_stat_progress_vacuum)
	UNION ALL SELECT 'prepared ' || gid, transaction::text, prepared FROM pg_prepared_xacts WHERE database = current_database()
	UNION ALL SELECT 'slot ' || slot_name, xmin::text, NULL FROM pg_replication_slots WHERE xmin IS NOT NULL`

// snapshots tell how long the oldest open snapshot has kept dead rows from being removed: commits get slower meanwhile. Not safe
// for concurrent use.
type snapshots struct {
	pool    *pgxpool.Pool
	holders string // the query
	now     func() time.Time
	known   map[string]held // of those without a time of their own
}

// held is what a holder held when it was first seen.
type held struct {
	xmin  string
	since time.Time
}

// oldest is the age of the oldest; 0 = there is none. Those without a time of their own are as old as the time since this process
// first saw them hold the same.
func (s *snapshots) oldest(ctx context.Context) (time.Duration, error) {
	rows, err := s.pool.Query(ctx, `SELECT h.name, h.xmin, extract(epoch FROM clock_timestamp() - h.since)::float8 FROM (`+s.holders+`) AS h(name, xmin, since)`)
	if err != nil {
		return 0, espg.Classify("read open snapshots", err)
	}
	var (
		name, xmin string
		seconds    *float64
		oldest     time.Duration
		known      = map[string]held{}
		now        = s.now()
	)
	_, err = pgx.ForEachRow(rows, []any{&name, &xmin, &seconds}, func() error {
		if seconds != nil {
			oldest = max(oldest, time.Duration(*seconds*float64(time.Second)))
			return nil
		}
		h := s.known[name]
		if h.xmin != xmin {
			h = held{xmin, now}
		}
		known[name] = h
		oldest = max(oldest, now.Sub(h.since))
		return nil
	})
	if err != nil {
		return 0, espg.Classify("read open snapshots", err)
	}
	s.known = known
	return oldest, nil
}
