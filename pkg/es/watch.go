package es

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
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
	watchHeadEvery = 2 * time.Second        // how often a watcher asks whether the stream still has what it has seen
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

// GoneError says that a stream ends before a version that was seen before. The store has lost that part of its history.
type GoneError struct {
	Stream     Stream
	Seen, Head int64
}

// Error names both versions.
func (e *GoneError) Error() string {
	return fmt.Sprintf("%s ends at version %d, before version %d, which was seen", e.Stream, e.Head, e.Seen)
}

// StillHas returns a *GoneError for a stream that ends before the version that was seen of it.
func StillHas(ctx context.Context, store interface {
	Heads(ctx context.Context, streams []Stream) ([]Head, error)
}, seen map[Stream]int64) error {
	streams := slices.Collect(maps.Keys(seen))
	heads, err := store.Heads(ctx, streams)
	if err != nil {
		return err
	}
	for i, s := range streams {
		if heads[i].Version < seen[s] {
			return &GoneError{Stream: s, Seen: seen[s], Head: heads[i].Version}
		}
	}
	return nil
}

// Watch yields a stream's events above version after, each once and in order, and waits for further ones until ctx ends,
// without an error then. It reads them from the store, so that whoever comes back with the last version seen misses
// nothing. It stops at the first error of the store, and with a *GoneError where the stream ends before that version.
func (h *Hub) Watch(ctx context.Context, store Store, s Stream, after int64) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		news, leave := h.Listen(s)
		defer leave()
		poll := time.NewTicker(watchPollEvery)
		defer poll.Stop()
		var asked time.Time // when the stream last had the version seen
		for {
			events, err := store.Load(ctx, s, after, watchPageMax)
			if err == nil && len(events) == 0 && after > 0 && time.Since(asked) >= watchHeadEvery {
				err = StillHas(ctx, store, map[Stream]int64{s: after})
				asked = time.Now()
			}
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
