package subscription

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"

	"github.com/jackc/pgx/v5"

	"example.com/billing/pkg/es"
)

// worker handles one partition's events under one lease.
type worker struct {
	*run
	partition int
	epoch     int64
	position  atomic.Int64 // everything up to here is handled; the checkpoint follows where nothing was to be handled
	leaving   bool         // it was told to end; guarded by the run's lock
	cancel    context.CancelFunc
}

func (w *worker) lease() lease { return lease{w.partition, w.epoch, w.position.Load()} }

// leave has the worker end. The caller holds the run's lock.
func (w *worker) leave() {
	w.leaving = true
	w.cancel()
}

// work handles batch after batch, until ctx ends or the lease is lost.
func (w *worker) work(ctx context.Context) {
	pause := w.newPause()
	for {
		w.tail.await(ctx, w.position.Load())
		if ctx.Err() != nil {
			return
		}
		err := w.step(ctx)
		if err == nil {
			pause.Reset()
			continue
		}
		// Whether the transaction was committed may not be known: the checkpoint says so.
		position, lost, readErr := w.table.checkpoint(ctx, w.lease())
		if ctx.Err() != nil || lost {
			return
		}
		if readErr == nil && position > w.position.Load() {
			w.position.Store(position)
			continue
		}
		again := pause.NextBackOff()
		w.OnError(fmt.Errorf("subscription %q: partition %d: %w", w.Name, w.partition, err), again)
		sleep(ctx, again)
	}
}

// step reads a page of the log and handles what is the partition's.
func (w *worker) step(ctx context.Context) error {
	from := w.lease()
	events, to, err := w.table.read(ctx, from.position, w.BatchMax, func(st es.Stream) bool {
		return (w.AggregateType == "" || st.Type == w.AggregateType) && Partition(st, w.Partitions) == w.partition
	})
	if err != nil {
		return err
	}
	if len(events) > 0 {
		err := w.table.commit(ctx, from, to, func(tx pgx.Tx) error { return w.handle(ctx, tx, events) })
		if err != nil {
			return err
		}
	}
	w.position.Store(to)
	return nil
}

// handle calls the handler. A panic is an error like another: an event must not end the process again and again.
func (w *worker) handle(ctx context.Context, tx pgx.Tx, events []es.Event) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
		if err != nil {
			err = fmt.Errorf("handle %d events of positions %d to %d: %w", len(events), events[0].Position, events[len(events)-1].Position, err)
		}
	}()
	return w.Handle(ctx, tx, events)
}

// errMoved: the partition is another instance's, or its checkpoint is ahead. Nothing was handled.
var errMoved = errors.New("the checkpoint is not this lease's")
