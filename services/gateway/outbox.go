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

// find is the client of a service, and the context to ask it with.
func (o *outboxes) find(ctx context.Context, service string) (context.Context, outboxv1.OutboxServiceClient, error) {
	client, ok := o.byService[service]
	if !ok {
		return nil, nil, rpc.Fail(reasonServiceNotFound, "There is no service %s; there are account, transaction and saga.", shorten(service))
	}
	return metadata.NewOutgoingContext(ctx, rpc.CallerFrom(ctx).Metadata()), client, nil
}

// GetOutboxStats passes the question on, and the answer or error back.
func (o *outboxes) GetOutboxStats(ctx context.Context, req *outboxv1.GetOutboxStatsRequest) (*outboxv1.GetOutboxStatsResponse, error) {
	ctx, client, err := o.find(ctx, req.GetService())
	if err != nil {
		return nil, err
	}
	return client.GetOutboxStats(ctx, req)
}

// ListParked passes the question on, and the answer or error back.
func (o *outboxes) ListParked(ctx context.Context, req *outboxv1.ListParkedRequest) (*outboxv1.ListParkedResponse, error) {
	ctx, client, err := o.find(ctx, req.GetService())
	if err != nil {
		return nil, err
	}
	return client.ListParked(ctx, req)
}

// RequeueParked passes the order on, and the answer or error back.
func (o *outboxes) RequeueParked(ctx context.Context, req *outboxv1.RequeueParkedRequest) (*outboxv1.RequeueParkedResponse, error) {
	ctx, client, err := o.find(ctx, req.GetService())
	if err != nil {
		return nil, err
	}
	return client.RequeueParked(ctx, req)
}

// DiscardParked passes the order on, and the answer or error back.
func (o *outboxes) DiscardParked(ctx context.Context, req *outboxv1.DiscardParkedRequest) (*outboxv1.DiscardParkedResponse, error) {
	ctx, client, err := o.find(ctx, req.GetService())
	if err != nil {
		return nil, err
	}
	return client.DiscardParked(ctx, req)
}
