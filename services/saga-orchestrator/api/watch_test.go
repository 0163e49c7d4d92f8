package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/rpc"
	"example.com/billing/pkg/saga"
	sagapg "example.com/billing/pkg/saga/postgres"
	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/edge"
	"example.com/billing/services/edge/edgetest"
	orchestrator "example.com/billing/services/saga-orchestrator"
)

var accepted = time.Date(2025, 12, 9, 12, 0, 0, 123_000_000, time.UTC)

// transactions is a transaction service that knows some transactions.
type transactions struct {
	transactionv1.TransactionServiceClient
	mu    sync.Mutex
	known map[string]bool
}

func (x *transactions) GetTransaction(_ context.Context, req *transactionv1.GetTransactionRequest, _ ...grpc.CallOption) (*transactionv1.GetTransactionResponse, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.known[req.GetTransactionId()] {
		return nil, rpc.Fail("TRANSACTION_NOT_FOUND", "There is none.")
	}
	return &transactionv1.GetTransactionResponse{Transaction: &transactionv1.Transaction{
		TransactionId: req.GetTransactionId(), Type: "transfer", Status: "pending", CreatedAt: timestamppb.New(accepted),
	}}, nil
}

// accept makes a transaction known.
func (x *transactions) accept() (id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	id = uuid.NewString()
	x.known[id] = true
	return id
}

// harness is the service on a store that instances may share.
type harness struct {
	t            *testing.T
	store        saga.Store
	transactions *transactions
	says         map[string]saga.Register // what registers hold; none = open
}

// said are the harness's registers.
type said struct{ *harness }

func (s said) Read(_ context.Context, c saga.Call) (saga.Register, error) {
	return cmp.Or(s.says[c.Action], saga.RegisterOpen), nil
}

func (s said) Cancel(context.Context, saga.Call) (saga.Answer, error) {
	return saga.Answer{Outcome: saga.Refused, Reason: "POSTING_CANCELLED"}, nil
}

func newHarness(t *testing.T) *harness {
	t.Helper()
	pool := pgtest.Pool(t)
	if err := errors.Join(migrate.Up(t.Context(), pool, espg.Migrations, espg.MigrationsTable),
		migrate.Up(t.Context(), pool, sagapg.Migrations, sagapg.MigrationsTable)); err != nil {
		t.Fatal(err)
	}
	return &harness{t: t, store: sagapg.New(pool, espg.New(pool, espg.Options{}), orchestrator.EndedEvent), transactions: &transactions{known: map[string]bool{}}}
}

// instance is one instance of the service, served on a port.
type instance struct {
	*Server
	grpc   *rpc.Server
	client sagav1.SagaServiceClient
}

// act answers an action's call.
type act func(action string) saga.Answer

func (h *harness) instance(stop context.Context, a act) *instance {
	h.t.Helper()
	registry, err := saga.NewRegistry(orchestrator.Definitions()...)
	if err != nil {
		h.t.Fatal(err)
	}
	actions, registers := map[string]saga.Action{}, map[string]saga.Registers{}
	for _, d := range orchestrator.Definitions() {
		names := append(d.StepNames(), d.OnFailed, d.OnCompensated)
		for _, step := range d.Steps {
			names = append(names, step.Compensation)
		}
		for _, name := range names {
			actions[name] = func(context.Context, saga.Call) (saga.Answer, error) { return a(name), nil }
			registers[name] = said{h}
		}
	}
	engine, err := saga.NewEngine(saga.Config{Registry: registry, Actions: actions, Registers: registers, Store: h.store, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = engine.Stop(ctx)
	})
	s := New(engine, h.store, registry, h.transactions, edge.NewWatches(stop))
	server, conn := edgetest.Serve(h.t, s.Register)
	return &instance{Server: s, grpc: server, client: sagav1.NewSagaServiceClient(conn)}
}

// start brings an accepted transaction's trigger to an instance.
func (h *harness) start(on *instance, id string) {
	h.t.Helper()
	e := es.Event{
		ID: uuid.NewString(), Type: "TransferRequested", Stream: es.Stream{Type: "Transaction", ID: id}, Version: 1, At: accepted,
		CorrelationID: "corr-1", Data: json.RawMessage(`{"sourceAccountId":"a","destinationAccountId":"b","amount":"1.00","currency":"USD"}`),
	}
	if n, err := on.engine.Start(h.t.Context(), Triggers([]es.Event{e})); n != 1 || err != nil {
		h.t.Fatal(n, err)
	}
}

func (h *harness) watch(on *instance, id string, after int32) grpc.ServerStreamingClient[sagav1.WatchSagaResponse] {
	h.t.Helper()
	s, err := on.client.WatchSaga(h.t.Context(), &sagav1.WatchSagaRequest{SagaId: id, After: &after})
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

// next receives an entry as people read it.
func (h *harness) next(s grpc.ServerStreamingClient[sagav1.WatchSagaResponse]) string {
	h.t.Helper()
	res, err := s.Recv()
	if err != nil {
		h.t.Fatal(err)
	}
	e := res.GetEntry()
	out := fmt.Sprint(e.GetId(), " ", e.GetType())
	for _, part := range []*string{e.Step, e.ErrorReason, e.ErrorMessage} {
		if part != nil {
			out += " " + *part
		}
	}
	if e.Result != nil {
		b, _ := json.Marshal(e.GetResult().AsMap())
		out += " " + string(b)
	}
	if e.Timestamp == nil || e.GetTimestamp().AsTime().IsZero() {
		h.t.Errorf("%s has no time", out)
	}
	return out
}

// rest receives what is left of a watch, up to its end.
func (h *harness) rest(s grpc.ServerStreamingClient[sagav1.WatchSagaResponse], n int) (all []string) {
	h.t.Helper()
	for range n {
		all = append(all, h.next(s))
	}
	if res, err := s.Recv(); !errors.Is(err, io.EOF) {
		h.t.Errorf("after %q came %v, %v", all, res, err)
	}
	return all
}

func fine(action string) saga.Answer {
	a := saga.Answer{Outcome: saga.Done}
	if action == orchestrator.DebitSource || action == orchestrator.CreditSourceRollback {
		a.Result = map[string]any{"sourceNewBalance": "7.00"}
	}
	return a
}

func refusing(step string) act {
	return func(action string) saga.Answer {
		if action == step {
			return saga.Answer{Outcome: saga.Refused, Reason: "ACCOUNT_CLOSED", Message: "Closed."}
		}
		return fine(action)
	}
}

var (
	completed = []string{
		"1 started", `2 step_completed debit_source {"sourceNewBalance":"7.00"}`, "3 step_completed credit_destination", "4 step_completed complete_transaction", "5 completed",
	}
	compensated = []string{
		"1 started", `2 step_completed debit_source {"sourceNewBalance":"7.00"}`, "3 refused credit_destination ACCOUNT_CLOSED Closed.",
		`4 compensation_completed credit_source_rollback {"sourceNewBalance":"7.00"}`, "5 compensated",
	}
	failed = []string{"1 started", "2 refused debit_source ACCOUNT_CLOSED Closed.", "3 failed"}
)

// Each kind of saga, from its start to its end, watched from behind every entry: on the instance that works on it, and on
// another one.
func TestWatchSaga(t *testing.T) {
	h := newHarness(t)
	for name, tc := range map[string]struct {
		act  act
		want []string
	}{
		"completed": {fine, completed}, "compensated": {refusing(orchestrator.CreditDestination), compensated}, "failed": {refusing(orchestrator.DebitSource), failed},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, id := h.instance(t.Context(), tc.act), h.instance(t.Context(), tc.act), h.transactions.accept()
			var watches []grpc.ServerStreamingClient[sagav1.WatchSagaResponse]
			for after := range int32(len(tc.want) + 1) {
				watches = append(watches, h.watch(a, id, after), h.watch(b, id, after))
			}
			h.start(a, id)
			for i, s := range watches {
				want := tc.want[i/2:]
				if got := h.rest(s, len(want)); !slices.Equal(got, want) {
					t.Errorf("behind entry %d\n got %q\nwant %q", i/2, got, want)
				}
			}
			if got := h.rest(h.watch(b, id, 0), len(tc.want)); !slices.Equal(got, tc.want) {
				t.Errorf("once it has ended\n got %q\nwant %q", got, tc.want)
			}
			res, err := a.client.GetSaga(t.Context(), &sagav1.GetSagaRequest{SagaId: id})
			if err != nil || res.GetSaga().GetStatus() != name {
				t.Errorf("got %v, %v", res, err)
			}
		})
	}
}

// A saga can be watched from the moment its transaction was accepted, and each step shows when it is done.
func TestWatchSagaAsItGoes(t *testing.T) {
	h := newHarness(t)
	turn := make(chan struct{})
	x, id := h.instance(t.Context(), func(action string) saga.Answer {
		<-turn
		return fine(action)
	}), h.transactions.accept()
	s := h.watch(x, id, 0)
	if got := h.next(s); got != completed[0] {
		t.Fatalf("got %s", got)
	}
	h.start(x, id)
	for i := 1; i < 3; i++ {
		turn <- struct{}{}
		if got := h.next(s); got != completed[i] { // the action after it waits for its turn
			t.Fatalf("got %s, want %s", got, completed[i])
		}
	}
	turn <- struct{}{}
	if got := h.rest(s, 2); !slices.Equal(got, completed[3:]) {
		t.Errorf("got %q", got)
	}
}

// A saga that needs attention may go on: its watch does not end by itself, but with the service, which does not wait for it.
func TestWatchSagaThatNeedsAttention(t *testing.T) {
	h := newHarness(t)
	stop, cancel := context.WithCancel(t.Context())
	x, id := h.instance(stop, func(action string) saga.Answer {
		if action == orchestrator.CompleteTransaction {
			return saga.Answer{Outcome: saga.Stuck, Reason: "INTERNAL", Message: "Nobody knows."}
		}
		return fine(action)
	}), h.transactions.accept()
	h.start(x, id)
	s := h.watch(x, id, 3)
	if got := h.next(s); got != "4 needs_attention complete_transaction INTERNAL Nobody knows." {
		t.Errorf("got %s", got)
	}
	cancel()
	x.grpc.GracefulStop() // returns once every call has ended
	if _, err := s.Recv(); status.Code(err) != codes.Unavailable || rpc.ErrorOf(err).Message == "" {
		t.Errorf("got %v", err)
	}
}

func TestWatchSagaChecksItsRequest(t *testing.T) {
	h := newHarness(t)
	x := h.instance(t.Context(), fine)
	for name, tc := range map[string]struct {
		req    *sagav1.WatchSagaRequest
		reason string
	}{
		"no UUID":         {&sagav1.WatchSagaRequest{SagaId: "x"}, "INVALID_ARGUMENT"},
		"behind nothing":  {&sagav1.WatchSagaRequest{SagaId: uuid.NewString(), After: proto.Int32(-1)}, "INVALID_ARGUMENT"},
		"an unknown saga": {&sagav1.WatchSagaRequest{SagaId: uuid.NewString()}, "SAGA_NOT_FOUND"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := x.client.WatchSaga(t.Context(), tc.req)
			if err != nil {
				t.Fatal(err)
			}
			if res, err := s.Recv(); rpc.ErrorOf(err) == nil || rpc.ErrorOf(err).Reason != tc.reason {
				t.Errorf("got %v, %v", res, err)
			}
		})
	}
}

// The timeline is the watch's alone: the saga as GetSaga shows it has no key more than it had.
func TestASagaShowsNoTimeline(t *testing.T) {
	h := newHarness(t)
	x, id := h.instance(t.Context(), fine), h.transactions.accept()
	h.start(x, id)
	h.rest(h.watch(x, id, 0), len(completed))
	st, err := h.store.Get(t.Context(), id)
	if err != nil || len(st.Timeline) != len(completed) {
		t.Fatalf("stored %v, %v", st.Timeline, err)
	}
	with, err := toProto(st)
	if err != nil {
		t.Fatal(err)
	}
	st.Timeline = nil
	without, err := toProto(st)
	if err != nil || !proto.Equal(with, without) {
		t.Errorf("with a timeline %v, without %v (%v)", with, without, err)
	}
}
