package es

import (
	"context"
	"iter"
	"sync"
	"time"
)

// Hub wakes who waits for new events of a stream. Tell it of every commit of this process (Notify); what other processes
// commit is found by looking. The zero value is ready. Safe for concurrent use.
type Hub struct {
	mu sync.Mutex
	by map[Stream]map[chan struct{}]struct{}
}

const (
	watchPollEvery = 250 * time.Millisecond // how often a watcher looks itself, for what another process commits
	watchPageMax   = 256                    // events a watcher reads at a time
)

// Notify wakes the watchers of these events' streams. It does not block.
func (h *Hub) Notify(events []Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.by) == 0 {
		return
	}
	for _, e := range events {
		for c := range h.by[e.Stream] {
			select {
			case c <- struct{}{}:
			default:
			}
		}
	}
}

// Listen returns a channel that has a value after a commit to the stream, and a function that gives it back.
func (h *Hub) Listen(s Stream) (news <-chan struct{}, leave func()) {
	c := make(chan struct{}, 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.by == nil {
		h.by = map[Stream]map[chan struct{}]struct{}{}
	}
	if h.by[s] == nil {
		h.by[s] = map[chan struct{}]struct{}{}
	}
	h.by[s][c] = struct{}{}
	return c, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.by[s], c)
		if len(h.by[s]) == 0 {
			delete(h.by, s)
		}
	}
}

// Waiting is how many streams are waited for.
func (h *Hub) Waiting() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.by)
}

// Watch yields a stream's events above version after, each once and in order, and waits for further ones until ctx ends,
// without an error then. It reads them from the store, so that whoever comes back with the last version seen misses
// nothing. It stops at the first error of the store.
func (h *Hub) Watch(ctx context.Context, store Store, s Stream, after int64) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		news, leave := h.Listen(s)
		defer leave()
		poll := time.NewTicker(watchPollEvery)
		defer poll.Stop()
		for {
			events, err := store.Load(ctx, s, after, watchPageMax)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				yield(Event{}, err)
				return
			}
			for _, e := range events {
				if !yield(e, nil) {
					return
				}
				after = e.Version
			}
			if len(events) == watchPageMax {
				continue
			}
			select {
			case <-news:
			case <-poll.C:
			case <-ctx.Done():
				return
			}
		}
	}
}
