package postgres

import (
	"sync"

	"example.com/billing/pkg/es"
)

// Committed is an event of this process as it was committed, with its JSON.
type Committed struct {
	Position      int64
	Stream        es.Stream
	Version       int64
	Type          string
	CorrelationID string
	Payload       []byte
}

// recentBytesMax bounds the payloads that are remembered.
const recentBytesMax = 8 << 20

// recent remembers what was committed here last, so that its relay need not read it back. Safe for concurrent use.
type recent struct {
	mu     sync.Mutex
	events map[int64]Committed // by position
	bytes  int
	newest int64
}

// add remembers a group. Where that is too much nobody keeps up: all is forgotten, for the database has it.
func (r *recent) add(group []Committed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.events == nil || r.bytes > recentBytesMax {
		r.events, r.bytes = map[int64]Committed{}, 0
	}
	for _, e := range group {
		r.events[e.Position] = e
		r.bytes += len(e.Payload)
		r.newest = max(r.newest, e.Position)
	}
}

// Recent takes the events right behind a position that this process has committed, limit at most, and forgets them. whole = as far as
// this process knows there are no others behind it: false means that the database has some that are not here.
func (s *Store) Recent(after int64, limit int) (events []Committed, whole bool) {
	r := &s.recent
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(events) < limit {
		e, ok := r.events[after+1]
		if !ok {
			break
		}
		events = append(events, e)
		after++
		delete(r.events, after)
		r.bytes -= len(e.Payload)
	}
	return events, len(events) > 0 || r.newest <= after
}
