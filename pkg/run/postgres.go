package run

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/dsn"
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
	cfg.ConnConfig.Tracer = trips
	bind(cfg, d.Limit, &a.hosts)
	return pgxpool.NewWithConfig(a.ctx, cfg)
}
