package api

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"example.com/billing/pkg/batch"
	"example.com/billing/pkg/rpc"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/edge"
	"example.com/billing/services/transaction/admission"
)

// overloaded is a controller that anonymous callers have used up everything of.
func overloaded(t *testing.T) *admission.Controller {
	t.Helper()
	c := admission.New(time.Second)
	for range 20 {
		for range 20 {
			c.Settled(time.Minute)
		}
		c.Tick()
	}
	who := admission.Caller{Tenant: rpc.DefaultTenant, Actor: rpc.AnonymousActor}
	for range 1000 {
		if c.Admit(who, 1) != nil {
			return c
		}
	}
	t.Fatal("there is no limit")
	return nil
}

// dial serves the service over gRPC, as it runs, and connects to it.
func (h *harness) dial() *grpc.ClientConn {
	h.t.Helper()
	catalog, err := edge.Catalog()
	if err != nil {
		h.t.Fatal(err)
	}
	server, err := rpc.NewServer(rpc.ServerConfig{Log: slog.New(slog.DiscardHandler), Catalog: catalog})
	if err != nil {
		h.t.Fatal(err)
	}
	h.Register(server)
	listener := bufconn.Listen(1 << 20)
	go func() { _ = server.Serve(listener) }()
	h.t.Cleanup(server.Stop)
	conn, err := rpc.Dial("passthrough:///transaction", grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return listener.DialContext(ctx)
	}))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// assertOverloaded checks that a call was refused, and how.
func assertOverloaded(t *testing.T, what string, err error) {
	t.Helper()
	var (
		info  *errdetails.ErrorInfo
		retry *errdetails.RetryInfo
	)
	for _, detail := range status.Convert(err).Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			info = d
		case *errdetails.RetryInfo:
			retry = d
		}
	}
	if status.Code(err) != codes.ResourceExhausted || info.GetReason() != "OVERLOADED" || info.GetDomain() != edge.Domain ||
		retry.GetRetryDelay().AsDuration() < time.Second {
		t.Errorf("%s: %v, %v, %v", what, err, info, retry)
	}
}

// Every command that starts a transaction is shed before it is read: the requests are empty, and no account is asked. The rest goes
// on: settlements, reads, and other callers.
func TestShed(t *testing.T) {
	h := newHarness(t)
	before := h.accepted("k-1").GetTransactionId()
	asked := h.accounts.asked
	h.Admission = overloaded(t)
	conn := h.dial()
	transactions, holds := transactionv1.NewTransactionServiceClient(conn), transactionv1.NewHoldServiceClient(conn)
	shed := h.Admission.Stats().Shed
	for what, call := range map[string]func(context.Context) error{
		"top-up": func(ctx context.Context) error {
			_, err := transactions.Topup(ctx, &transactionv1.TopupRequest{})
			return err
		},
		"withdrawal": func(ctx context.Context) error {
			_, err := transactions.Withdraw(ctx, &transactionv1.WithdrawRequest{})
			return err
		},
		"transfer": func(ctx context.Context) error {
			_, err := transactions.Transfer(ctx, &transactionv1.TransferRequest{})
			return err
		},
		"payment": func(ctx context.Context) error {
			_, err := transactions.Pay(ctx, &transactionv1.PayRequest{})
			return err
		},
		"refund": func(ctx context.Context) error {
			_, err := transactions.Refund(ctx, &transactionv1.RefundRequest{})
			return err
		},
		"batch": func(ctx context.Context) error {
			_, err := transactions.Batch(ctx, &transactionv1.BatchRequest{Transactions: make([]*transactionv1.BatchItem, 94)})
			return err
		},
		"hold": func(ctx context.Context) error {
			_, err := holds.PlaceHold(ctx, &transactionv1.PlaceHoldRequest{})
			return err
		},
		"capture": func(ctx context.Context) error {
			_, err := holds.CaptureHold(ctx, &transactionv1.CaptureHoldRequest{})
			return err
		},
		"void": func(ctx context.Context) error {
			_, err := holds.VoidHold(ctx, &transactionv1.VoidHoldRequest{})
			return err
		},
	} {
		assertOverloaded(t, what, call(t.Context()))
	}
	if n := h.Admission.Stats().Shed - shed; n != 8+94 {
		t.Errorf("%d noted as shed", n)
	}
	if h.accounts.asked != asked || len(h.all()) != 1 {
		t.Errorf("accounts asked %d times, %d events", h.accounts.asked-asked, len(h.all()))
	}
	if r := settle(t, h.Server, settlement(before, complete))[0]; r.GetStatus() != "completed" {
		t.Errorf("settlement: %v", r)
	}
	if got, err := transactions.GetTransaction(t.Context(), &transactionv1.GetTransactionRequest{TransactionId: before}); err != nil || got.GetTransaction().GetStatus() != "completed" {
		t.Errorf("read: %v, %v", got, err)
	}
	if _, _, err := ask(t.Context(), h.Server, rpc.Caller{Actor: "somebody else"}, transfer("k-2")); err != nil {
		t.Errorf("another caller: %v", err)
	}
}

// A queue that is full looks the same to callers.
func TestAFullQueueIsOverload(t *testing.T) {
	h := newHarness(t)
	h.accounts.fail(fmt.Errorf("ask: %w", batch.ErrFull))
	_, err := transactionv1.NewTransactionServiceClient(h.dial()).Transfer(t.Context(), transfer("k-1"))
	assertOverloaded(t, "transfer", err)
}

// A transaction's time counts from its request to its first settlement; repeats say nothing.
func TestSettlementsAreTimed(t *testing.T) {
	h := newHarness(t)
	h.Admission = admission.New(time.Second)
	var first, again []*transactionv1.Settlement
	for i := range 12 {
		id := h.accepted(fmt.Sprint("k-", i)).GetTransactionId()
		first = append(first, settlement(id, complete))
	}
	again = append(again, first...)
	time.Sleep(10 * time.Millisecond) // what is timed
	settle(t, h.Server, first...)
	h.Admission.Tick()
	h.Admission.Tick()
	h.Admission.Tick()
	if got := h.Admission.Stats().Latency; got < 10*time.Millisecond || got > 10*time.Second {
		t.Errorf("latency %v", got)
	}
	for range 10 {
		h.Admission.Tick()
	}
	settle(t, h.Server, again...)
	for range 3 {
		h.Admission.Tick()
	}
	if got := h.Admission.Stats().Latency; got != 0 {
		t.Errorf("latency %v of repeats", got)
	}
}
