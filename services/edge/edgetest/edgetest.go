// Package edgetest runs a service's API as it is served.
package edgetest

import (
	"log/slog"
	"net"
	"testing"

	"google.golang.org/grpc"

	"example.com/billing/pkg/rpc"
	"example.com/billing/services/edge"
)

// Serve puts a service on a port until the test ends, and returns its server and a connection to it.
func Serve(t testing.TB, register func(grpc.ServiceRegistrar)) (*rpc.Server, *grpc.ClientConn) {
	t.Helper()
	catalog, err := edge.Catalog()
	if err != nil {
		t.Fatal(err)
	}
	server, err := rpc.NewServer(rpc.ServerConfig{Log: slog.New(slog.DiscardHandler), Catalog: catalog})
	if err != nil {
		t.Fatal(err)
	}
	register(server)
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	conn, err := rpc.Dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return server, conn
}
