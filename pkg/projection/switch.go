package projection

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// aloneLock waits, for as long as readers may be held up, until nobody uses the table.
func (r *rebuild[S, C]) aloneLock() string {
	return `SET LOCAL lock_timeout = '250ms'; LOCK TABLE ` + r.Table + ` IN ACCESS EXCLUSIVE MODE`
}

// probe fails while somebody reads the table for long: the switch would fail too, after the comparison.
func (r *rebuild[S, C]) probe(ctx context.Context) error {
	return pgx.BeginFunc(ctx, r.run.Conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, r.aloneLock())
		return err
	})
}

// attempt is the transaction that switches. The first lock keeps the projection out: it waits for its transactions under way,
// and new ones wait at their first statement, where they hold nothing that the second lock would wait for. The second one
// keeps out readers too. Both give up soon: what queues behind a lock that is not had yet waits as long as it does.
func (r *rebuild[S, C]) attempt(ctx context.Context) error {
	if err := r.probe(ctx); err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, r.run.Conn, func(tx pgx.Tx) error {
		if err := r.run.Guard(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '2s'; LOCK TABLE `+r.Table+` IN EXCLUSIVE MODE`); err != nil {
			return err
		}
		if err := r.sameShape(ctx, tx); err != nil {
			return err
		}
		// What the rows of the old table show was committed before.
		end, err := r.source.End(ctx)
		if err != nil {
			return err
		}
		r.at.EventsTotal = end
		within := func(ctx context.Context, f func(tx pgx.Tx) error) error { return pgx.BeginFunc(ctx, tx, f) }
		if err := r.pass(ctx, within, end); err != nil {
			return err
		}
		if err := r.compare(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, r.aloneLock()); err != nil {
			return err
		}
		if err := r.rename(ctx, tx); err != nil {
			return err
		}
		return r.run.Finish(ctx, tx, r.at.Rebuilt)
	})
}

// compare counts the rows of both tables, tells where they differ, and takes the new one's checksum.
func (r *rebuild[S, C]) compare(ctx context.Context, tx pgx.Tx) error {
	err := tx.QueryRow(ctx, `SELECT count(n.id),
			count(*) FILTER (WHERE n.id IS NULL OR o.id IS NULL AND y.id IS NULL OR o.version > n.version
				OR o.version = n.version AND ROW(o.*) IS DISTINCT FROM ROW(n.*)),
			count(*) FILTER (WHERE o.version < n.version OR o.id IS NULL AND y.id IS NOT NULL)
		FROM `+r.Table+` o FULL JOIN `+r.shadow+` n ON n.id = o.id LEFT JOIN `+r.youngsters+` y ON y.id = n.id`).
		Scan(&r.at.Rows, &r.at.Repaired, &r.at.Behind)
	if err != nil {
		return fmt.Errorf("compare: %w", err)
	}
	r.at.Checksum, err = checksum(ctx, tx, r.shadow)
	return err
}

// checksum is the SHA-256, in hex, of a table's rows in the order of their ids, as Postgres prints them. Anybody can take it:
//
//	PGTZ=UTC psql -c 'COPY (SELECT * FROM account_view ORDER BY id) TO STDOUT' | sha256sum
func checksum(ctx context.Context, tx pgx.Tx, table string) (string, error) {
	if _, err := tx.Exec(ctx, `SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'; SET LOCAL bytea_output = 'hex'; SET LOCAL extra_float_digits = 1`); err != nil {
		return "", err
	}
	sum := sha256.New()
	if _, err := tx.Conn().PgConn().CopyTo(ctx, sum, `COPY (SELECT * FROM `+table+` ORDER BY id) TO STDOUT`); err != nil {
		return "", fmt.Errorf("checksum: %w", err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// shape is what has to be equal of two tables to put one in the other's place.
const shape = `SELECT concat(
	(SELECT array_agg(ROW(attname, format_type(atttypid, atttypmod), attnotnull) ORDER BY attnum) FROM pg_attribute WHERE attrelid = t.oid AND attnum > 0 AND NOT attisdropped),
	(SELECT array_agg(substring(pg_get_indexdef(indexrelid) FROM ' USING .*') ORDER BY substring(pg_get_indexdef(indexrelid) FROM ' USING .*')) FROM pg_index WHERE indrelid = t.oid))
	FROM pg_class t WHERE t.oid = $1::text::regclass`

// errReshaped is what a rebuild fails of while a migration changes its table.
var errReshaped = errors.New("the table was changed while it was rebuilt")

func (r *rebuild[S, C]) sameShape(ctx context.Context, tx pgx.Tx) error {
	var live, made string
	if err := tx.QueryRow(ctx, shape, r.Table).Scan(&live); err != nil {
		return err
	}
	if err := tx.QueryRow(ctx, shape, r.shadow).Scan(&made); err != nil {
		return err
	}
	if live != made {
		return errReshaped
	}
	return nil
}

// rename drops the old table and gives its name, and its indexes' names, to the new one.
func (r *rebuild[S, C]) rename(ctx context.Context, tx pgx.Tx) error {
	// Indexes of the same definition belong together.
	rows, err := tx.Query(ctx, `WITH i AS (
			SELECT x.indrelid AS t, c.relname AS name, d AS definition, row_number() OVER (PARTITION BY x.indrelid, d ORDER BY c.relname) AS nth
			FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid, substring(pg_get_indexdef(x.indexrelid) FROM ' USING .*') AS d
			WHERE x.indrelid IN ($1::text::regclass, $2::text::regclass))
		SELECT made.name, live.name FROM i live JOIN i made USING (definition, nth)
		WHERE live.t = $1::text::regclass AND made.t = $2::text::regclass`, r.Table, r.shadow)
	if err != nil {
		return err
	}
	statements := `DROP TABLE ` + r.Table + `, ` + r.youngsters + `; ALTER TABLE ` + r.shadow + ` RENAME TO ` + r.Table
	var from, to string
	_, err = pgx.ForEachRow(rows, []any{&from, &to}, func() error {
		statements += `; ALTER INDEX ` + pgx.Identifier{from}.Sanitize() + ` RENAME TO ` + pgx.Identifier{to}.Sanitize()
		return nil
	})
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, statements)
	return err
}
