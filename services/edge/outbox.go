package edge

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/types/known/timestamppb"

	"example.com/billing/pkg/inbox"
	"example.com/billing/pkg/outbox"
	"example.com/billing/pkg/rpc"
	outboxv1 "example.com/billing/proto/gen/go/billing/outbox/v1"
)

// OutboxServer is a service's billing.outbox.v1.OutboxService.
type OutboxServer struct {
	// Unsafe, as grpc-go calls it, has no stand-ins: a method of the contract that nobody wrote does not compile.
	outboxv1.UnsafeOutboxServiceServer
	Service string // account, transaction or saga
	Pool    *pgxpool.Pool
}

// GetOutboxStats counts the service's events by delivery status.
func (s *OutboxServer) GetOutboxStats(ctx context.Context, req *outboxv1.GetOutboxStatsRequest) (*outboxv1.GetOutboxStatsResponse, error) {
	if err := s.isMe(req.GetService()); err != nil {
		return nil, err
	}
	st, err := outbox.ReadStats(ctx, s.Pool)
	if err != nil {
		return nil, err
	}
	out, err := outbox.Lanes(s.Pool).Count(ctx)
	if err != nil {
		return nil, err
	}
	in, err := inbox.Lanes(s.Pool).Count(ctx)
	if err != nil {
		return nil, err
	}
	res := &outboxv1.GetOutboxStatsResponse{
		Service: s.Service, Pending: Count(st.Pending), Delivered: Count(st.Delivered), Failed: Count(st.Failed), Retries: Count(st.Retries),
		OldestPendingMs: Count(st.OldestPending.Milliseconds()),
		ParkedOutgoing:  Count(out.Rows), ParkedIncoming: Count(in.Rows), ParkedLanes: Count(out.Lanes + in.Lanes),
		OldestParkedMs: Count(max(out.Oldest, in.Oldest).Milliseconds()),
		LastError:      Optional(st.LastError),
	}
	if !st.ProcessedAt.IsZero() {
		res.ProcessedAt = timestamppb.New(st.ProcessedAt)
	}
	return res, nil
}

func (s *OutboxServer) isMe(name string) error {
	if name != "" && name != s.Service {
		return rpc.Fail("SERVICE_NOT_FOUND", "This is service %s, not %s.", s.Service, name)
	}
	return nil
}
