package api

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"example.com/billing/pkg/rpc"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/edge/edgetest"
)

// serve puts the service on a port, as it runs, and returns its server and a client.
func (h *harness) serve() (*rpc.Server, transactionv1.TransactionServiceClient) {
	h.t.Helper()
	server, conn := edgetest.Serve(h.t, h.Register)
	return server, transactionv1.NewTransactionServiceClient(conn)
}

func (h *harness) watch(c transactionv1.TransactionServiceClient, id string, after *int32) grpc.ServerStreamingClient[transactionv1.WatchTransactionResponse] {
	h.t.Helper()
	s, err := c.WatchTransaction(h.t.Context(), &transactionv1.WatchTransactionRequest{TransactionId: id, After: after})
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

// A watcher sees a transaction's events once, in order, as they are committed: by this instance, by another one. When the
// service stops it is told to come back, and the stop does not wait for it.
func TestWatchTransaction(t *testing.T) {
	pool := newPool(t)
	stop, cancel := context.WithCancel(t.Context())
	h := newPostgresInstance(t, pool, stop)
	other := newPostgresInstance(t, pool, t.Context())
	server, c := h.serve()
	for name, on := range map[string]*Server{"by this instance": h.Server, "by another one": other.Server} {
		t.Run(name, func(t *testing.T) {
			id := h.accepted(name).GetTransactionId()
			all, rest := h.watch(c, id, nil), h.watch(c, id, proto.Int32(1))
			first, err := all.Recv()
			if err != nil || first.GetEvent().GetVersion() != 1 || first.GetEvent().GetEventType() != "TransferRequested" {
				t.Fatalf("got %v, %v", first, err)
			}
			settle(t, on, settlement(id, complete))
			for _, s := range []grpc.ServerStreamingClient[transactionv1.WatchTransactionResponse]{all, rest} {
				res, err := s.Recv()
				e := res.GetEvent()
				if err != nil || e.GetVersion() != 2 || e.GetEventType() != "TransferCompleted" || e.GetTransactionId() != id || e.GetStep() != "complete_transaction" ||
					e.GetCausedBy() != "event-1" || e.GetActor() != "ann" {
					t.Errorf("got %v, %v", res, err)
				}
			}
		})
	}
	s := h.watch(c, h.accepted("k-2").GetTransactionId(), proto.Int32(1))
	if _, err := s.Header(); err != nil { // comes though nothing happens
		t.Fatal(err)
	}
	cancel()
	server.GracefulStop() // returns once every call has ended
	if _, err := s.Recv(); status.Code(err) != codes.Unavailable || rpc.ErrorOf(err).Message == "" {
		t.Errorf("got %v", err)
	}
}

func TestWatchTransactionChecksItsRequest(t *testing.T) {
	h := newHarness(t)
	_, c := h.serve()
	for name, tc := range map[string]struct {
		id     string
		after  *int32
		reason string
	}{
		"no UUID": {"x", nil, "INVALID_ARGUMENT"}, "behind nothing": {none, proto.Int32(-1), "INVALID_ARGUMENT"}, "an unknown transaction": {none, nil, "TRANSACTION_NOT_FOUND"},
	} {
		t.Run(name, func(t *testing.T) {
			if res, err := h.watch(c, tc.id, tc.after).Recv(); rpc.ErrorOf(err) == nil || rpc.ErrorOf(err).Reason != tc.reason {
				t.Errorf("got %v, %v", res, err)
			}
		})
	}
}
