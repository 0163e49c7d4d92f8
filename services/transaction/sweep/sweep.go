// Package sweep finds transactions whose saga never started and has it started: a trigger that was lost on its way is found
// in the service's own tables.
package sweep

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"example.com/billing/pkg/batch"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/run"
	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	"example.com/billing/services/transaction"
)

// Sweep looks through pending transactions from time to time.
type Sweep struct {
	Pending func(ctx context.Context, age time.Duration, after string, limit int) ([]string, error)
	// LoadEach is es.Store's.
	LoadEach func(ctx context.Context, spans []es.Span) ([]batch.Result[[]es.Event], error)
	Saga     sagav1.SagaTriggerServiceClient
	Log      *slog.Logger
	Every    time.Duration // 5 s
	Age      time.Duration // how long a transaction is given before it is looked after; 15 s
}

// batchMax is how many triggers go into one request.
const batchMax = 500

// Run sweeps until ctx ends.
func (s Sweep) Run(ctx context.Context) error {
	if s.Every <= 0 {
		s.Every = 5 * time.Second
	}
	if s.Age <= 0 {
		s.Age = 15 * time.Second
	}
	return run.Every(ctx, s.Every, s.Log, "sweep", func(ctx context.Context) error {
		n, err := s.once(ctx)
		if n > 0 {
			s.Log.Warn("sweep started sagas whose trigger was lost", "count", n)
		}
		return err
	})
}

// once goes through all pending transactions of that age.
func (s Sweep) once(ctx context.Context) (started int32, err error) {
	for after := ""; ; {
		ids, err := s.Pending(ctx, s.Age, after, batchMax)
		if err != nil || len(ids) == 0 {
			return started, err
		}
		n, err := s.ensure(ctx, ids)
		if started += n; err != nil {
			return started, err
		}
		after = ids[len(ids)-1]
	}
}

// ensure sends transactions' first events to the orchestrator, which starts what it does not know.
func (s Sweep) ensure(ctx context.Context, ids []string) (started int32, err error) {
	spans := make([]es.Span, len(ids))
	for i, id := range ids {
		spans[i] = es.Span{Stream: es.Stream{Type: transaction.AggregateType, ID: id}, Limit: 1}
	}
	loaded, err := s.LoadEach(ctx, spans)
	if err != nil {
		return 0, err
	}
	req := &sagav1.EnsureSagaRequest{}
	for i, l := range loaded {
		if l.Err != nil {
			return 0, l.Err
		}
		if len(l.Value) == 0 {
			return 0, fmt.Errorf("transaction %s is pending and has no events", ids[i])
		}
		b, err := l.Value[0].Encode()
		if err != nil {
			return 0, err
		}
		req.Events = append(req.Events, b)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	res, err := s.Saga.EnsureSaga(ctx, req)
	return res.GetStarted(), err
}
