package api

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/rpc"
	"example.com/billing/pkg/saga"
	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	"example.com/billing/services/edge"
)

// The commands and queries of operators.
type (
	// Intervene does a verb to a saga.
	Intervene struct {
		SagaID string
		Verb   saga.Verb
		Why    string
	}
	// CountSagas counts sagas by kind.
	CountSagas struct{ Filter saga.Filter }
)

// RetrySaga has a saga do again what it stopped at.
func (s *Server) RetrySaga(ctx context.Context, req *sagav1.RetrySagaRequest) (*sagav1.RetrySagaResponse, error) {
	p, err := s.operate(ctx, saga.Retry, req)
	return &sagav1.RetrySagaResponse{Saga: p}, err
}

// SkipSaga has a saga go on without what it stopped at.
func (s *Server) SkipSaga(ctx context.Context, req *sagav1.SkipSagaRequest) (*sagav1.SkipSagaResponse, error) {
	p, err := s.operate(ctx, saga.Skip, req)
	return &sagav1.SkipSagaResponse{Saga: p}, err
}

// CompensateSaga gives a saga up.
func (s *Server) CompensateSaga(ctx context.Context, req *sagav1.CompensateSagaRequest) (*sagav1.CompensateSagaResponse, error) {
	p, err := s.operate(ctx, saga.Compensate, req)
	return &sagav1.CompensateSagaResponse{Saga: p}, err
}

// ResumeSaga sends a saga forward.
func (s *Server) ResumeSaga(ctx context.Context, req *sagav1.ResumeSagaRequest) (*sagav1.ResumeSagaResponse, error) {
	p, err := s.operate(ctx, saga.Resume, req)
	return &sagav1.ResumeSagaResponse{Saga: p}, err
}

// ResolveSaga ends a saga as what its registers say.
func (s *Server) ResolveSaga(ctx context.Context, req *sagav1.ResolveSagaRequest) (*sagav1.ResolveSagaResponse, error) {
	p, err := s.operate(ctx, saga.Resolve, req)
	return &sagav1.ResolveSagaResponse{Saga: p}, err
}

func (s *Server) operate(ctx context.Context, verb saga.Verb, req interface {
	GetSagaId() string
	GetReason() string
},
) (*sagav1.Saga, error) {
	var v rpc.Fields
	c := Intervene{SagaID: v.UUID("sagaId", req.GetSagaId()), Verb: verb, Why: req.GetReason()}
	if v.Required("reason", c.Why) {
		v.MaxLen("reason", c.Why, edge.ReferenceMax)
	}
	if err := v.Err(); err != nil {
		return nil, err
	}
	st, err := cqrs.Execute[Intervene, saga.State](ctx, s.commands, cqrs.New(c, edge.Origin(ctx)))
	if err != nil {
		return nil, err
	}
	return toProto(st)
}

// intervene is the handler of Intervene.
func (s *Server) intervene(ctx context.Context, c cqrs.Message[Intervene]) (saga.State, error) {
	st, err := s.engine.Intervene(ctx, c.Body.SagaID, saga.Intervention{Verb: c.Body.Verb, Actor: c.Actor, Why: c.Body.Why})
	switch {
	case errors.Is(err, saga.ErrNotFound):
		if _, err := s.accepted(ctx, c.Body.SagaID); err != nil {
			return st, err
		}
		return st, rpc.Fail(saga.ReasonNotWaiting, "The saga was accepted a moment ago and is on its way to its first step.")
	case errors.Is(err, saga.ErrStale):
		return st, rpc.Fail("SAGA_CHANGED", "The saga kept changing while the request was decided.")
	}
	return st, err
}

// GetSagaTimeline tells everything that happened to a saga.
func (s *Server) GetSagaTimeline(ctx context.Context, req *sagav1.GetSagaTimelineRequest) (*sagav1.GetSagaTimelineResponse, error) {
	st, err := s.find(ctx, req.GetSagaId())
	if err != nil {
		return nil, err
	}
	res := &sagav1.GetSagaTimelineResponse{
		SagaId: st.SagaID, SagaType: st.SagaType, Status: string(st.Status), DurationMs: millis(st.CreatedAt, st.UpdatedAt), Overdue: st.Overdue,
	}
	for i, r := range st.Records() {
		res.Steps = append(res.Steps, &sagav1.SagaStep{
			Name: st.Steps[i], Status: string(r.Status), StartedAt: edge.Timestamp(r.StartedAt), EndedAt: edge.Timestamp(r.EndedAt),
			DurationMs: millis(r.StartedAt, r.EndedAt), Attempts: edge.Count(int64(r.Attempts)),
		})
	}
	for n, e := range st.History() {
		entry, err := entryToProto(st, e, n)
		if err != nil {
			return nil, err
		}
		res.Entries = append(res.Entries, entry)
	}
	return res, nil
}

// millis is the time between two times; 0 unless both are known.
func millis(from, to time.Time) int32 {
	if from.IsZero() || to.IsZero() {
		return 0
	}
	return edge.Count(max(to.Sub(from).Milliseconds(), 0))
}

// CountSagas counts sagas by type, status and error reason.
func (s *Server) CountSagas(ctx context.Context, req *sagav1.CountSagasRequest) (*sagav1.CountSagasResponse, error) {
	var v rpc.Fields
	f := s.filter(ctx, &v, req)
	if err := v.Err(); err != nil {
		return nil, err
	}
	counts, err := cqrs.Execute[CountSagas, []saga.Count](ctx, s.queries, cqrs.New(CountSagas{Filter: f}, edge.Origin(ctx)))
	if err != nil {
		return nil, err
	}
	res := &sagav1.CountSagasResponse{}
	for _, c := range counts {
		p := &sagav1.SagaCount{SagaType: c.Type, Status: string(c.Status), Sagas: edge.Count(c.Sagas), OldestAt: timestamppb.New(c.Oldest)}
		if c.ErrorReason != "" {
			p.ErrorReason = &c.ErrorReason
		}
		res.Counts = append(res.Counts, p)
	}
	return res, nil
}

// filter reads what a list and a count of sagas can be narrowed by.
func (s *Server) filter(ctx context.Context, v *rpc.Fields, req interface {
	GetStatus() string
	GetType() string
	GetAccountId() string
	GetErrorReason() string
	GetCreatedFrom() *timestamppb.Timestamp
	GetCreatedBefore() *timestamppb.Timestamp
},
) saga.Filter {
	f := saga.Filter{TenantID: edge.Origin(ctx).TenantID, ErrorReason: req.GetErrorReason()}
	f.Status = saga.Status(edge.OneOf(v, "status", req.GetStatus(), saga.Statuses()))
	f.Type = edge.OneOf(v, "type", req.GetType(), s.registry.Types())
	v.MaxLen("errorReason", f.ErrorReason, edge.KeyMax)
	if req.GetAccountId() != "" {
		f.Subject = v.UUID("accountId", req.GetAccountId())
	}
	if at := v.Time("createdFrom", req.GetCreatedFrom()); at != nil {
		f.Since = *at
	}
	if at := v.Time("createdBefore", req.GetCreatedBefore()); at != nil {
		f.Until = *at
	}
	return f
}
