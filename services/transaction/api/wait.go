package api

import (
	"context"
	"sync"
	"time"
)

// pollEvery is how often a waiting caller looks itself, for a transaction that another instance ends.
const pollEvery = 250 * time.Millisecond

// waiters tells callers of this process when their transaction has ended. Safe for concurrent use.
type waiters struct {
	mu sync.Mutex
	by map[string]map[chan struct{}]struct{}
}

// add returns a channel that gets a value when the transaction has ended, and a function that gives it back.
func (w *waiters) add(id string) (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.by == nil {
		w.by = map[string]map[chan struct{}]struct{}{}
	}
	if w.by[id] == nil {
		w.by[id] = map[chan struct{}]struct{}{}
	}
	w.by[id][c] = struct{}{}
	return c, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.by[id], c)
		if len(w.by[id]) == 0 {
			delete(w.by, id)
		}
	}
}

// ended wakes who waits for the transaction.
func (w *waiters) ended(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.by[id] {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// wait returns when the transaction has ended, by word or by looking, or the time is over.
func wait(ctx context.Context, word <-chan struct{}, d time.Duration, look func(context.Context) (bool, error)) error {
	over := time.NewTimer(d)
	defer over.Stop()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for {
		select {
		case <-word:
			return nil
		case <-poll.C:
			if done, err := look(ctx); err != nil || done {
				return err
			}
		case <-over.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
