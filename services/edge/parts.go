package edge

import (
	"context"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc"

	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/inbox"
	"example.com/billing/pkg/job"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/rpc"
	"example.com/billing/pkg/run"
)

// byIndex are the settings of requests' connections: what they ask is found by an index, whatever a planner thinks whose statistics
// are of a table that was small a minute ago, and is planned once.
var byIndex = map[string]string{"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off"}

// How long a statement may show no progress. Requests have callers who wait; jobs and migrations read and rewrite whole tables.
const (
	requestStatement = 10 * time.Second
	jobStatement     = 15 * time.Minute
)

// Database opens a service's database and brings it up to date: the tables of the event store and of parked messages, then the
// service's own, recorded in table.
func Database(app *run.App, dsn string, own fs.FS, table string) (*pgxpool.Pool, error) {
	err := app.WithPostgres(run.Database{DSN: dsn, Limit: jobStatement}, func(pool *pgxpool.Pool) error {
		if err := migrate.Up(app.Context(), pool, espg.Migrations, espg.MigrationsTable); err != nil {
			return err
		}
		if err := migrate.Up(app.Context(), pool, inbox.Migrations, inbox.MigrationsTable); err != nil {
			return err
		}
		return migrate.Up(app.Context(), pool, own, table)
	})
	if err != nil {
		return nil, err
	}
	return app.Postgres(run.Database{DSN: dsn, Settings: byIndex, Limit: requestStatement})
}

// Background opens what long jobs run on: connections apart from those of the requests, for they read for long, and must
// not wait for a connection that somebody holds who waits for them. The jobs fail when the app stops.
func Background(app *run.App, dsn string) (*job.Jobs, *pgxpool.Pool, error) {
	pool, err := app.Postgres(run.Database{DSN: dsn, Limit: jobStatement})
	if err != nil {
		return nil, nil, err
	}
	if err := migrate.Up(app.Context(), pool, job.Migrations, job.MigrationsTable); err != nil {
		return nil, nil, err
	}
	jobs := job.New(pool, app.Log)
	jobs.Stopping = app.Context().Done()
	app.OnStop("jobs", jobs.Close)
	return jobs, pool, nil
}

// Connect prepares a connection to another service that closes when the app stops.
func Connect(app *run.App, target string) (*grpc.ClientConn, error) {
	conn, err := rpc.Dial(target)
	if err != nil {
		return nil, err
	}
	app.OnStop("connection to "+target, func(context.Context) error { return conn.Close() })
	return conn, nil
}
