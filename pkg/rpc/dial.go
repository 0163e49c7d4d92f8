package rpc

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const (
	connectAttemptsMax = 4
	connectBackoff     = 50 * time.Millisecond
)

// Dial prepares a connection to a target in gRPC's syntax, such as "dns:///account:9101" or "localhost:9101". It connects on
// first use, spreads calls over all addresses the name has, sends the caller's correlation id and actor along, and repeats a
// call only while no connection could be made: what may have reached a server is never sent again from here, because only the
// caller knows whether that is safe. Options given override those of this package.
func Dial(target string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	all := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 30 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: true,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 5 * time.Second,
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
	for attempt := 1; ; attempt++ {
		var to peer.Peer // stays empty while the call has no connection
		err := invoke(ctx, method, req, reply, cc, append(opts[:len(opts):len(opts)], grpc.Peer(&to))...)
		if status.Code(err) != codes.Unavailable || to.Addr != nil || attempt == connectAttemptsMax {
			return err
		}
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-time.After(connectBackoff << attempt):
		}
	}
}
