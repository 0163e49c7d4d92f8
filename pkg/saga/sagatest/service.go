package sagatest

import (
	"context"
	"errors"
	"sync"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/saga"
)

// Service keeps what sagas ask of it as the contract of saga.Call wants: a call has its effect once, a compensation also comes
// before or without its step, and a step that comes after its compensation is refused. In memory, for tests and examples; a
// service of one's own keeps its registers in the transaction of the effect. Safe for concurrent use.
type Service struct {
	mu        sync.Mutex
	registers map[string]answered // by saga and action
}

type answered struct {
	register saga.Register
	answer   saga.Answer
}

// NewService returns a service that nobody has asked yet.
func NewService() *Service { return &Service{registers: map[string]answered{}} }

// Do is a step. effect's result is shown in the saga; an *es.Refusal is a refusal; another error means unknown, and leaves no trace.
func (s *Service) Do(effect func(c saga.Call) (map[string]any, error)) saga.Action {
	return func(_ context.Context, c saga.Call) (saga.Answer, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.once(c, c.Action, effect)
	}
}

// Undo is a compensation: effect runs only where the step was done.
func (s *Service) Undo(effect func(c saga.Call) (map[string]any, error)) saga.Action {
	return func(_ context.Context, c saga.Call) (saga.Answer, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.cancel(c, c.Undoes).register != saga.RegisterDone {
			return saga.Answer{Outcome: saga.Done}, nil
		}
		return s.once(c, c.Action, effect)
	}
}

func (s *Service) once(c saga.Call, action string, effect func(saga.Call) (map[string]any, error)) (saga.Answer, error) {
	key := c.SagaID + "/" + action
	if r, ok := s.registers[key]; ok {
		return r.answer, nil
	}
	result, err := effect(c)
	r := answered{register: saga.RegisterDone, answer: saga.Answer{Outcome: saga.Done, Result: result}}
	var refusal *es.Refusal
	if errors.As(err, &refusal) {
		r = answered{register: saga.RegisterRefused, answer: saga.Answer{Outcome: saga.Refused, Reason: refusal.Reason, Message: refusal.Message}}
	} else if err != nil {
		return saga.Answer{}, err
	}
	s.registers[key] = r
	return r.answer, nil
}

// cancel closes a register that is open, and returns what is in it.
func (s *Service) cancel(c saga.Call, action string) answered {
	key := c.SagaID + "/" + action
	if _, ok := s.registers[key]; !ok {
		s.registers[key] = answered{saga.RegisterCancelled, saga.Answer{Outcome: saga.Refused, Reason: "CANCELLED", Message: "It was cancelled before it was done."}}
	}
	return s.registers[key]
}

// Cancel is saga.Registers'.
func (s *Service) Cancel(_ context.Context, c saga.Call) (saga.Answer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cancel(c, c.Action).answer, nil
}

// Read is saga.Registers'.
func (s *Service) Read(_ context.Context, c saga.Call) (saga.Register, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.registers[c.SagaID+"/"+c.Action]; ok {
		return r.register, nil
	}
	return saga.RegisterOpen, nil
}

var _ saga.Registers = (*Service)(nil)
