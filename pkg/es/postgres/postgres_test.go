package postgres_test

import (
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/estest"
	"example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/pgtest"
)

func open(t testing.TB) (*postgres.Store, *pgxpool.Pool) {
	t.Helper()
	pool := pgtest.Migrated(t, postgres.Migrations, postgres.MigrationsTable)
	return postgres.New(pool, postgres.Options{}), pool
}

func TestStore(t *testing.T) {
	estest.TestStore(t, func(t *testing.T) es.Store { s, _ := open(t); return s })
}

// Several processes start at once on a new database: the migrations run once.
func TestMigrationsRunOnceUnderALock(t *testing.T) {
	pool := pgtest.Pool(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := migrate.Up(t.Context(), pool, postgres.Migrations, postgres.MigrationsTable); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
