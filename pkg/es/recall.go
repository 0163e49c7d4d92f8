package es

import (
	"sync"
	"time"
)

// Recall remembers the events of this process by their JSON, so that reading it again, when it comes back from Kafka, costs a
// look-up: equal bytes mean equal events. The zero value works. Safe for concurrent use.
type Recall struct {
	mu         sync.Mutex
	young, old map[string]Event
	bytes      int // of young
}

// recallBytesMax bounds the JSON of each of two generations.
const recallBytesMax = 4 << 20

// Add remembers an event and the JSON that Encode wrote for it. One without the fact that it was recorded from is let go: there is
// nothing to be saved.
func (r *Recall) Add(payload []byte, e Event) {
	if e.recorded == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.young == nil || r.bytes+len(payload) > recallBytesMax {
		r.young, r.old, r.bytes = make(map[string]Event, len(r.young)), r.young, 0
	}
	e.At = e.At.UTC().Truncate(time.Millisecond)
	r.young[string(payload)] = e
	r.bytes += len(payload)
}

// Decode is Decode, without the work where the event is remembered. Its metadata and data are not to be changed.
func (r *Recall) Decode(b []byte) (Event, error) {
	r.mu.Lock()
	e, ok := r.young[string(b)]
	if !ok {
		e, ok = r.old[string(b)]
	}
	r.mu.Unlock()
	if ok {
		return e, nil
	}
	return Decode(b)
}
