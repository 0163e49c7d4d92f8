package run_test

import (
	"log/slog"
	"testing"
	"time"

	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/pgwritable"
	"example.com/billing/pkg/run"
)

// A write that the server refuses on any connection of a service's pool makes the service not ready.
func TestPostgresNoticesRefusedWrites(t *testing.T) {
	app := run.NewApp(t.Context(), slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = app.Close() })
	pool, err := app.Postgres(run.Database{DSN: pgtest.DSN(t), Limit: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if err := pgwritable.Check(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	_, _ = pool.Exec(t.Context(), `DO $$ BEGIN RAISE EXCEPTION 'disk full' USING ERRCODE = '53100'; END $$`)
	if err := pgwritable.Check(t.Context(), pool); !pgwritable.IsRefusal(err) {
		t.Errorf("ready on a full disk: %v", err)
	}
}
