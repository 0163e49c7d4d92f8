package api

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/rpc"
	eventv1 "example.com/billing/proto/gen/go/billing/event/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/edge"
	"example.com/billing/services/transaction"
)

// WatchTransaction sends a transaction's events behind a version, and further ones as they are committed.
func (s *Server) WatchTransaction(req *transactionv1.WatchTransactionRequest, out grpc.ServerStreamingServer[transactionv1.WatchTransactionResponse]) error {
	var v rpc.Fields
	id := v.UUID("transactionId", req.GetTransactionId())
	after := edge.After(&v, req.After)
	if err := v.Err(); err != nil {
		return err
	}
	return s.Watches.Serve(out.Context(), func(ctx context.Context) error {
		t, err := s.existing(ctx, id)
		if err != nil {
			return err
		}
		if err := edge.NotAhead(stream(id), after, t.Version); err != nil {
			return err
		}
		if err := out.SendHeader(metadata.MD{}); err != nil { // the caller learns at once that there is something to watch
			return err
		}
		return s.Watches.Events(ctx, s.Store, stream(id), after, func(e *eventv1.RecordedEvent) error {
			return out.Send(&transactionv1.WatchTransactionResponse{Event: e})
		})
	})
}

func stream(transactionID string) es.Stream {
	return es.Stream{Type: transaction.AggregateType, ID: transactionID}
}
