package api

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	eventv1 "example.com/billing/proto/gen/go/billing/event/v1"
	"example.com/billing/services/edge"
)

// WatchAccount sends an account's events behind a version, and further ones as they are committed.
func (s *Server) WatchAccount(req *accountv1.WatchAccountRequest, out grpc.ServerStreamingServer[accountv1.WatchAccountResponse]) error {
	var v rpc.Fields
	id := v.UUID("accountId", req.GetAccountId())
	after := edge.After(&v, req.After)
	if err := v.Err(); err != nil {
		return err
	}
	return s.Watches.Serve(out.Context(), func(ctx context.Context) error {
		a, err := s.find(ctx, id)
		if err != nil {
			return err
		}
		if err := edge.NotAhead(stream(id), after, a.state.Version); err != nil {
			return err
		}
		if err := out.SendHeader(metadata.MD{}); err != nil { // the caller learns at once that there is something to watch
			return err
		}
		return s.Watches.Events(ctx, s.Store, stream(id), after, func(e *eventv1.RecordedEvent) error {
			return out.Send(&accountv1.WatchAccountResponse{Event: e})
		})
	})
}
