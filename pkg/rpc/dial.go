package rpc

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/resolver/dns"
	"google.golang.org/grpc/status"
)

// A call without a connection is repeated for connectFor, which is longer than a process takes to start again.
const (
	connectFor        = 3 * time.Second
	connectBackoff    = 50 * time.Millisecond
	connectBackoffMax = 400 * time.Millisecond
)

// resolveAgainAfter is how soon a name is resolved again once a connection is lost. gRPC's own 30 s are longer than it takes to
// replace all instances of a service, one after the other.
const resolveAgainAfter = time.Second

// resolveQuickly makes the setting, which is gRPC's for the whole process, before the first connection.
var resolveQuickly = sync.OnceFunc(func() { dns.SetMinResolutionInterval(resolveAgainAfter) })

// Dial prepares a connection to a target in gRPC's syntax, such as "dns:///account:9101" or "localhost:9101". It connects on
// first use, spreads calls over all addresses the name has, leaves an address that does not answer within 5 s, sends the caller's correlation id and actor along, and repeats a
// call only while no connection could be made: what may have reached a server is never sent again from here, because only the
// caller knows whether that is safe. Options given override those of this package.
func Dial(target string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	resolveQuickly()
	all := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		Probed(),
		// For networks that drop connections nobody uses; probes notice a peer that stands still. Not more often than the servers of
		// the version before tolerate.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 30 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: true,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(DefaultMessageBytesMax)),
		grpc.WithChainUnaryInterceptor(propagateUnary, reconnectUnary),
		grpc.WithChainStreamInterceptor(propagateStream),
	}
	conn, err := grpc.NewClient(target, append(all, options...)...)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", target, err)
	}
	return conn, nil
}

func propagateUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(outgoing(ctx), method, req, reply, cc, opts...)
}

func propagateStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return open(outgoing(ctx), desc, cc, method, opts...)
}

// reconnectUnary repeats a call that failed before it had a connection. A retryPolicy in the service config could not tell that
// from a connection lost after the request was sent.
func reconnectUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	begun := time.Now()
	for pause := connectBackoff; ; {
		var to peer.Peer // stays empty while the call has no connection
		err := invoke(ctx, method, req, reply, cc, append(opts[:len(opts):len(opts)], grpc.Peer(&to))...)
		if status.Code(err) != codes.Unavailable || to.Addr != nil || time.Since(begun) > connectFor {
			return err
		}
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-time.After(pause):
			pause = min(2*pause, connectBackoffMax)
		}
	}
}
