package gateway

import (
	"context"

	"example.com/billing/pkg/rpc"
	outboxv1 "example.com/billing/proto/gen/go/billing/outbox/v1"
)

// outboxes asks the service that the path names for its own outbox.
type outboxes struct {
	// Unsafe, as grpc-go calls it, has no stand-ins: a method of the contract that nobody wrote does not compile.
	outboxv1.UnsafeOutboxServiceServer
	named[outboxv1.OutboxServiceClient]
}

func newOutboxes(cfg Config) *outboxes {
	return &outboxes{named: named[outboxv1.OutboxServiceClient]{
		clients: map[string]outboxv1.OutboxServiceClient{
			"account":     outboxv1.NewOutboxServiceClient(cfg.Account),
			"transaction": outboxv1.NewOutboxServiceClient(cfg.Transaction),
			"saga":        outboxv1.NewOutboxServiceClient(cfg.Saga),
		},
		unknown: func(name string) error {
			return rpc.Fail(reasonServiceNotFound, "There is no service %s; there are account, transaction and saga.", name)
		},
	}}
}

// GetOutboxStats passes the question on, and the answer or error back.
func (o *outboxes) GetOutboxStats(ctx context.Context, req *outboxv1.GetOutboxStatsRequest) (*outboxv1.GetOutboxStatsResponse, error) {
	return pass(ctx, o.named, req.GetService(), outboxv1.OutboxServiceClient.GetOutboxStats, req)
}

// ListParked passes the question on, and the answer or error back.
func (o *outboxes) ListParked(ctx context.Context, req *outboxv1.ListParkedRequest) (*outboxv1.ListParkedResponse, error) {
	return pass(ctx, o.named, req.GetService(), outboxv1.OutboxServiceClient.ListParked, req)
}

// RequeueParked passes the order on, and the answer or error back.
func (o *outboxes) RequeueParked(ctx context.Context, req *outboxv1.RequeueParkedRequest) (*outboxv1.RequeueParkedResponse, error) {
	return pass(ctx, o.named, req.GetService(), outboxv1.OutboxServiceClient.RequeueParked, req)
}

// DiscardParked passes the order on, and the answer or error back.
func (o *outboxes) DiscardParked(ctx context.Context, req *outboxv1.DiscardParkedRequest) (*outboxv1.DiscardParkedResponse, error) {
	return pass(ctx, o.named, req.GetService(), outboxv1.OutboxServiceClient.DiscardParked, req)
}
