package saga

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// interveneMax is how often a verb is decided anew because the saga changed meanwhile.
const interveneMax = 10

// Intervene does a person's verb to a saga: the registers of its actions are read first, then the verb is decided and stored, and
// the saga goes on from there, here or in another engine. It returns the new state; an *es.Refusal where a rule says no, with
// nothing changed; ErrNotFound; ErrStale where the saga does not come to rest.
func (e *Engine) Intervene(ctx context.Context, sagaID string, v Intervention) (State, error) {
	for attempt := 1; ; attempt++ {
		s, err := e.cfg.Store.Get(ctx, sagaID)
		if err != nil {
			return s, err
		}
		d, ok := e.cfg.Registry.Find(s.SagaType, s.Definition)
		if !ok {
			return s, fmt.Errorf("saga %s: its definition, %s version %d, is gone", sagaID, s.SagaType, s.Definition)
		}
		if v.Registers, err = e.readRegisters(ctx, d, s); err != nil {
			return s, err
		}
		if v.Reports, err = e.readReports(ctx, d, s); err != nil {
			return s, err
		}
		v.At = time.Now()
		after, err := Operate(d, s, v)
		if err != nil {
			return s, err
		}
		err = e.cfg.Store.Override(ctx, after)
		if errors.Is(err, ErrStale) && attempt < interveneMax {
			continue
		}
		if err != nil {
			return s, err
		}
		if r := e.running(sagaID); r != nil {
			r.look()
		}
		select {
		case e.now <- struct{}{}: // it is nobody's: whoever looks first takes it
		default:
		}
		if after.Status.Ended() && e.cfg.OnEnd != nil {
			e.cfg.OnEnd(after)
		}
		after.Revision++
		return after, nil
	}
}

// readRegisters reads the registers of all of a saga's actions that have one, at the same time.
func (e *Engine) readRegisters(ctx context.Context, d Definition, s State) (map[string]Register, error) {
	asked := registered(d, e.cfg.Registers)
	answers := make([]Register, len(asked))
	g, ctx := errgroup.WithContext(ctx)
	for i, did := range asked {
		g.Go(func() (err error) {
			answers[i], err = e.cfg.Registers[did.Action].Read(ctx, callOf(s, did))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("read the registers of saga %s: %w", s.SagaID, err)
	}
	said := make(map[string]Register, len(asked))
	for i, did := range asked {
		said[did.Action] = answers[i]
	}
	return said, nil
}

// readReports reads what the subject has heard of the action that a saga stopped at.
func (e *Engine) readReports(ctx context.Context, d Definition, s State) (map[string]Register, error) {
	if s.Before == nil {
		return nil, nil
	}
	for _, did := range Next(d, s.restored()) {
		read := e.cfg.Reports[did.Action]
		if did.Action != s.Before.Action || read == nil {
			continue
		}
		said, err := read(ctx, callOf(s.restored(), did))
		if err != nil {
			return nil, fmt.Errorf("read whether the subject of saga %s has heard of %s: %w", s.SagaID, did.Action, err)
		}
		return map[string]Register{did.Action: said}, nil
	}
	return nil, nil
}

// registered lists the actions of a saga whose registers a verb wants to know: of steps, and of the compensations that may have run.
func registered(d Definition, have map[string]Registers) []Decision {
	var all []Decision
	for _, step := range d.Steps {
		if have[step.Name] != nil {
			all = append(all, Decision{Op: OpStep, Action: step.Name, Step: step})
		}
		if step.Compensation != "" && have[step.Compensation] != nil {
			all = append(all, Decision{Op: OpUndo, Action: step.Compensation, Step: step})
		}
	}
	return all
}
