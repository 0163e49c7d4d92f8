package saga

import (
	"context"

	"example.com/billing/pkg/batch"
)

// writer writes one saga's states in order, under their revision.
type writer struct {
	queue    *batch.Queue[State, struct{}]
	revision int64      // of the stored row, without the write in flight
	flight   chan error // a write begun and not yet waited for; nil = none
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
	s.Revision = w.revision
	flight := make(chan error, 1)
	w.flight = flight
	go func() {
		_, err := w.queue.Do(ctx, s)
		flight <- err
	}()
	return nil
}

// write writes a state and waits until it is stored.
func (w *writer) write(ctx context.Context, s State) error {
	if w.flight != nil {
		if err := w.landed(<-w.flight); err != nil {
			return err
		}
	}
	s.Revision = w.revision
	_, err := w.queue.Do(ctx, s)
	return w.landed(err)
}

func (w *writer) landed(err error) error {
	w.flight = nil
	if err == nil {
		w.revision++
	}
	return err
}
