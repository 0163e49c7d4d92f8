package readmodel_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/job"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/projection"
	"example.com/billing/services/transaction"
	"example.com/billing/services/transaction/readmodel"
)

// The list is rebuilt from the events; the same pool, with its prepared statements, reads the old table and the new one.
func TestTheListIsRebuilt(t *testing.T) {
	pool := pgtest.Pool(t)
	if err := errors.Join(
		migrate.Up(t.Context(), pool, espg.Migrations, espg.MigrationsTable),
		migrate.Up(t.Context(), pool, readmodel.Migrations, "transaction_migration"),
		migrate.Up(t.Context(), pool, job.Migrations, job.MigrationsTable),
	); err != nil {
		t.Fatal(err)
	}
	store := espg.New(pool, espg.Options{Inline: readmodel.Inline})
	x, err := es.NewExecutor(transaction.Decider(), store, es.ExecutorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close(context.Background()) })
	list := readmodel.New(pool)
	project := list.Projection(store.Load)
	alice, bob := uuid.NewString(), uuid.NewString()
	for i := range 30 {
		source, destination := alice, bob
		if i%2 == 1 {
			source, destination = bob, alice
		}
		out, err := x.Execute(t.Context(), es.Command[transaction.Command]{
			ID: uuid.NewString(), StreamID: uuid.NewString(), At: time.UnixMilli(int64(i)), Metadata: map[string]any{"tenantId": "default"},
			Body: transaction.Request{
				Type: transaction.Transfer, SourceID: source, DestinationID: destination, Amount: decimal.NewFromInt(int64(i + 1)), Scale: 2,
				Currency: "USD", IdempotencyKey: fmt.Sprint("k-", i),
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := project.Handle(t.Context(), out.Events); err != nil {
			t.Fatal(err)
		}
	}
	read := func() [2][]readmodel.Entry {
		all, err := list.List(t.Context(), readmodel.Filter{TenantID: "default", Limit: 100})
		if err != nil {
			t.Fatal(err)
		}
		one, err := list.List(t.Context(), readmodel.Filter{TenantID: "default", AccountID: alice, Limit: 100})
		if err != nil {
			t.Fatal(err)
		}
		return [2][]readmodel.Entry{all, one}
	}
	want := read()
	if len(want[0]) != 30 || len(want[1]) != 30 {
		t.Fatalf("%d and %d transactions", len(want[0]), len(want[1]))
	}
	jobs := job.New(pool, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = jobs.Close(context.Background()) })
	for repaired := range int64(2) {
		if _, err := pool.Exec(t.Context(), `UPDATE transaction_view SET source_id = gen_random_uuid() WHERE id IN (SELECT id FROM transaction_view ORDER BY id LIMIT $1)`, repaired); err != nil {
			t.Fatal(err)
		}
		if _, err := jobs.Start(t.Context(), "rebuild", list.Rebuild(store)); err != nil {
			t.Fatal(err)
		}
		s, err := jobs.Wait(t.Context(), "rebuild", time.Minute)
		var d projection.Rebuilt
		if err != nil || s.Status != job.Done || json.Unmarshal(s.Detail, &d) != nil || d.Rows != 30 || d.Repaired != repaired || d.Events != 30 {
			t.Errorf("%+v, %+v, %v", s, d, err)
		}
		if got := read(); !reflect.DeepEqual(got, want) {
			t.Errorf("got %v\nwant %v", got, want)
		}
	}
}
