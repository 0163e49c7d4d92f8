package gateway

import (
	"context"

	"example.com/billing/pkg/rpc"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// named are the clients of one API that several services have; a path says by a name which of them is meant.
type named[C any] struct {
	clients map[string]C
	unknown func(name string) error // for a name that none of them has
}

// pass asks the client of a name on behalf of the caller.
func pass[C, Q, A any](
	ctx context.Context, n named[C], name string, call func(client C, ctx context.Context, req Q, _ ...grpc.CallOption) (A, error), req Q,
) (answer A, err error) {
	client, ok := n.clients[name]
	if !ok {
		return answer, n.unknown(shorten(name))
	}
	return call(client, metadata.NewOutgoingContext(ctx, rpc.CallerFrom(ctx).Metadata()), req)
}
