package gateway_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	errorv1 "example.com/billing/proto/gen/go/billing/error/v1"
	eventv1 "example.com/billing/proto/gen/go/billing/event/v1"
	outboxv1 "example.com/billing/proto/gen/go/billing/outbox/v1"
	readmodelv1 "example.com/billing/proto/gen/go/billing/readmodel/v1"
	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/gateway"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
)

// backend plays the three services. What a test sets decides the answers; the last caller and request are kept.
type backend struct {
	accountv1.UnimplementedAccountServiceServer
	accountv1.UnimplementedBooksServiceServer
	transactionv1.UnimplementedTransactionServiceServer
	transactionv1.UnimplementedHoldServiceServer
	sagav1.UnimplementedSagaServiceServer

	err         error // answered to everything, unless nil
	replayed    bool
	account     *accountv1.Account
	transaction *transactionv1.Transaction
	hold        *transactionv1.Hold
	check       *accountv1.Reconciliation
	rebuild     *readmodelv1.Rebuild
	results     []*transactionv1.BatchResult
	watching    chan *eventv1.RecordedEvent // what a watch sends; closed = it ends without an error
	entries     chan *sagav1.SagaEntry
	left        chan struct{} // closed when a watch has lost its client; nil = nobody asks
	stopping    chan struct{} // the gateway's
	token       string
	sagas       []*sagav1.Saga
	next        string

	called   int
	caller   rpc.Caller
	deadline bool
	request  any
	older    string // a service that serves nothing of the API yet
	servers  map[string]*rpc.Server
	front    *httptest.Server
}

// outboxOf plays one service's own outbox and read models.
type outboxOf struct {
	outboxv1.UnimplementedOutboxServiceServer
	readmodelv1.UnimplementedReadModelServiceServer
	name string
	*backend
}

func (b *backend) saw(ctx context.Context, request any) error {
	b.called++
	b.caller = rpc.CallerFrom(ctx)
	_, b.deadline = ctx.Deadline()
	b.request = request
	if b.replayed {
		_ = grpc.SetHeader(ctx, metadata.Pairs("idempotency-replayed", "true", "x-internal", "secret"))
	}
	if b.token != "" {
		_ = grpc.SetHeader(ctx, metadata.Pairs("consistency-token", b.token))
	}
	return b.err
}

func (b *backend) CreateAccount(ctx context.Context, r *accountv1.CreateAccountRequest) (*accountv1.CreateAccountResponse, error) {
	return &accountv1.CreateAccountResponse{Account: b.account}, b.saw(ctx, r)
}

func (b *backend) GetAccount(ctx context.Context, r *accountv1.GetAccountRequest) (*accountv1.GetAccountResponse, error) {
	return &accountv1.GetAccountResponse{Account: b.account}, b.saw(ctx, r)
}

func (b *backend) ListAccounts(ctx context.Context, r *accountv1.ListAccountsRequest) (*accountv1.ListAccountsResponse, error) {
	return &accountv1.ListAccountsResponse{}, b.saw(ctx, r)
}

func (b *backend) ChangeAccountStatus(ctx context.Context, r *accountv1.ChangeAccountStatusRequest) (*accountv1.ChangeAccountStatusResponse, error) {
	return &accountv1.ChangeAccountStatusResponse{Account: b.account}, b.saw(ctx, r)
}

func (b *backend) GetBooks(ctx context.Context, r *accountv1.GetBooksRequest) (*accountv1.GetBooksResponse, error) {
	return &accountv1.GetBooksResponse{}, b.saw(ctx, r)
}

func (b *backend) Topup(ctx context.Context, r *transactionv1.TopupRequest) (*transactionv1.TopupResponse, error) {
	return &transactionv1.TopupResponse{Transaction: b.transaction}, b.saw(ctx, r)
}

func (b *backend) Withdraw(ctx context.Context, r *transactionv1.WithdrawRequest) (*transactionv1.WithdrawResponse, error) {
	return &transactionv1.WithdrawResponse{Transaction: b.transaction}, b.saw(ctx, r)
}

func (b *backend) Transfer(ctx context.Context, r *transactionv1.TransferRequest) (*transactionv1.TransferResponse, error) {
	return &transactionv1.TransferResponse{Transaction: b.transaction}, b.saw(ctx, r)
}

func (b *backend) Pay(ctx context.Context, r *transactionv1.PayRequest) (*transactionv1.PayResponse, error) {
	return &transactionv1.PayResponse{Transaction: b.transaction}, b.saw(ctx, r)
}

func (b *backend) Refund(ctx context.Context, r *transactionv1.RefundRequest) (*transactionv1.RefundResponse, error) {
	return &transactionv1.RefundResponse{Transaction: b.transaction}, b.saw(ctx, r)
}

func (b *backend) Batch(ctx context.Context, r *transactionv1.BatchRequest) (*transactionv1.BatchResponse, error) {
	return &transactionv1.BatchResponse{Results: b.results}, b.saw(ctx, r)
}

func (b *backend) GetTransaction(ctx context.Context, r *transactionv1.GetTransactionRequest) (*transactionv1.GetTransactionResponse, error) {
	return &transactionv1.GetTransactionResponse{Transaction: b.transaction}, b.saw(ctx, r)
}

func (b *backend) ListTransactions(ctx context.Context, r *transactionv1.ListTransactionsRequest) (*transactionv1.ListTransactionsResponse, error) {
	return &transactionv1.ListTransactionsResponse{}, b.saw(ctx, r)
}

func (b *backend) PlaceHold(ctx context.Context, r *transactionv1.PlaceHoldRequest) (*transactionv1.PlaceHoldResponse, error) {
	return &transactionv1.PlaceHoldResponse{Hold: b.hold}, b.saw(ctx, r)
}

func (b *backend) GetHold(ctx context.Context, r *transactionv1.GetHoldRequest) (*transactionv1.GetHoldResponse, error) {
	return &transactionv1.GetHoldResponse{Hold: b.hold}, b.saw(ctx, r)
}

func (b *backend) CaptureHold(ctx context.Context, r *transactionv1.CaptureHoldRequest) (*transactionv1.CaptureHoldResponse, error) {
	return &transactionv1.CaptureHoldResponse{Transaction: b.transaction}, b.saw(ctx, r)
}

func (b *backend) VoidHold(ctx context.Context, r *transactionv1.VoidHoldRequest) (*transactionv1.VoidHoldResponse, error) {
	return &transactionv1.VoidHoldResponse{Hold: b.hold}, b.saw(ctx, r)
}

func (b *backend) Reconcile(ctx context.Context, r *accountv1.ReconcileRequest) (*accountv1.ReconcileResponse, error) {
	return &accountv1.ReconcileResponse{Reconciliation: b.check}, b.saw(ctx, r)
}

func (b *backend) GetReconciliation(ctx context.Context, r *accountv1.GetReconciliationRequest) (*accountv1.GetReconciliationResponse, error) {
	return &accountv1.GetReconciliationResponse{Reconciliation: b.check}, b.saw(ctx, r)
}

func (b *backend) WatchAccount(r *accountv1.WatchAccountRequest, s grpc.ServerStreamingServer[accountv1.WatchAccountResponse]) error {
	return pour(b, s, r, b.watching, func(e *eventv1.RecordedEvent) *accountv1.WatchAccountResponse {
		return &accountv1.WatchAccountResponse{Event: e}
	})
}

func (b *backend) WatchTransaction(r *transactionv1.WatchTransactionRequest, s grpc.ServerStreamingServer[transactionv1.WatchTransactionResponse]) error {
	return pour(b, s, r, b.watching, func(e *eventv1.RecordedEvent) *transactionv1.WatchTransactionResponse {
		return &transactionv1.WatchTransactionResponse{Event: e}
	})
}

func (b *backend) WatchSaga(r *sagav1.WatchSagaRequest, s grpc.ServerStreamingServer[sagav1.WatchSagaResponse]) error {
	return pour(b, s, r, b.entries, func(e *sagav1.SagaEntry) *sagav1.WatchSagaResponse { return &sagav1.WatchSagaResponse{Entry: e} })
}

func (b *backend) GetSagaTimeline(ctx context.Context, r *sagav1.GetSagaTimelineRequest) (*sagav1.GetSagaTimelineResponse, error) {
	return &sagav1.GetSagaTimelineResponse{}, b.saw(ctx, r)
}

func (b *backend) CountSagas(ctx context.Context, r *sagav1.CountSagasRequest) (*sagav1.CountSagasResponse, error) {
	return &sagav1.CountSagasResponse{}, b.saw(ctx, r)
}

func (b *backend) RetrySaga(ctx context.Context, r *sagav1.RetrySagaRequest) (*sagav1.RetrySagaResponse, error) {
	return &sagav1.RetrySagaResponse{Saga: b.sagas[0]}, b.saw(ctx, r)
}

func (b *backend) SkipSaga(ctx context.Context, r *sagav1.SkipSagaRequest) (*sagav1.SkipSagaResponse, error) {
	return &sagav1.SkipSagaResponse{Saga: b.sagas[0]}, b.saw(ctx, r)
}

func (b *backend) CompensateSaga(ctx context.Context, r *sagav1.CompensateSagaRequest) (*sagav1.CompensateSagaResponse, error) {
	return &sagav1.CompensateSagaResponse{Saga: b.sagas[0]}, b.saw(ctx, r)
}

func (b *backend) ResumeSaga(ctx context.Context, r *sagav1.ResumeSagaRequest) (*sagav1.ResumeSagaResponse, error) {
	return &sagav1.ResumeSagaResponse{Saga: b.sagas[0]}, b.saw(ctx, r)
}

func (b *backend) ResolveSaga(ctx context.Context, r *sagav1.ResolveSagaRequest) (*sagav1.ResolveSagaResponse, error) {
	return &sagav1.ResolveSagaResponse{Saga: b.sagas[0]}, b.saw(ctx, r)
}

// pour sends what comes over the channel until it is closed; a nil in it means that the stream breaks.
func pour[E, R any](b *backend, s grpc.ServerStreamingServer[R], request any, from <-chan *E, wrap func(*E) *R) error {
	if err := b.saw(s.Context(), request); err != nil {
		return err
	}
	if err := s.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case e, ok := <-from:
			switch {
			case !ok:
				return nil
			case e == nil:
				return rpc.Fail("UNAVAILABLE", "The stream breaks.")
			}
			if err := s.Send(wrap(e)); err != nil {
				return err
			}
		case <-s.Context().Done():
			if b.left != nil {
				close(b.left)
			}
			return s.Context().Err()
		}
	}
}

func (b *backend) GetSaga(ctx context.Context, r *sagav1.GetSagaRequest) (*sagav1.GetSagaResponse, error) {
	return &sagav1.GetSagaResponse{Saga: b.sagas[0]}, b.saw(ctx, r)
}

func (b *backend) ListSagas(ctx context.Context, r *sagav1.ListSagasRequest) (*sagav1.ListSagasResponse, error) {
	return &sagav1.ListSagasResponse{Sagas: b.sagas, NextPageToken: b.next}, b.saw(ctx, r)
}

func (o *outboxOf) GetOutboxStats(ctx context.Context, r *outboxv1.GetOutboxStatsRequest) (*outboxv1.GetOutboxStatsResponse, error) {
	return &outboxv1.GetOutboxStatsResponse{Service: o.name, Pending: 3}, o.saw(ctx, r)
}

func (o *outboxOf) ListParked(ctx context.Context, r *outboxv1.ListParkedRequest) (*outboxv1.ListParkedResponse, error) {
	return &outboxv1.ListParkedResponse{Parked: []*outboxv1.ParkedEvent{{Id: "of " + o.name}}, NextPageToken: o.next}, o.saw(ctx, r)
}

func (o *outboxOf) RequeueParked(ctx context.Context, r *outboxv1.RequeueParkedRequest) (*outboxv1.RequeueParkedResponse, error) {
	return &outboxv1.RequeueParkedResponse{Parked: &outboxv1.ParkedEvent{Id: r.GetId(), EventId: "of " + o.name}}, o.saw(ctx, r)
}

func (o *outboxOf) DiscardParked(ctx context.Context, r *outboxv1.DiscardParkedRequest) (*outboxv1.DiscardParkedResponse, error) {
	return &outboxv1.DiscardParkedResponse{Parked: &outboxv1.ParkedEvent{Id: r.GetId(), EventId: "of " + o.name}}, o.saw(ctx, r)
}

func (o *outboxOf) RebuildReadModel(ctx context.Context, r *readmodelv1.RebuildReadModelRequest) (*readmodelv1.RebuildReadModelResponse, error) {
	return &readmodelv1.RebuildReadModelResponse{Rebuild: o.rebuilt(r.GetName())}, o.saw(ctx, r)
}

func (o *outboxOf) GetRebuild(ctx context.Context, r *readmodelv1.GetRebuildRequest) (*readmodelv1.GetRebuildResponse, error) {
	return &readmodelv1.GetRebuildResponse{Rebuild: o.rebuilt(r.GetName())}, o.saw(ctx, r)
}

// rebuilt tells by its checksum which service was asked.
func (o *outboxOf) rebuilt(name string) *readmodelv1.Rebuild {
	return &readmodelv1.Rebuild{Name: name, Status: o.rebuild.GetStatus(), Checksum: "of " + o.name}
}

func catalog(t *testing.T) *rpc.Catalog {
	t.Helper()
	c, err := rpc.NewCatalog("billing", errorv1.Reason(0).Descriptor(), errorv1.E_Mapping)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// start runs the gateway in front of the backend and returns its address.
func start(t *testing.T, b *backend) string {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	reasons := catalog(t)
	b.servers = map[string]*rpc.Server{}
	conns := map[string]*grpc.ClientConn{}
	for _, name := range []string{"account", "transaction", "saga"} {
		server, err := rpc.NewServer(rpc.ServerConfig{Log: log, Catalog: reasons})
		if err != nil {
			t.Fatal(err)
		}
		switch name {
		case b.older:
		case "account":
			accountv1.RegisterAccountServiceServer(server, b)
			accountv1.RegisterBooksServiceServer(server, b)
		case "transaction":
			transactionv1.RegisterTransactionServiceServer(server, b)
			transactionv1.RegisterHoldServiceServer(server, b)
		case "saga":
			sagav1.RegisterSagaServiceServer(server, b)
		}
		outboxv1.RegisterOutboxServiceServer(server, &outboxOf{name: name, backend: b})
		readmodelv1.RegisterReadModelServiceServer(server, &outboxOf{name: name, backend: b})
		listener := bufconn.Listen(1 << 20)
		go func() { _ = server.Serve(listener) }()
		t.Cleanup(server.Stop)
		b.servers[name] = server
		conns[name], err = rpc.Dial("passthrough:///"+name, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return listener.DialContext(ctx)
		}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conns[name].Close() })
	}
	handler, err := gateway.New(gateway.Config{
		Account: conns["account"], Transaction: conns["transaction"], Saga: conns["saga"], Catalog: reasons, Log: log, Stopping: b.stopping,
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	b.front = server
	return server.URL
}

type answer struct {
	status int
	header http.Header
	body   string
}

// ask sends one request; pairs are headers, of which "-Name" takes one away.
func ask(t *testing.T, method, url, body string, pairs ...string) answer {
	t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	return askReader(t, method, url, reader, pairs...)
}

func askReader(t *testing.T, method, url string, body io.Reader, pairs ...string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		if name, ok := strings.CutPrefix(pairs[i], "-"); ok {
			r.Header.Del(name)
		} else {
			r.Header.Add(pairs[i], pairs[i+1])
		}
	}
	w, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Body.Close() }()
	raw, err := io.ReadAll(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{w.StatusCode, w.Header, string(raw)}
}

// problemIn reads the problem document and checks what holds for every one.
func problemIn(t *testing.T, a answer) gateway.Problem {
	t.Helper()
	var p gateway.Problem
	if err := json.Unmarshal([]byte(a.body), &p); err != nil {
		t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
	kebab := strings.ReplaceAll(strings.ToLower(p.Reason), "_", "-")
	if a.header.Get("Content-Type") != "application/problem+json" || p.Status != a.status || p.Type != "urn:billing:problem:"+kebab ||
		p.Title == "" || p.Detail == "" || p.CorrelationID == "" || p.CorrelationID != a.header.Get("X-Correlation-ID") {
		t.Errorf("not a whole problem: %d %v %s", a.status, a.header, a.body)
	}
	return p
}
