package run

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/dsn"
	"example.com/billing/pkg/pgwritable"
)

// Database is what a pool is made of.
type Database struct {
	DSN string
	// Settings of the connections; those of the DSN win. nil = none.
	Settings map[string]string
	// Limit bounds an acquire, and the time for which a statement may show no progress; see [Bound].
	Limit time.Duration
}

// settings are those of every connection. A process that vanishes in the middle of a transaction, with its machine or its
// network, must not hold its locks for longer than this. Short statements gain nothing from being compiled.
var settings = map[string]string{
	"jit":                                 "off",
	"idle_in_transaction_session_timeout": "15s",
	"tcp_keepalives_idle":                 "5",
	"tcp_keepalives_interval":             "2",
	"tcp_keepalives_count":                "3",
}

// Postgres opens a pool that closes when the app stops, and waits until the database answers.
func (a *App) Postgres(d Database) (*pgxpool.Pool, error) {
	pool, err := a.open(d)
	if err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	a.OnStop("postgres", func(ctx context.Context) error { return await(ctx, pool.Close) })
	return pool, a.Retry(a.ctx, "connect to postgres", pool.Ping)
}

// WithPostgres runs f on a pool of its own, once the database answers.
func (a *App) WithPostgres(d Database, f func(pool *pgxpool.Pool) error) error {
	pool, err := a.open(d)
	if err != nil {
		return fmt.Errorf("postgres: %w", err)
	}
	defer pool.Close()
	if err := a.Retry(a.ctx, "connect to postgres", pool.Ping); err != nil {
		return err
	}
	return f(pool)
}

func (a *App) open(d Database) (*pgxpool.Pool, error) {
	if d.Limit <= 0 {
		return nil, errors.New("a limit of statements is required")
	}
	cfg, err := dsn.Parse(d.DSN)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = max(cfg.MaxConns, 8)
	for _, some := range []map[string]string{d.Settings, settings} {
		for name, value := range some {
			setDefault(cfg.ConnConfig.RuntimeParams, name, value)
		}
	}
	trips, err := countTrips(a.Metrics)
	if err != nil {
		return nil, err
	}
	cfg.ConnConfig.Tracer = pgwritable.Trace(trips)
	bind(cfg, d.Limit, &a.hosts)
	if err := a.fitPooler(cfg.ConnConfig, strings.Contains(d.DSN, "default_query_exec_mode")); err != nil {
		return nil, err
	}
	return pgxpool.NewWithConfig(a.ctx, cfg)
}

// fitPooler waits until the database answers. Behind a pooler such as PgBouncer in transaction mode, where each transaction
// may run on another server connection, statements are not prepared by name, unless the DSN says how they are sent.
func (a *App) fitPooler(cfg *pgx.ConnConfig, said bool) error {
	var pooled bool
	err := a.Retry(a.ctx, "connect to postgres", func(ctx context.Context) (err error) {
		pooled, err = isPooled(ctx, cfg)
		var refused *pgconn.PgError
		if errors.As(err, &refused) && strings.Contains(refused.Message, "unsupported startup parameter") {
			return backoff.Permanent(fmt.Errorf("add it to PgBouncer's ignore_startup_parameters: %w", err))
		}
		return err
	})
	if err != nil {
		return err
	}
	if pooled && !said && cfg.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement {
		a.Log.Info("postgres is behind a pooler: statements are not prepared by name")
		cfg.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
	return nil
}

// isPooled tells whether a pooler stands between: it makes up the process id that it shows its clients.
func isPooled(ctx context.Context, cfg *pgx.ConnConfig) (bool, error) {
	conn, err := pgx.ConnectConfig(ctx, cfg.Copy())
	if err != nil {
		return false, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var pid uint32
	err = conn.QueryRow(ctx, `SELECT pg_backend_pid()`, pgx.QueryExecModeSimpleProtocol).Scan(&pid)
	return pid != conn.PgConn().PID(), err
}
