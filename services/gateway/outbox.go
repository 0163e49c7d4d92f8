package gateway

import (
	"context"

	"example.com/billing/pkg/rpc"
	outboxv1 "example.com/billing/proto/gen/go/billing/outbox/v1"

	"google.golang.org/grpc/metadata"
)

// outboxes asks the service that the path names for its own outbox.
type outboxes struct {
	// Unsafe, as grpc-go calls it, has no stand-ins: a method of the contract that nobody wrote does not compile.
	outboxv1.UnsafeOutboxServiceServer
	byService map[string]outboxv1.OutboxServiceClient
}

func newOutboxes(cfg Config) *outboxes {
	return &outboxes{byService: map[string]outboxv1.OutboxServiceClient{
		"account":     outboxv1.NewOutboxServiceClient(cfg.Account),
		"transaction": outboxv1.NewOutboxServiceClient(cfg.Transaction),
		"saga":        outboxv1.NewOutboxServiceClient(cfg.Saga),
	}}
}

// GetOutboxStats passes the question on, and the answer or error back.
func (o *outboxes) GetOutboxStats(ctx context.Context, req *outboxv1.GetOutboxStatsRequest) (*outboxv1.GetOutboxStatsResponse, error) {
	client, ok := o.byService[req.GetService()]
	if !ok {
		return nil, rpc.Fail(reasonServiceNotFound, "There is no service %s; there are account, transaction and saga.", shorten(req.GetService()))
	}
	return client.GetOutboxStats(metadata.NewOutgoingContext(ctx, rpc.CallerFrom(ctx).Metadata()), req)
}
