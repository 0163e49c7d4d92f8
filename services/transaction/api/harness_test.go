package api

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/money"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/rpc"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/edge"
	"example.com/billing/services/transaction"
	"example.com/billing/services/transaction/readmodel"
)

const (
	alice = "11111111-1111-4111-8111-111111111111"
	bob   = "22222222-2222-4222-8222-222222222222"
	world = "33333333-3333-4333-8333-333333333333"
	none  = "44444444-4444-4444-8444-444444444444"
)

// accounts is an account service that can fail.
type accounts struct {
	mu    sync.Mutex
	by    map[string]transaction.Side
	err   error
	asked int
}

func (a *accounts) Sides(_ context.Context, source, destination string) (s, d transaction.Side, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked++
	return a.by[source], a.by[destination], a.err
}

func (a *accounts) set(id string, s transaction.Side) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.by[id] = s
}

func (a *accounts) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.err = err
}

// harness is the service on a store, in memory or on Postgres, and accounts of its own.
type harness struct {
	*Server
	t        *testing.T
	store    es.Store
	pool     *pgxpool.Pool // where the store is on Postgres, and asked for
	accounts *accounts
}

func newHarness(t *testing.T) *harness {
	t.Helper()
	store, a := memory.New(), newAccounts()
	return &harness{Server: newServer(t, store, a), t: t, store: store, accounts: a}
}

func newAccounts() *accounts {
	return &accounts{by: map[string]transaction.Side{
		alice: {Found: true, AccountType: "USER", Currency: "USD", Status: "active"},
		bob:   {Found: true, AccountType: "USER", Currency: "USD", Status: "active"},
		world: {Found: true, AccountType: "EXTERNAL", Currency: "USD", Status: "active"},
	}}
}

// newServer is one instance of the service on a store in memory that others may share.
func newServer(t *testing.T, store es.Store, a Accounts) *Server {
	t.Helper()
	watches := edge.NewWatches(t.Context())
	return newServerOn(t, store, watches, a)
}

// newPostgresInstance is one instance of the service on a database that others may share; it stops with stop.
func newPostgresInstance(t *testing.T, pool *pgxpool.Pool, stop context.Context) *harness {
	t.Helper()
	a, watches := newAccounts(), edge.NewWatches(stop)
	store := espg.New(pool, espg.Options{Inline: readmodel.Inline})
	return &harness{Server: newServerOn(t, store, watches, a), t: t, store: store, accounts: a}
}

// newPool is a database as the service has it.
func newPool(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.Pool(t)
	if err := errors.Join(migrate.Up(t.Context(), pool, espg.Migrations, espg.MigrationsTable),
		migrate.Up(t.Context(), pool, readmodel.Migrations, "transaction_migration")); err != nil {
		t.Fatal(err)
	}
	return pool
}

func newServerOn(t *testing.T, store es.Store, watches *edge.Watches, a Accounts) *Server {
	t.Helper()
	x, err := es.NewExecutor(transaction.Decider(), store, es.ExecutorOptions{Notify: watches.Hub.Notify})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close(context.Background()) })
	return New(Parts{Executor: x, Store: store, Watches: watches, Accounts: a, Currencies: money.Default(), Secret: []byte("secret")})
}

// all returns every event of the store.
func (h *harness) all() []es.Event {
	h.t.Helper()
	var events []es.Event
	for e, err := range h.store.ReadAll(h.t.Context(), "", es.From{}) {
		if err != nil {
			h.t.Fatal(err)
		}
		events = append(events, e)
	}
	return events
}

func transfer(key string, change ...func(*transactionv1.TransferRequest)) *transactionv1.TransferRequest {
	req := &transactionv1.TransferRequest{
		IdempotencyKey: key, SourceAccountId: alice, DestinationAccountId: bob, Amount: "50.00", Currency: "USD", Reference: proto.String("rent"),
	}
	for _, c := range change {
		c(req)
	}
	return req
}

// ask sends a transfer as a call and says whether the answer is marked as a repeat's.
func ask(ctx context.Context, s *Server, caller rpc.Caller, req *transactionv1.TransferRequest) (*transactionv1.Transaction, bool, error) {
	h := &header{MD: metadata.MD{}}
	if caller.TenantID == "" {
		caller.TenantID = rpc.DefaultTenant
	}
	res, err := s.Transfer(rpc.WithCaller(grpc.NewContextWithServerTransportStream(ctx, h), caller), req)
	return res.GetTransaction(), len(h.Get("idempotency-replayed")) > 0, err
}

// accepted is a transfer that must be accepted.
func (h *harness) accepted(key string, change ...func(*transactionv1.TransferRequest)) *transactionv1.Transaction {
	h.t.Helper()
	got, replayed, err := ask(h.t.Context(), h.Server, rpc.Caller{}, transfer(key, change...))
	if err != nil || replayed {
		h.t.Fatalf("got %v, replayed %v, %v", got, replayed, err)
	}
	return got
}

func settlement(id string, kind transactionv1.SettlementKind) *transactionv1.Settlement {
	return &transactionv1.Settlement{
		TransactionId: id, Step: "complete_transaction", Kind: kind, CorrelationId: "corr-1", CausedBy: "event-1", TenantId: "default", Actor: "ann",
	}
}

func settle(t *testing.T, s *Server, items ...*transactionv1.Settlement) []*transactionv1.SettlementResult {
	t.Helper()
	res, err := s.Settle(context.Background(), &transactionv1.SettleRequest{Settlements: items})
	if err != nil || len(res.GetResults()) != len(items) {
		t.Fatalf("got %v, %v", res, err)
	}
	return res.GetResults()
}

// reasonOf is why a request was not carried out.
func reasonOf(err error) string {
	if r := es.RefusalOf(err); r != nil {
		return r.Reason
	}
	if e := rpc.ErrorOf(err); e != nil {
		return e.Reason
	}
	return ""
}

type header struct{ metadata.MD }

func (h *header) Method() string { return "/test" }

func (h *header) SetHeader(md metadata.MD) error {
	h.MD = metadata.Join(h.MD, md)
	return nil
}

func (h *header) SendHeader(metadata.MD) error { return nil }

func (h *header) SetTrailer(metadata.MD) error { return nil }
