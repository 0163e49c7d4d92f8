package saga

import (
	"context"
	"time"

	"example.com/billing/pkg/batch"
)

// writer writes one saga's states in order, under their epoch and revision.
type writer struct {
	queue    *batch.Queue[State, struct{}]
	lease    *lease
	alive    context.Context // ends when the engine stops: then nobody renews the lease any more
	stored   func(State)     // is told what was stored
	epoch    int64
	revision int64      // of the stored row, without the write in flight
	flight   chan error // a write begun and not yet waited for; nil = none
	behind   time.Time  // since when there is a newer state than any that was begun; zero = there is none
}

// progressWithin is how soon the end of a step is stored while the next one is under way. Mostly the saga has ended by then, and one
// write does.
const progressWithin = time.Second

// later notes a newer state, to be begun soon unless another write comes first.
func (w *writer) later() {
	if w.behind.IsZero() {
		w.behind = time.Now()
	}
}

// begin writes a state without waiting. While the write before it is still under way it does nothing: a newer state follows.
func (w *writer) begin(ctx context.Context, s State) error {
	if w.flight != nil {
		select {
		case err := <-w.flight:
			if err := w.landed(err); err != nil {
				return err
			}
		default:
			return nil
		}
	}
	w.behind = time.Time{}
	if w.lease.held() != w.epoch {
		return nil // not sure to be ours: the next write that is waited for finds out
	}
	s.Revision, s.Epoch = w.revision, w.epoch
	flight := make(chan error, 1)
	w.flight = flight
	go func() {
		_, err := w.queue.Do(ctx, s)
		if err == nil {
			w.stored(s)
		}
		flight <- err
	}()
	return nil
}

// write writes a state and waits until it is stored. It waits for the lease first; where that was lost it returns errLost. Should
// the lease end between the check and the write, the store refuses the write by its epoch.
func (w *writer) write(ctx context.Context, s State) error {
	if w.flight != nil {
		if err := w.landed(<-w.flight); err != nil {
			return err
		}
	}
	if err := w.lease.check(w.alive, w.epoch); err != nil {
		return err
	}
	w.behind = time.Time{}
	s.Revision, s.Epoch = w.revision, w.epoch
	_, err := w.queue.Do(ctx, s)
	if err == nil {
		w.stored(s)
	}
	return w.landed(err)
}

func (w *writer) landed(err error) error {
	w.flight = nil
	if err == nil {
		w.revision++
	}
	return err
}
