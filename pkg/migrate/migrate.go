// Package migrate brings a database's tables up to date: numbered SQL files, embedded, forward only, under a lock, so that
// several processes may start at once.
package migrate

import (
	"context"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

// Up applies the files of folder "migrations" in files that are not in table yet.
func Up(ctx context.Context, pool *pgxpool.Pool, files fs.FS, table string) error {
	sub, err := fs.Sub(files, "migrations")
	if err != nil {
		return fmt.Errorf("migrate %s: %w", table, err)
	}
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close() //nolint:errcheck // closes the wrapper; the pool is the caller's
	p, err := goose.NewProvider(goose.DialectPostgres, db, sub, goose.WithTableName(table))
	if err != nil {
		return fmt.Errorf("migrate %s: %w", table, err)
	}
	if err := locked(ctx, pool, func() error { _, err := p.Up(ctx); return err }); err != nil {
		return fmt.Errorf("migrate %s: %w", table, err)
	}
	return nil
}

// locked runs f while no other process does, on a connection beside the pool's. The lock is a transaction's, with the number
// of goose's own: a session's lock would stay behind on a server connection of a pooler, for ever.
func locked(ctx context.Context, pool *pgxpool.Pool, f func() error) error {
	conn, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL idle_in_transaction_session_timeout = 0`); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, lock.DefaultLockID); err != nil {
			return err
		}
		return f()
	})
}
