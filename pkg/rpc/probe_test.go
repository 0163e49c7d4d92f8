package rpc_test

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	"example.com/billing/pkg/nettest"
	"example.com/billing/pkg/rpc"
)

// instances begins servers, and a proxy before each.
func instances(t *testing.T, n int) (all []*nettest.Proxy, servers []*rpc.Server) {
	t.Helper()
	for range n {
		server, err := rpc.NewServer(rpc.ServerConfig{Log: slog.New(slog.DiscardHandler), Catalog: testCatalog(t)})
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = server.Serve(l) }()
		t.Cleanup(server.Stop)
		all, servers = append(all, nettest.NewProxy(t, l.Addr().String())), append(servers, server)
	}
	return all, servers
}

// dialAll connects to all of them by one name.
func dialAll(t *testing.T, all []*nettest.Proxy) *grpc.ClientConn {
	t.Helper()
	name := manual.NewBuilderWithScheme("test")
	var state resolver.State
	for _, p := range all {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: p.Addr()})
	}
	name.InitialState(state)
	conn, err := rpc.Dial("test:///service", grpc.WithResolvers(name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ask calls, and returns who answered.
func ask(ctx context.Context, conn *grpc.ClientConn) (string, error) {
	var by peer.Peer
	_, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{}, grpc.Peer(&by))
	if by.Addr == nil {
		return "", err
	}
	return by.Addr.String(), err
}

// reach calls until n different instances have answered.
func reach(t *testing.T, conn *grpc.ClientConn, n int) {
	t.Helper()
	for answered, late := map[string]bool{}, time.Now().Add(20*time.Second); len(answered) < n; {
		by, err := ask(t.Context(), conn)
		if err != nil || time.Now().After(late) {
			t.Fatalf("%d of %d instances answered, %v", len(answered), n, err)
		}
		answered[by] = true
	}
}

// An instance that stands still without closing its sockets is left within 5 s: what it was asked fails, and further calls go to
// the other one.
func TestAPeerThatStandsStillIsLeft(t *testing.T) {
	t.Parallel()
	all, _ := instances(t, 2)
	conn := dialAll(t, all)
	reach(t, conn, 2)
	frozen := all[0].Addr()
	all[0].Freeze()
	begun := time.Now()
	for left := false; !left; {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		_, err := ask(ctx, conn)
		cancel()
		left = status.Code(err) == codes.Unavailable // the call on the connection that was given up
	}
	if took := time.Since(begun); took > 8*time.Second { // 5 s, and some more for a slow machine
		t.Errorf("a call to the frozen peer ended after %s", took)
	}
	for range 20 {
		if by, err := ask(t.Context(), conn); err != nil || by == frozen {
			t.Errorf("answered by %q (the frozen one is %s), %v", by, frozen, err)
		}
	}
	all[0].Replace()
	reach(t, conn, 2)
}

// A call that takes long, of a peer that is idle besides, is not given up.
func TestALongCallIsNotGivenUp(t *testing.T) {
	t.Parallel()
	all, _ := instances(t, 1)
	conn := dialAll(t, all)
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
	defer cancel()
	watching, err := healthv1.NewHealthClient(conn).Watch(ctx, &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for err == nil { // the present state, and then nothing more until the caller's deadline
		_, err = watching.Recv()
	}
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("the call ended by %v", err)
	}
}

// A server that is stopping answers what it has begun, although it takes no further connection.
func TestAStoppingServerIsNotGivenUp(t *testing.T) {
	t.Parallel()
	all, servers := instances(t, 1)
	conn := dialAll(t, all)
	watching, err := healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watching.Recv(); err != nil {
		t.Fatal(err)
	}
	go servers[0].GracefulStop()
	time.AfterFunc(6*time.Second, servers[0].Health.Shutdown) // longer than a probe takes
	if m, err := watching.Recv(); err != nil || m.GetStatus() != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("got %v, %v", m, err)
	}
}
