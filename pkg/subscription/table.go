package subscription

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
)

// table is the rows of one instance's subscription.
type table struct {
	pool  *pgxpool.Pool
	name  string
	owner string
	ttl   time.Duration
}

// lease is the right to handle a partition, until it ends and another instance takes it.
type lease struct {
	partition int
	epoch     int64
	position  int64 // of the checkpoint, as far as is known
}

// create makes the subscription's rows where there are none.
func (t table) create(ctx context.Context, partitions int, after int64) error {
	var recorded int
	b := &pgx.Batch{}
	b.Queue(`INSERT INTO subscription (name, partitions) VALUES ($1, $2) ON CONFLICT DO NOTHING`, t.name, partitions)
	b.Queue(`INSERT INTO subscription_partition (name, partition, position)
	         SELECT name, n, $2 FROM subscription, generate_series(0, partitions - 1) AS n WHERE name = $1 ON CONFLICT DO NOTHING`, t.name, after)
	b.Queue(`SELECT partitions FROM subscription WHERE name = $1`, t.name).QueryRow(func(row pgx.Row) error { return row.Scan(&recorded) })
	if err := t.pool.SendBatch(ctx, b).Close(); err != nil {
		return espg.Classify("create subscription "+strconv.Quote(t.name), err)
	}
	if recorded != partitions {
		return &PartitionsError{Name: t.name, Recorded: recorded, Requested: partitions}
	}
	return nil
}

// share is how many of the partitions an instance is to have that is number rank (from 0) of n.
func share(partitions, n, rank int) int {
	if rank < partitions%n {
		return partitions/n + 1
	}
	return partitions / n
}

// balance renews this instance's leases and writes the checkpoints of those held, counts the instances, and takes what is free up to
// this one's share. It returns all leases that the instance has, those leaving left out. One instance balances at a time.
// A lease that ends later than its length from now was written by a wrong clock. It is void, and the epoch fences its holder. An
// instance that is alive writes its row again when it balances next.
func (t table) balance(ctx context.Context, held []lease, leaving map[int]bool) (leases []lease, most int, err error) {
	var partitions, n, rank int
	parts, epochs, positions := make([]int, len(held)), make([]int64, len(held)), make([]int64, len(held))
	for i, l := range held {
		parts[i], epochs[i], positions[i] = l.partition, l.epoch, l.position
	}
	b := &pgx.Batch{}
	b.Queue(`SELECT partitions FROM subscription WHERE name = $1 FOR UPDATE`, t.name).QueryRow(func(row pgx.Row) error { return row.Scan(&partitions) })
	b.Queue(`INSERT INTO subscription_instance (name, owner, leased_until) VALUES ($1, $2, clock_timestamp() + $3::interval)
	         ON CONFLICT (name, owner) DO UPDATE SET leased_until = excluded.leased_until`, t.name, t.owner, t.ttl)
	b.Queue(`DELETE FROM subscription_instance WHERE name = $1 AND owner <> $2
	         AND (leased_until < clock_timestamp() OR leased_until > clock_timestamp() + $3::interval)`, t.name, t.owner, t.ttl)
	b.Queue(`SELECT count(*), count(*) FILTER (WHERE owner < $2) FROM subscription_instance WHERE name = $1`, t.name, t.owner).
		QueryRow(func(row pgx.Row) error { return row.Scan(&n, &rank) })
	// A row that is locked is being handled, and renewed by that.
	b.Queue(`UPDATE subscription_partition p SET leased_until = clock_timestamp() + $3::interval, position = greatest(p.position, h.position)
	         FROM (SELECT m.partition, coalesce(w.position, 0) AS position FROM subscription_partition m
	               LEFT JOIN unnest($4::int[], $5::bigint[], $6::bigint[]) AS w(partition, epoch, position) ON w.partition = m.partition AND w.epoch = m.epoch
	               WHERE m.name = $1 AND m.owner = $2 FOR UPDATE OF m SKIP LOCKED) h
	         WHERE p.name = $1 AND p.partition = h.partition`, t.name, t.owner, t.ttl, parts, epochs, positions)
	b.Queue(`SELECT partition, epoch, position FROM subscription_partition WHERE name = $1 AND owner = $2 ORDER BY partition`, t.name, t.owner).
		Query(func(rows pgx.Rows) error {
			all, err := pgx.CollectRows(rows, scanLease)
			for _, l := range all {
				if !leaving[l.partition] {
					leases = append(leases, l)
				}
			}
			return err
		})
	err = pgx.BeginFunc(ctx, t.pool, func(tx pgx.Tx) error {
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
		most = share(partitions, n, rank)
		if len(leases) >= most {
			return nil
		}
		rows, err := tx.Query(ctx, `UPDATE subscription_partition p SET owner = $2, epoch = p.epoch + 1, leased_until = clock_timestamp() + $3::interval
			FROM (SELECT partition FROM subscription_partition WHERE name = $1 AND owner <> $2
			        AND (leased_until < clock_timestamp() OR leased_until > clock_timestamp() + $3::interval)
			      ORDER BY partition LIMIT $4 FOR UPDATE SKIP LOCKED) f
			WHERE p.name = $1 AND p.partition = f.partition RETURNING p.partition, p.epoch, p.position`, t.name, t.owner, t.ttl, most-len(leases))
		if err != nil {
			return err
		}
		taken, err := pgx.CollectRows(rows, scanLease)
		leases = append(leases, taken...)
		return err
	})
	return leases, most, espg.Classify("balance subscription "+strconv.Quote(t.name), err)
}

func scanLease(row pgx.CollectableRow) (l lease, err error) {
	return l, row.Scan(&l.partition, &l.epoch, &l.position)
}

// release ends a lease, so that the next instance need not wait for it, and writes the checkpoint.
func (t table) release(ctx context.Context, l lease) error {
	_, err := t.pool.Exec(ctx, `UPDATE subscription_partition SET owner = '', leased_until = 'epoch', position = greatest(position, $5)
		WHERE name = $1 AND partition = $2 AND owner = $3 AND epoch = $4`, t.name, l.partition, t.owner, l.epoch, l.position)
	return err
}

// leave says that the instance is no more, and gives back what it was given while it stopped.
func (t table) leave(ctx context.Context) error {
	b := &pgx.Batch{}
	b.Queue(`UPDATE subscription_partition SET owner = '', leased_until = 'epoch' WHERE name = $1 AND owner = $2`, t.name, t.owner)
	b.Queue(`DELETE FROM subscription_instance WHERE name = $1 AND owner = $2`, t.name, t.owner)
	return t.pool.SendBatch(ctx, b).Close()
}

// checkpoint reads a partition's checkpoint. The lease is lost when another instance has taken it, or it was given back.
func (t table) checkpoint(ctx context.Context, l lease) (position int64, lost bool, err error) {
	err = t.pool.QueryRow(ctx, `SELECT position FROM subscription_partition WHERE name = $1 AND partition = $2 AND owner = $3 AND epoch = $4`,
		t.name, l.partition, t.owner, l.epoch).Scan(&position)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, true, nil
	}
	return position, false, espg.Classify("read checkpoint", err)
}

// commit moves a partition's checkpoint and does what handle does, in one transaction, unless the lease was lost. The checkpoint's row
// is locked first: nobody takes the partition while its events are handled, and who has lost it does not begin. A transaction of a
// process that stopped in the middle does not hold it for ever: it may be idle for as long as a lease.
func (t table) commit(ctx context.Context, from lease, to int64, handle func(pgx.Tx) error) error {
	err := pgx.BeginFunc(ctx, t.pool, func(tx pgx.Tx) error {
		var moved int64
		b := &pgx.Batch{}
		b.Queue(`SELECT set_config('idle_in_transaction_session_timeout', $1, true)`, strconv.FormatInt(max(t.ttl.Milliseconds(), 1), 10))
		b.Queue(`UPDATE subscription_partition SET position = $6, leased_until = clock_timestamp() + $7::interval
		         WHERE name = $1 AND partition = $2 AND owner = $3 AND epoch = $4 AND position <= $5`,
			t.name, from.partition, t.owner, from.epoch, from.position, to, t.ttl).
			Exec(func(tag pgconn.CommandTag) error { moved = tag.RowsAffected(); return nil })
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
		if moved == 0 {
			return errMoved
		}
		return handle(tx)
	})
	return err
}

// read looks at the next events behind a position, at most limit, and returns those that are wanted, and the position of the last one
// looked at. Others are not decoded.
func (t table) read(ctx context.Context, after int64, limit int, wanted func(es.Stream) bool) (events []es.Event, last int64, err error) {
	rows, err := t.pool.Query(ctx, `SELECT position, stream_type, stream_id, recorded_at, payload FROM es_event
		WHERE position > $1 ORDER BY position LIMIT $2`, after, limit)
	if err != nil {
		return nil, after, espg.Classify("read events", err)
	}
	var (
		st       es.Stream
		position int64
		at       time.Time
		payload  pgtype.DriverBytes // of the driver, until the next row
	)
	last = after
	_, err = pgx.ForEachRow(rows, []any{&position, &st.Type, &st.ID, &at, &payload}, func() error {
		if position != last+1 {
			return fmt.Errorf("position %d follows %d", position, last)
		}
		if last = position; !wanted(st) {
			return nil
		}
		e, err := es.Decode(payload)
		if err != nil {
			return fmt.Errorf("position %d: %w", position, err)
		}
		e.Position, e.RecordedAt = position, at.UTC()
		events = append(events, e)
		return nil
	})
	if err != nil {
		return nil, after, espg.Classify("read events", err)
	}
	return events, last, nil
}

// end is the position of the newest event; 0 = there is none.
func (t table) end(ctx context.Context) (end int64, err error) {
	err = t.pool.QueryRow(ctx, `SELECT es_end()`).Scan(&end)
	return end, espg.Classify("read the log's end", err)
}
