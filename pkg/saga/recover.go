package saga

import (
	"context"
	"time"

	"example.com/billing/pkg/page"
)

// Run looks after sagas that nobody works on, at the start and from time to time, until ctx ends.
func (e *Engine) Run(ctx context.Context) error {
	idle := time.Duration(0) // at the start all unfinished sagas are ours to look after
	for {
		if err := e.recover(ctx, idle); err != nil && ctx.Err() == nil {
			e.cfg.Log.Warn("saga recovery", "error", err)
		} else {
			idle = e.cfg.RecoverIdle
		}
		select {
		case <-time.After(e.cfg.RecoverEvery):
		case <-ctx.Done():
			return nil
		}
	}
}

// recover takes up every unfinished saga that was idle and is not being worked on here.
func (e *Engine) recover(ctx context.Context, idle time.Duration) error {
	const pageMax = 1000
	var (
		after      page.Cursor
		n, orphans int
	)
	for {
		sagas, err := e.cfg.Store.Unfinished(ctx, idle, after, pageMax)
		if err != nil {
			return err
		}
		for _, s := range sagas {
			after = page.Cursor{CreatedAt: s.CreatedAt, ID: s.SagaID}
			if _, known := e.cfg.Registry.Find(s.SagaType, s.Definition); !known {
				orphans++
				continue
			}
			if e.busy(s.SagaID) {
				continue
			}
			n++
			if err := e.work(ctx, s, true); err != nil {
				return err
			}
		}
		if len(sagas) < pageMax {
			break
		}
	}
	if orphans > 0 {
		e.cfg.Log.Error("sagas cannot run: their definitions are gone", "count", orphans)
	}
	if n > 0 {
		e.cfg.Log.Info("sagas taken up", "count", n)
	}
	return nil
}

func (e *Engine) busy(sagaID string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.active[sagaID] != nil
}
