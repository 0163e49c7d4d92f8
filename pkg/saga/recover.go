package saga

import (
	"context"
	"time"

	"example.com/billing/pkg/page"
)

// pageMax is how many sagas are taken up at a time.
const pageMax = 1000

// Run looks after sagas that nobody works on, at the start and from time to time, until ctx ends.
func (e *Engine) Run(ctx context.Context) error {
	for {
		if err := e.recover(ctx); err != nil && ctx.Err() == nil {
			e.cfg.Log.Warn("saga recovery", "error", err)
		}
		select {
		case <-time.After(e.cfg.RecoverEvery):
		case <-e.now:
		case <-ctx.Done():
			return nil
		}
	}
}

// recover takes over the sagas that are nobody's, and takes up its own that are left alone.
func (e *Engine) recover(ctx context.Context) error {
	epoch, err := e.hold(ctx)
	if err != nil {
		return err
	}
	n := 0
	take := func(sagas []State) error {
		for _, s := range sagas {
			n++
			if err := e.work(ctx, s, true); err != nil {
				return err
			}
		}
		return nil
	}
	for {
		free := min(pageMax, cap(e.slots)-len(e.slots)) // what cannot be worked on here is left to others
		if free <= 0 {
			break
		}
		sagas, err := e.cfg.Store.Claim(ctx, epoch, e.cfg.Registry.IDs(), free)
		if err != nil {
			return err
		}
		if err := take(sagas); err != nil {
			return err
		}
		if len(sagas) < free {
			break
		}
	}
	for after := (page.Cursor{}); ; {
		sagas, err := e.cfg.Store.Unfinished(ctx, epoch, e.cfg.RecoverIdle, after, pageMax)
		if err != nil {
			return err
		}
		var idle []State
		for _, s := range sagas {
			after = page.Cursor{CreatedAt: s.CreatedAt, ID: s.SagaID}
			if e.running(s.SagaID) == nil {
				idle = append(idle, s)
			}
		}
		if err := take(idle); err != nil {
			return err
		}
		if len(sagas) < pageMax {
			break
		}
	}
	if n > 0 {
		e.cfg.Log.Info("sagas taken up", "count", n)
	}
	return nil
}
