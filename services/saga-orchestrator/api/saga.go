// Package api is the saga orchestrator over gRPC.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/page"
	"example.com/billing/pkg/rpc"
	"example.com/billing/pkg/saga"
	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/edge"
	orchestrator "example.com/billing/services/saga-orchestrator"
)

// Server is the service's gRPC API: SagaService and SagaTriggerService. Safe for concurrent use.
type Server struct {
	// Unsafe, as grpc-go calls it, has no stand-ins: a method of the contract that nobody wrote does not compile.
	sagav1.UnsafeSagaServiceServer
	sagav1.UnsafeSagaTriggerServiceServer
	engine       *saga.Engine
	registry     saga.Registry
	transactions transactionv1.TransactionServiceClient
	queries      *cqrs.Bus
	commands     *cqrs.Bus
	watches      *edge.Watches
}

// New makes the server and registers its handlers on a bus of its own. transactions tells of accepted transactions whose
// saga has not arrived yet.
func New(engine *saga.Engine, store saga.Store, registry saga.Registry, transactions transactionv1.TransactionServiceClient, watches *edge.Watches,
	mw ...cqrs.Middleware,
) *Server {
	s := &Server{engine: engine, registry: registry, transactions: transactions, queries: cqrs.NewBus(mw...), commands: cqrs.NewBus(mw...), watches: watches}
	cqrs.Handle(s.queries, func(ctx context.Context, q cqrs.Message[FindSaga]) (saga.State, error) {
		return engine.Get(ctx, q.Body.SagaID)
	})
	cqrs.Handle(s.queries, func(ctx context.Context, q cqrs.Message[ListSagas]) ([]saga.State, error) {
		return store.List(ctx, q.Body.Filter)
	})
	cqrs.Handle(s.queries, func(ctx context.Context, q cqrs.Message[CountSagas]) ([]saga.Count, error) {
		return store.Count(ctx, q.Body.Filter)
	})
	cqrs.Handle(s.commands, s.intervene)
	return s
}

// Register puts the services on a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	sagav1.RegisterSagaServiceServer(r, s)
	sagav1.RegisterSagaTriggerServiceServer(r, s)
}

// The queries of the public API.
type (
	// FindSaga reads one saga.
	FindSaga struct{ SagaID string }
	// ListSagas reads a page of sagas.
	ListSagas struct{ Filter saga.Filter }
)

// GetSaga reads a saga. A transaction that was accepted has one, even before its trigger has arrived here.
func (s *Server) GetSaga(ctx context.Context, req *sagav1.GetSagaRequest) (*sagav1.GetSagaResponse, error) {
	st, err := s.find(ctx, req.GetSagaId())
	if err != nil {
		return nil, err
	}
	p, err := toProto(st)
	return &sagav1.GetSagaResponse{Saga: p}, err
}

func (s *Server) find(ctx context.Context, sagaID string) (saga.State, error) {
	var v rpc.Fields
	id := v.UUID("sagaId", sagaID)
	if err := v.Err(); err != nil {
		return saga.State{}, err
	}
	st, err := cqrs.Execute[FindSaga, saga.State](ctx, s.queries, cqrs.New(FindSaga{SagaID: id}, edge.Origin(ctx)))
	if errors.Is(err, saga.ErrNotFound) {
		return s.accepted(ctx, id)
	}
	return st, err
}

// accepted is the saga of a transaction whose trigger is still on its way.
func (s *Server) accepted(ctx context.Context, id string) (saga.State, error) {
	res, err := s.transactions.GetTransaction(ctx, &transactionv1.GetTransactionRequest{TransactionId: id})
	if err != nil {
		if rpc.ErrorOf(err).Reason == "TRANSACTION_NOT_FOUND" {
			return saga.State{}, rpc.Fail("SAGA_NOT_FOUND", "There is no saga %s.", id)
		}
		return saga.State{}, err
	}
	t := res.GetTransaction()
	d, ok := s.registry.Newest(t.GetType())
	if !ok {
		return saga.State{}, fmt.Errorf("transaction %s: no saga of type %q", id, t.GetType())
	}
	at := t.GetCreatedAt().AsTime()
	return saga.State{SagaID: id, SagaType: d.Name, Status: saga.InProgress, Steps: d.StepNames(), CreatedAt: at, UpdatedAt: at}, nil
}

// ListSagas lists sagas, newest first.
func (s *Server) ListSagas(ctx context.Context, req *sagav1.ListSagasRequest) (*sagav1.ListSagasResponse, error) {
	var v rpc.Fields
	f := s.filter(ctx, &v, req)
	size := v.PageSize("pageSize", req.GetPageSize(), edge.PageSize, edge.PageSizeMax)
	if err := v.Err(); err != nil {
		return nil, err
	}
	f.Limit = int(size) + 1
	if req.GetPageToken() != "" {
		if err := rpc.DecodePageToken(req.GetPageToken(), &f.Before); err != nil {
			return nil, err
		}
	}
	states, err := cqrs.Execute[ListSagas, []saga.State](ctx, s.queries, cqrs.New(ListSagas{Filter: f}, edge.Origin(ctx)))
	if err != nil {
		return nil, err
	}
	res := &sagav1.ListSagasResponse{}
	if len(states) > int(size) {
		states = states[:size]
		last := states[size-1]
		res.NextPageToken = rpc.EncodePageToken(page.Cursor{CreatedAt: last.CreatedAt, ID: last.SagaID})
	}
	for _, st := range states {
		p, err := toProto(st)
		if err != nil {
			return nil, err
		}
		res.Sagas = append(res.Sagas, p)
	}
	return res, nil
}

// EnsureSaga starts the sagas of these trigger events that are not there yet.
func (s *Server) EnsureSaga(ctx context.Context, req *sagav1.EnsureSagaRequest) (*sagav1.EnsureSagaResponse, error) {
	if n := len(req.GetEvents()); n == 0 || n > edge.BatchMax {
		return nil, rpc.Invalid(rpc.Violation{Field: "events", Rule: "items:1..1000"})
	}
	var events []es.Event
	for i, b := range req.GetEvents() {
		e, err := es.Decode(b)
		if err != nil {
			return nil, rpc.Invalid(rpc.Violation{Field: fmt.Sprintf("events[%d]", i), Rule: "event", Value: err.Error()})
		}
		if id, ok := rpc.CanonicalUUID(e.Stream.ID); !ok || id != e.Stream.ID || !rpc.ValidCorrelationID(e.CorrelationID) {
			return nil, rpc.Invalid(rpc.Violation{Field: fmt.Sprintf("events[%d]", i), Rule: "ids", Value: e.Stream.ID})
		}
		if _, err := orchestrator.ReadInput(e.Data); err != nil {
			return nil, rpc.Invalid(rpc.Violation{Field: fmt.Sprintf("events[%d]", i), Rule: "data", Value: err.Error()})
		}
		if _, ok := s.registry.ByTrigger(e.Type); ok { // another is a newer version's: it will be asked for again
			events = append(events, e)
		}
	}
	n, err := s.engine.Start(ctx, Triggers(events))
	return &sagav1.EnsureSagaResponse{Started: edge.Count(int64(n))}, err
}

// Triggers turns events into what the engine starts sagas from.
func Triggers(events []es.Event) []saga.Trigger {
	triggers := make([]saga.Trigger, len(events))
	for i, e := range events {
		triggers[i] = saga.Trigger{
			SagaID: e.Stream.ID, EventID: e.ID, EventType: e.Type, Data: e.Data, CorrelationID: e.CorrelationID, Metadata: e.Metadata, At: e.At,
			Subjects: orchestrator.Accounts(e.Data),
		}
	}
	return triggers
}

func toProto(s saga.State) (*sagav1.Saga, error) {
	p := &sagav1.Saga{
		SagaId: s.SagaID, SagaType: s.SagaType, Status: string(s.Status), CurrentStep: edge.Count(int64(s.CurrentStep)), TotalSteps: edge.Count(int64(len(s.Steps))),
		Steps: s.Steps, Results: map[string]*structpb.Struct{}, CreatedAt: timestamppb.New(s.CreatedAt), UpdatedAt: timestamppb.New(s.UpdatedAt),
	}
	for step, raw := range s.Results {
		r, err := toStruct(raw)
		if err != nil {
			return nil, err
		}
		p.Results[step] = r
	}
	if s.ErrorReason != "" {
		p.ErrorReason, p.ErrorMessage = &s.ErrorReason, &s.ErrorMessage
	}
	for _, a := range s.Actions {
		r, err := toStruct(a.Result)
		if err != nil {
			return nil, err
		}
		p.CompensationActions = append(p.CompensationActions, &sagav1.CompensationAction{Action: a.Action, Result: r, Timestamp: timestamppb.New(a.Timestamp)})
	}
	return p, nil
}

func toStruct(raw json.RawMessage) (*structpb.Struct, error) {
	if len(raw) == 0 {
		return &structpb.Struct{}, nil
	}
	s := &structpb.Struct{}
	if err := s.UnmarshalJSON(raw); err != nil {
		return nil, fmt.Errorf("decode result: %w", err)
	}
	return s, nil
}
