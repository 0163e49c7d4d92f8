package api

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/pgtest"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
	"example.com/billing/services/edge"
)

// A server that takes no writes is told to the caller within the caller's time, as "ask again". Reads go on, and so does
// everything once the server takes writes again.
func TestReadOnlyServer(t *testing.T) {
	first := newPostgresHarness(t)
	id := first.open(account.User)
	pool, err := pgxpool.New(t.Context(), first.Pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	var name string
	if err := pool.QueryRow(t.Context(), `SELECT current_database()`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `ALTER DATABASE `+name+` SET default_transaction_read_only = on`); err != nil {
		t.Fatal(err)
	}
	pool.Reset()
	h := newPostgresInstance(t, pool, t.Context())
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second) // of the 10 s that the gateway gives
	defer cancel()
	_, err = h.CreateAccount(ctx, &accountv1.CreateAccountRequest{OwnerId: "u-1", OwnerType: "customer", AccountType: "USER", Currency: "USD"})
	var unavailable *es.UnavailableError
	if !errors.As(err, &unavailable) || ctx.Err() != nil {
		t.Fatalf("a command: %v, %v", err, ctx.Err())
	}
	if res, err := h.GetAccount(t.Context(), &accountv1.GetAccountRequest{AccountId: id}); err != nil || res.GetAccount().GetAccountId() != id {
		t.Errorf("a read: %v", err)
	}
	if err := edge.TakesWrites(pool)(t.Context()); err == nil {
		t.Error("the service calls itself ready")
	}
	if _, err := pool.Exec(t.Context(), `BEGIN READ WRITE; ALTER DATABASE `+name+` RESET default_transaction_read_only; COMMIT`); err != nil {
		t.Fatal(err)
	}
	pool.Reset()
	pgtest.Eventually(t, "the service takes commands again", func() bool {
		_, err := h.CreateAccount(t.Context(), &accountv1.CreateAccountRequest{OwnerId: "u-1", OwnerType: "customer", AccountType: "USER", Currency: "USD"})
		return err == nil
	})
	if err := edge.TakesWrites(pool)(t.Context()); err != nil {
		t.Errorf("not ready: %v", err)
	}
}
