package api

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"example.com/billing/pkg/batch"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/money"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
	"example.com/billing/services/account/books"
	"example.com/billing/services/account/readmodel"
	"example.com/billing/services/edge"
)

const (
	debit    = accountv1.PostingKind_POSTING_KIND_DEBIT
	credit   = accountv1.PostingKind_POSTING_KIND_CREDIT
	cancel   = accountv1.PostingKind_POSTING_KIND_CANCEL
	rollback = accountv1.PostingKind_POSTING_KIND_ROLLBACK

	undecidedOutcome = accountv1.PostingOutcome_POSTING_OUTCOME_UNSPECIFIED
	done             = accountv1.PostingOutcome_POSTING_OUTCOME_DONE
	refused          = accountv1.PostingOutcome_POSTING_OUTCOME_REFUSED
	cancelled        = accountv1.PostingOutcome_POSTING_OUTCOME_CANCELLED
)

// harness is the service on a store: in memory, or on Postgres with its read model.
type harness struct {
	*Server
	t     *testing.T
	store es.Store
}

func newHarness(t *testing.T) *harness {
	t.Helper()
	store := memory.New()
	return &harness{Server: newServer(t, store), t: t, store: store}
}

// newServer is one instance of the service on a store that others may share.
func newServer(t *testing.T, store es.Store) *Server {
	t.Helper()
	x, err := es.NewExecutor(account.Decider(), store, es.ExecutorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close(context.Background()) })
	return newParts(t, x, Parts{Store: store, Watches: edge.NewWatches(t.Context())})
}

// newParts is the service with these parts, and no transactions under way.
func newParts(t *testing.T, x *Executor, p Parts) *Server {
	t.Helper()
	p.Executor, p.Currencies, p.Secret = x, money.Default(), []byte("secret")
	p.Closing = &Closing{Executor: x, Open: func(context.Context, string) ([]string, error) { return nil, nil }}
	return New(p)
}

// newPostgresHarness is the service as it runs, without Kafka.
func newPostgresHarness(t *testing.T) *harness {
	t.Helper()
	pool := pgtest.Pool(t)
	if err := errors.Join(migrate.Up(t.Context(), pool, espg.Migrations, espg.MigrationsTable),
		migrate.Up(t.Context(), pool, readmodel.Migrations, "account_migration")); err != nil {
		t.Fatal(err)
	}
	return newPostgresInstance(t, pool, t.Context())
}

// newPostgresInstance is one instance of the service on a database that others may share; it stops with stop.
func newPostgresInstance(t *testing.T, pool *pgxpool.Pool, stop context.Context) *harness {
	t.Helper()
	watches := edge.NewWatches(stop)
	store := espg.New(pool, espg.Options{Inline: books.Inline})
	x, err := es.NewExecutor(account.Decider(), store, es.ExecutorOptions{Notify: watches.Hub.Notify})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close(context.Background()) })
	return &harness{Server: newParts(t, x, Parts{Store: store, Watches: watches, Accounts: readmodel.New(pool), Pool: pool}), t: t, store: store}
}

// open opens an account in USD.
func (h *harness) open(kind account.Type, change ...func(*accountv1.CreateAccountRequest)) string {
	h.t.Helper()
	req := &accountv1.CreateAccountRequest{OwnerId: "u-1", OwnerType: "customer", AccountType: string(kind), Currency: "USD"}
	for _, c := range change {
		c(req)
	}
	res, err := h.CreateAccount(h.t.Context(), req)
	if err != nil {
		h.t.Fatal(err)
	}
	return res.GetAccount().GetAccountId()
}

// funded opens a USER account that holds this much.
func (h *harness) funded(amount string, change ...func(*accountv1.CreateAccountRequest)) string {
	h.t.Helper()
	id := h.open(account.User, change...)
	h.want(h.post(ask(credit, uuid.NewString(), "fund", id, amount)), done, "")
	return id
}

func upTo(s string) func(*accountv1.CreateAccountRequest) {
	return func(r *accountv1.CreateAccountRequest) { r.MaxBalance = &s }
}

func ask(kind accountv1.PostingKind, saga, step, accountID, amount string) *accountv1.Posting {
	return &accountv1.Posting{
		SagaId: saga, Step: step, AccountId: accountID, Kind: kind, Amount: amount, Currency: "USD", Reason: "transfer",
		CorrelationId: "corr-1", CausedBy: "event-1", TenantId: "default", Actor: "ann",
	}
}

// undoing is the rollback of a step.
func undoing(saga, step, accountID string) *accountv1.Posting {
	return &accountv1.Posting{SagaId: saga, Step: step + "_rollback", AccountId: accountID, Kind: rollback, Reason: "transfer_rollback", UndoStep: step}
}

// post carries out one posting.
func (h *harness) post(p *accountv1.Posting) *accountv1.PostingResult {
	h.t.Helper()
	return postOn(h.t, h.Server, p)
}

func postOn(t *testing.T, s *Server, p *accountv1.Posting) *accountv1.PostingResult {
	res, err := s.Post(context.Background(), &accountv1.PostRequest{Postings: []*accountv1.Posting{p}})
	if err != nil || len(res.GetResults()) != 1 {
		t.Errorf("post %v: %v, %v", p, res, err)
		return &accountv1.PostingResult{}
	}
	return res.GetResults()[0]
}

// want fails the test unless the result is this.
func (h *harness) want(got *accountv1.PostingResult, outcome accountv1.PostingOutcome, reason string) {
	h.t.Helper()
	if got.GetOutcome() != outcome || got.GetErrorReason() != reason {
		h.t.Fatalf("got %v, want %v %s", got, outcome, reason)
	}
}

// holds fails the test unless the account holds this much.
func (h *harness) holds(accountID, want string) {
	h.t.Helper()
	res, err := h.GetAccountBalance(h.t.Context(), &accountv1.GetAccountBalanceRequest{AccountId: accountID})
	if err != nil || res.GetBalance() != want {
		h.t.Fatalf("the account holds %v (%v), want %s", res, err, want)
	}
}

// events are the account's events, in order.
func (h *harness) events(accountID string) []es.Event {
	h.t.Helper()
	events, err := h.store.Load(h.t.Context(), es.Stream{Type: account.AggregateType, ID: accountID}, 0, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	return events
}

// count is how many of the account's events have this type.
func (h *harness) count(accountID, eventType string) int {
	h.t.Helper()
	n := 0
	for _, e := range h.events(accountID) {
		if e.Type == eventType {
			n++
		}
	}
	return n
}

// call is a context as in a gRPC call; header gets what the handler sets.
func call(ctx context.Context, caller rpc.Caller) (context.Context, *header) {
	h := &header{MD: metadata.MD{}}
	if caller.TenantID == "" {
		caller.TenantID = rpc.DefaultTenant
	}
	return rpc.WithCaller(grpc.NewContextWithServerTransportStream(ctx, h), caller), h
}

type header struct{ metadata.MD }

func (h *header) Method() string { return "/test" }

func (h *header) SetHeader(md metadata.MD) error {
	h.MD = metadata.Join(h.MD, md)
	return nil
}

func (h *header) SendHeader(metadata.MD) error { return nil }

func (h *header) SetTrailer(metadata.MD) error { return nil }

func (h *header) replayed() bool { return len(h.Get("idempotency-replayed")) > 0 }

// fast is a store whose clock is ahead.
type fast struct {
	es.Store
	ahead time.Duration
}

func (f fast) Clock(ctx context.Context) (time.Time, error) {
	now, err := f.Store.Clock(ctx)
	return now.Add(f.ahead), err
}

func (f fast) Load(ctx context.Context, s es.Stream, after int64, limit int) ([]es.Event, error) {
	events, err := f.Store.Load(ctx, s, after, limit)
	for i := range events {
		events[i].RecordedAt = events[i].RecordedAt.Add(f.ahead)
	}
	return events, err
}

func (f fast) LoadEach(ctx context.Context, spans []es.Span) ([]batch.Result[[]es.Event], error) {
	loaded, err := f.Store.LoadEach(ctx, spans)
	for _, l := range loaded {
		for i := range l.Value {
			l.Value[i].RecordedAt = l.Value[i].RecordedAt.Add(f.ahead)
		}
	}
	return loaded, err
}
