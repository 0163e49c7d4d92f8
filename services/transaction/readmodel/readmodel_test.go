package readmodel

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/projection"
	"example.com/billing/services/transaction"
)

// A consumer that lost its partition while it stalled writes what it had read. It must not take a newer row back.
func TestALateWriterTakesNothingBack(t *testing.T) {
	pool := pgtest.Pool(t)
	if err := migrate.Up(t.Context(), pool, Migrations, "transaction_migration"); err != nil {
		t.Fatal(err)
	}
	id := uuid.NewString()
	at := time.Date(2025, 12, 9, 12, 0, 0, 0, time.UTC)
	put := func(version int64, encoded string) {
		t.Helper()
		row := projection.Row[transaction.Transaction]{ID: id, Version: version, Encoded: []byte(encoded), State: transaction.Transaction{Status: transaction.Pending, SourceID: uuid.NewString(), DestinationID: uuid.NewString(), CreatedAt: at}}
		if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			return write(t.Context(), tx, "transaction_view", []projection.Row[transaction.Transaction]{row})
		}); err != nil {
			t.Fatal(err)
		}
	}
	put(1, "one")
	put(2, "two")
	put(1, "one, late")
	var (
		version int64
		state   string
	)
	if err := pool.QueryRow(t.Context(), "SELECT version, convert_from(state, 'UTF8') FROM transaction_view").Scan(&version, &state); err != nil || version != 2 || state != "two" {
		t.Errorf("the row shows version %d, %q (%v)", version, state, err)
	}
}
