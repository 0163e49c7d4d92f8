package deploy_test

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/inbox"
	"example.com/billing/pkg/job"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/pgtest"
	sagapg "example.com/billing/pkg/saga/postgres"
	accounts "example.com/billing/services/account/readmodel"
	transactions "example.com/billing/services/transaction/readmodel"
)

// Tables whose rows come and go, or change with every commit, are vacuumed by a number of dead rows that does not grow with them.
func TestVacuumLooksAfterQueues(t *testing.T) {
	pool := pgtest.Pool(t)
	if err := errors.Join(
		migrate.Up(t.Context(), pool, espg.Migrations, espg.MigrationsTable), migrate.Up(t.Context(), pool, inbox.Migrations, inbox.MigrationsTable),
		migrate.Up(t.Context(), pool, job.Migrations, job.MigrationsTable), migrate.Up(t.Context(), pool, sagapg.Migrations, "saga_migration"),
		migrate.Up(t.Context(), pool, accounts.Migrations, "account_migration"), migrate.Up(t.Context(), pool, transactions.Migrations, "transaction_migration"),
	); err != nil {
		t.Fatal(err)
	}
	for table, most := range map[string]float64{
		"outbox_relay": 0, "outbox_batch": 0, "subscription_partition": 0, "saga_open": 0, "saga_engine": 0, "transaction_pending": 0, "hold_open": 0,
		"book_total": 0, "book_delta": 0, "book_rolled": 0, "account_closing": 0, "job": 0,
		"es_head": 0.02, "saga_state": 0.02, "outbox_parked": 0.02, "inbox_parked": 0.02, // large: a part of them
	} {
		var options []string
		if err := pool.QueryRow(t.Context(), `SELECT coalesce(reloptions, '{}') FROM pg_class WHERE oid = $1::regclass`, table).Scan(&options); err != nil {
			t.Fatalf("%s: %v", table, err)
		}
		set := map[string]string{}
		for _, o := range options {
			name, value, _ := strings.Cut(o, "=")
			set[name] = value
		}
		factor, err := strconv.ParseFloat(set["autovacuum_vacuum_scale_factor"], 64)
		if err != nil || factor > most || set["autovacuum_vacuum_threshold"] == "" {
			t.Errorf("%s: %v", table, options)
		}
	}
}
