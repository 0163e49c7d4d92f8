package reconcile_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/shopspring/decimal"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/job"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/money"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/projection"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/account"
	"example.com/billing/services/account/api"
	"example.com/billing/services/account/books"
	"example.com/billing/services/account/clients"
	"example.com/billing/services/account/readmodel"
	"example.com/billing/services/account/reconcile"
	"example.com/billing/services/edge/edgetest"
)

// settlement is a transaction service that knows which transactions are open.
type settlement struct {
	transactionv1.UnimplementedSettlementServiceServer
	mu     sync.Mutex
	open   map[string]bool
	before func() // each answer
	fail   error
	list   []*transactionv1.CompareTransactionListResponse // pages of the comparison; nil = one without differences
}

func (s *settlement) CompareTransactionList(_ context.Context, req *transactionv1.CompareTransactionListRequest) (*transactionv1.CompareTransactionListResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	after := ""
	for _, page := range s.list {
		if req.GetAfter() == after {
			return page, nil
		}
		after = page.GetLast()
	}
	return &transactionv1.CompareTransactionListResponse{}, nil
}

func (s *settlement) set(id string, open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[id] = open
}

func (s *settlement) FilterOpenTransactions(_ context.Context, req *transactionv1.FilterOpenTransactionsRequest) (*transactionv1.FilterOpenTransactionsResponse, error) {
	if s.before != nil {
		s.before()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	res := &transactionv1.FilterOpenTransactionsResponse{}
	for _, id := range req.GetTransactionIds() {
		if s.open[id] {
			res.TransactionIds = append(res.TransactionIds, id)
		}
	}
	return res, s.fail
}

// world is the account service on a database of its own, without Kafka: what it commits is projected at once.
type world struct {
	*api.Server
	t            *testing.T
	pool         *pgxpool.Pool
	looked       *looked // the reconciler's pool
	store        *espg.Store
	executor     *api.Executor
	model        *readmodel.Accounts
	project      *projection.Projection
	jobs         *job.Jobs
	transactions *settlement
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, pool: pgtest.Pool(t), transactions: &settlement{open: map[string]bool{}}}
	if err := errors.Join(
		migrate.Up(t.Context(), w.pool, espg.Migrations, espg.MigrationsTable),
		migrate.Up(t.Context(), w.pool, readmodel.Migrations, "account_migration"),
		migrate.Up(t.Context(), w.pool, job.Migrations, job.MigrationsTable),
	); err != nil {
		t.Fatal(err)
	}
	w.store = espg.New(w.pool, espg.Options{Inline: books.Inline})
	var err error
	if w.executor, err = es.NewExecutor(account.Decider(), w.store, es.ExecutorOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.executor.Close(context.Background()) })
	w.looked = newLooked(t, w.pool)
	w.model = readmodel.New(w.pool)
	w.project = w.model.Projection(w.store.Load)
	w.jobs = job.New(w.pool, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = w.jobs.Close(context.Background()) })
	w.Server = w.instance(w.jobs)
	return w
}

// instance is one more instance of the API.
func (w *world) instance(jobs *job.Jobs) *api.Server {
	w.t.Helper()
	_, conn := edgetest.Serve(w.t, func(r grpc.ServiceRegistrar) { transactionv1.RegisterSettlementServiceServer(r, w.transactions) })
	return api.New(api.Parts{
		Executor: w.executor, Accounts: w.model, Pool: w.pool, Currencies: money.Default(), Secret: []byte("secret"),
		Reconciler: reconcile.New(w.looked.pool, jobs, clients.NewTransactions(conn), nil),
	})
}

// do gives an account a command and projects what came of it. It fails the test from any goroutine.
func (w *world) do(accountID, key string, c account.Command, project bool) {
	w.t.Helper()
	out, err := w.executor.Execute(context.Background(), es.Command[account.Command]{
		ID: uuid.NewString(), StreamID: accountID, Key: key, At: time.Now(), Metadata: map[string]any{"tenantId": "default"}, Body: c,
	})
	if err == nil && project {
		err = w.project.Handle(context.Background(), out.Events)
	}
	if err != nil {
		w.t.Error(err)
	}
}

// openAccount opens an account in USD.
func (w *world) openAccount(kind account.Type) string {
	w.t.Helper()
	id := uuid.NewString()
	w.do(id, "", account.Open{OwnerID: "u-1", OwnerType: "person", Type: kind, Currency: "USD", Scale: 2, RequestHash: "h"}, true)
	return id
}

func (w *world) debit(transaction, from, amount string) {
	w.t.Helper()
	w.do(from, transaction+"/debit_source", account.Post{SagaID: transaction, Step: "debit_source", Direction: account.Debit, Amount: decimal.RequireFromString(amount), Currency: "USD"}, true)
}

func (w *world) credit(transaction, to, amount string) {
	w.t.Helper()
	w.do(to, transaction+"/credit_destination", account.Post{SagaID: transaction, Step: "credit_destination", Direction: account.Credit, Amount: decimal.RequireFromString(amount), Currency: "USD"}, true)
}

// transfer moves money from one account to another, as a transaction that ends.
func (w *world) transfer(from, to, amount string) string {
	w.t.Helper()
	id := uuid.NewString()
	w.transactions.set(id, true)
	w.debit(id, from, amount)
	w.credit(id, to, amount)
	w.transactions.set(id, false)
	return id
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	tag, err := w.pool.Exec(w.t.Context(), sql, args...)
	if err != nil || tag.RowsAffected() == 0 {
		w.t.Fatalf("%s: %v, %v", sql, tag, err)
	}
}

// all checks all accounts to the end.
func (w *world) all() *accountv1.Reconciliation {
	w.t.Helper()
	res, err := w.Reconcile(w.t.Context(), &accountv1.ReconcileRequest{Wait: durationpb.New(30 * time.Second)})
	if err != nil {
		w.t.Fatal(err)
	}
	return res.GetReconciliation()
}

func (w *world) one(accountID string) *accountv1.Reconciliation {
	w.t.Helper()
	res, err := w.Reconcile(w.t.Context(), &accountv1.ReconcileRequest{AccountId: &accountID})
	if err != nil {
		w.t.Fatal(err)
	}
	return res.GetReconciliation()
}

func (w *world) rollUp() {
	w.t.Helper()
	if err := books.RollUpAll(w.t.Context(), w.pool); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) wantClean(r *accountv1.Reconciliation) {
	w.t.Helper()
	if r.GetStatus() != "clean" || r.GetFindingCount() != 0 || len(r.GetFindings()) != 0 {
		w.t.Errorf("got %v", r)
	}
}
