package api

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	"example.com/billing/pkg/rpc"
	"example.com/billing/pkg/saga"
	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	"example.com/billing/services/edge"
)

// watchPollEvery is how often a watcher looks at a saga that another instance works on, or that is still on its way here.
const watchPollEvery = 250 * time.Millisecond

// WatchSaga sends what happened to a saga behind an entry, and goes on as more happens, until the saga has ended.
func (s *Server) WatchSaga(req *sagav1.WatchSagaRequest, out grpc.ServerStreamingServer[sagav1.WatchSagaResponse]) error {
	var v rpc.Fields
	id := v.UUID("sagaId", req.GetSagaId())
	after := int(edge.After(&v, req.After))
	if err := v.Err(); err != nil {
		return err
	}
	return s.watches.Serve(out.Context(), func(ctx context.Context) error {
		poll := time.NewTicker(watchPollEvery)
		defer poll.Stop()
		var accepted saga.State
		for first := true; ; first = false {
			st, changed, err := s.look(ctx, id, &accepted)
			if err != nil {
				return err
			}
			if first {
				if err := out.SendHeader(metadata.MD{}); err != nil { // the caller learns at once that there is something to watch
					return err
				}
			}
			if after, err = sendEntries(out, st, after); err != nil || st.Status.Ended() {
				return err
			}
			select {
			case <-changed:
			case <-poll.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
}

// look reads a saga as it is now. While it is still on its way here it is the accepted transaction's, which is asked for once.
func (s *Server) look(ctx context.Context, id string, accepted *saga.State) (saga.State, <-chan struct{}, error) {
	st, changed, err := s.engine.LookStored(ctx, id)
	if !errors.Is(err, saga.ErrNotFound) {
		return st, changed, err
	}
	if accepted.SagaID == "" {
		if *accepted, err = s.accepted(ctx, id); err != nil {
			return st, nil, err
		}
	}
	return *accepted, nil, nil
}

// sendEntries sends a saga's entries behind one and returns the last one's id.
func sendEntries(out grpc.ServerStreamingServer[sagav1.WatchSagaResponse], st saga.State, after int) (int, error) {
	history := st.History()
	for n := after; n < len(history); n++ {
		entry, err := entryToProto(st, history[n], n)
		if err != nil {
			return after, err
		}
		if err := out.Send(&sagav1.WatchSagaResponse{Entry: entry}); err != nil {
			return after, err
		}
		after = n + 1
	}
	return after, nil
}

func entryToProto(st saga.State, e saga.Entry, n int) (*sagav1.SagaEntry, error) {
	p := &sagav1.SagaEntry{Id: edge.Count(int64(n) + 1), Type: string(e.Type), Timestamp: timestamppb.New(e.At)}
	if e.Action != "" {
		p.Step = &e.Action
	}
	p.ErrorReason, p.ErrorMessage = edge.Optional(e.Reason), edge.Optional(e.Message)
	p.Verb, p.Actor, p.Reason = edge.Optional(string(e.Verb)), edge.Optional(e.Actor), edge.Optional(e.Why)
	if result := st.Result(n); len(result) > 0 {
		var err error
		if p.Result, err = toStruct(result); err != nil {
			return nil, err
		}
	}
	return p, nil
}
