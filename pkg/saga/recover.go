package saga

import (
	"context"
	"time"

	"example.com/billing/pkg/page"
	"example.com/billing/pkg/progress"
)

// pageMax is how many sagas are taken up at a time.
const pageMax = 1000

// Run looks after sagas that nobody works on, at the start and from time to time, until ctx ends. Only while it runs sagas without an
// answer are put to sleep: it wakes them.
func (e *Engine) Run(ctx context.Context) error {
	e.looking.Add(1)
	defer e.looking.Add(-1)
	for {
		progress.Beat(ctx)
		if err := e.recover(ctx); err != nil && ctx.Err() == nil {
			e.cfg.Log.Warn("saga recovery", "error", err)
		}
		progress.Rest(ctx)
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
	if err := e.claim(ctx, epoch); err != nil {
		return err
	}
	for after := (page.Cursor{}); ; {
		idle, err := e.cfg.Store.Unfinished(ctx, epoch, e.cfg.RecoverIdle, after, pageMax)
		if err != nil {
			return err
		}
		var alone []string
		for _, after = range idle {
			if e.running(after.ID) == nil {
				alone = append(alone, after.ID)
			}
		}
		e.left.add(alone, false)
		if len(idle) < pageMax {
			return nil
		}
	}
}

// claim takes over sagas that are nobody's, as many as there are free slots: the rest is left to other engines.
func (e *Engine) claim(ctx context.Context, epoch int64) error {
	n := 0
	for {
		free := min(pageMax, cap(e.slots)-len(e.slots))
		if free <= 0 {
			break
		}
		sagas, err := e.cfg.Store.Claim(ctx, epoch, e.cfg.Registry.IDs(), free)
		if err != nil {
			return err
		}
		for i, s := range sagas {
			if err := e.work(ctx, s, true); err != nil {
				e.left.add(stateIDs(sagas[i:]), false)
				return err
			}
		}
		if n += len(sagas); len(sagas) < free {
			break
		}
	}
	if n > 0 {
		e.cfg.Log.Info("sagas taken up", "count", n)
	}
	return nil
}

func stateIDs(sagas []State) []string {
	ids := make([]string, len(sagas))
	for i, s := range sagas {
		ids[i] = s.SagaID
	}
	return ids
}
