package api

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
	"example.com/billing/services/edge"
	"example.com/billing/services/edge/edgetest"
)

// serve puts the service on a port, as it runs, and returns its server and a client.
func (h *harness) serve() (*rpc.Server, accountv1.AccountServiceClient) {
	h.t.Helper()
	server, conn := edgetest.Serve(h.t, h.Register)
	return server, accountv1.NewAccountServiceClient(conn)
}

// watch begins to watch an account behind a version.
func watch(ctx context.Context, t *testing.T, c accountv1.AccountServiceClient, id string, after int32) grpc.ServerStreamingClient[accountv1.WatchAccountResponse] {
	t.Helper()
	s, err := c.WatchAccount(ctx, &accountv1.WatchAccountRequest{AccountId: id, After: &after})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A watcher that is cut off at random and resumes behind the last event it received gets every event once and in order, those
// of this process and those of another one.
func TestWatchResumes(t *testing.T) {
	const total = 120
	h := newPostgresHarness(t)
	other := newPostgresInstance(t, h.Pool, t.Context())
	id := h.open(account.User) // version 1
	_, c := h.serve()
	var wg sync.WaitGroup
	wg.Go(func() {
		for range total - 1 {
			on := []*Server{h.Server, other.Server}[rand.IntN(2)]
			postOn(t, on, ask(credit, uuid.NewString(), step, id, "1.00"))
		}
	})
	for seen := int32(0); seen < total; {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		s := watch(ctx, t, c, id, seen)
		for range 1 + rand.IntN(20) {
			res, err := s.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if v := res.GetEvent().GetVersion(); v != seen+1 {
				t.Fatalf("version %d follows %d", v, seen)
			}
			if seen++; seen == total {
				break
			}
		}
		cancel()
	}
	wg.Wait()
	events := h.events(id)
	if len(events) != total {
		t.Errorf("%d events, want %d", len(events), total)
	}
	shown, _ := edge.Recorded(events[total-1])
	if res, err := watch(t.Context(), t, c, id, total-1).Recv(); err != nil || !proto.Equal(res.GetEvent(), shown) {
		t.Errorf("the last is %v (%v), want %v", res, err, shown)
	}
}

func TestWatchChecksItsRequest(t *testing.T) {
	h := newPostgresHarness(t)
	_, c := h.serve()
	for name, tc := range map[string]struct {
		req    *accountv1.WatchAccountRequest
		reason string
	}{
		"no UUID":            {&accountv1.WatchAccountRequest{AccountId: "x"}, "INVALID_ARGUMENT"},
		"behind nothing":     {&accountv1.WatchAccountRequest{AccountId: uuid.NewString(), After: proto.Int32(-1)}, "INVALID_ARGUMENT"},
		"an unknown account": {&accountv1.WatchAccountRequest{AccountId: uuid.NewString()}, "ACCOUNT_NOT_FOUND"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := c.WatchAccount(t.Context(), tc.req)
			if err != nil {
				t.Fatal(err)
			}
			if res, err := s.Recv(); rpc.ErrorOf(err) == nil || rpc.ErrorOf(err).Reason != tc.reason {
				t.Errorf("got %v, %v", res, err)
			}
		})
	}
}

// A watcher learns at once that it watches, though nothing happens; when the service stops it is told to come back, and the
// stop does not wait for it.
func TestWatchEndsWithTheService(t *testing.T) {
	pool := newPostgresHarness(t).Pool
	stop, cancel := context.WithCancel(t.Context())
	h := newPostgresInstance(t, pool, stop)
	id := h.open(account.User)
	server, c := h.serve()
	s := watch(t.Context(), t, c, id, 1)
	if _, err := s.Header(); err != nil { // waits for what the server sends first
		t.Fatal(err)
	}
	cancel()
	server.GracefulStop() // returns once every call has ended
	_, err := s.Recv()
	if status.Code(err) != codes.Unavailable || rpc.ErrorOf(err).Reason != "UNAVAILABLE" || rpc.ErrorOf(err).Message == "" {
		t.Errorf("got %v", err)
	}
}

// A caller who leaves frees its place.
func TestWatchEndsWithTheCaller(t *testing.T) {
	h := newPostgresHarness(t)
	id := h.open(account.User)
	server, c := h.serve()
	ctx, cancel := context.WithCancel(t.Context())
	s := watch(ctx, t, c, id, 0)
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := s.Recv(); status.Code(err) != codes.Canceled && !errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
	server.GracefulStop()
}
