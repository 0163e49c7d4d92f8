package saga

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// backlog are ids of stored sagas that the engine has to look at soon. Safe for concurrent use.
type backlog struct {
	mu   *sync.Mutex
	ids  map[string]bool // whether somebody has asked for the saga, and is to be told its end
	some chan struct{}   // has a value when there are ids
}

func newBacklog() backlog {
	return backlog{mu: &sync.Mutex{}, ids: map[string]bool{}, some: make(chan struct{}, 1)}
}

// backlogMax bounds what the backlog remembers. Beyond it, who asked asks again, and idle sagas are found in the store.
const backlogMax = 100_000

func (b *backlog) add(ids []string, asked bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, id := range ids {
		if len(b.ids) < backlogMax {
			b.ids[id] = b.ids[id] || asked
		}
	}
	if len(b.ids) > 0 {
		select {
		case b.some <- struct{}{}:
		default:
		}
	}
}

// take removes and returns some ids.
func (b *backlog) take(limit int) map[string]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	taken := make(map[string]bool, min(limit, len(b.ids)))
	for id, asked := range b.ids {
		if len(taken) == limit {
			break
		}
		taken[id] = asked
		delete(b.ids, id)
	}
	return taken
}

// clearBacklog looks at the sagas of the backlog until the engine stops.
func (e *Engine) clearBacklog() {
	pause := newPause(e.cfg.Retry)
	for {
		select {
		case <-e.left.some:
		case <-e.ctx.Done():
			return
		}
		for ids := e.left.take(pageMax); len(ids) > 0 && e.ctx.Err() == nil; ids = e.left.take(pageMax) {
			err := e.lookAt(ids)
			if err == nil {
				pause.Reset()
				continue
			}
			if e.ctx.Err() != nil {
				return
			}
			for id, asked := range ids {
				e.left.add([]string{id}, asked)
			}
			wait := pause.NextBackOff()
			e.cfg.Log.Warn("stored sagas cannot be looked at", "error", err, "again_in", wait)
			if !e.sleep(wait) {
				return
			}
		}
	}
}

// lookAt has the last reports of those sagas sent again that have ended and were asked for, and works on those that are this engine's.
func (e *Engine) lookAt(ids map[string]bool) error {
	sagas, err := e.cfg.Store.EndedOrOwned(e.ctx, e.lease.present(), slices.Collect(maps.Keys(ids)))
	if err != nil {
		return err
	}
	var reports errgroup.Group
	reports.SetLimit(reportsMax)
	for _, s := range sagas {
		if s.Status.Ended() && ids[s.SagaID] {
			reports.Go(func() error { e.reportAgain(s); return nil })
		}
	}
	_ = reports.Wait() // none returns an error
	for _, s := range sagas {
		if s.Status.Ended() || e.running(s.SagaID) != nil {
			continue
		}
		if err := e.work(e.ctx, s, true); err != nil {
			return err // the engine stops
		}
	}
	return nil
}

// reportsMax is how many reports are sent again at the same time; the actions send them in few requests.
const reportsMax = 256

// reportAgain sends the last report of an ended saga once: who has not heard it asks again.
func (e *Engine) reportAgain(s State) {
	d, ok := e.cfg.Registry.Find(s.SagaType, s.Definition)
	if !ok {
		return
	}
	last, ok := LastReport(d, s)
	if !ok {
		return
	}
	log := e.cfg.Log.With("saga", s.SagaID, "type", s.SagaType, "correlation_id", s.CorrelationID, "action", last.Action)
	answer, err := e.act(last.Op, callOf(s, last))
	switch {
	case err != nil:
		log.Warn("ended saga: its last report has no answer", "error", err)
	case answer.Outcome != Done:
		log.Error("ended saga: its last report was refused", "reason", answer.Reason, "message", answer.Message)
	default:
		e.counts.reported.Add(1)
		log.Info("ended saga: its last report was sent again")
	}
}

// counts are what an engine counts.
type counts struct {
	reported   atomic.Int64
	naps       atomic.Int64
	unanswered atomic.Int64
}

// Stats is what an engine has counted since its start.
type Stats struct {
	ReportedAgain int64 // last reports of ended sagas that were sent again
	Naps          int64 // times that a saga was put to sleep since an action had no answer
	Unanswered    int64 // actions without an answer that are asked again and again now; not those of sagas that sleep
}

// Stats returns the engine's counts.
func (e *Engine) Stats() Stats {
	return Stats{ReportedAgain: e.counts.reported.Load(), Naps: e.counts.naps.Load(), Unanswered: e.counts.unanswered.Load()}
}
