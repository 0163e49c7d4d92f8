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

	incarnation int64 // of the database in which they have these positions
}

// add remembers a group. Where that is too much nobody keeps up: all is forgotten, for the database has it.
func (r *recent) add(incarnation int64, group []Committed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if incarnation < r.incarnation {
		return // committed in a history that has ended meanwhile
	}
	r.begin(incarnation)
	if r.events == nil || r.bytes > recentBytesMax {
		r.events, r.bytes = map[int64]Committed{}, 0
	}
	for _, e := range group {
		r.events[e.Position] = e
		r.bytes += len(e.Payload)
		r.newest = max(r.newest, e.Position)
	}
}

// begin forgets what was committed in an older incarnation.
func (r *recent) begin(incarnation int64) {
	if incarnation > r.incarnation {
		r.events, r.bytes, r.newest, r.incarnation = nil, 0, 0, incarnation
	}
}

// Recent takes the events right behind a position that this process has committed, limit at most, and forgets them. whole = as far as
// this process knows there are no others behind it: false means that the database has some that are not here. The position is one of
// this incarnation of the database.
func (s *Store) Recent(incarnation, after int64, limit int) (events []Committed, whole bool) {
	r := &s.recent
	r.mu.Lock()
	defer r.mu.Unlock()
	if incarnation != r.incarnation && r.incarnation != 0 {
		return nil, false
	}
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
