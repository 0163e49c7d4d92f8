package kafka

import (
	"errors"
	"time"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/kafka"
)

// group is appends that commit together, decided one behind the other upon the state.
type group struct {
	topic    string
	state    *state
	recorded time.Time
	versions map[es.Stream]int64
	ids      map[string]bool

	messages  []kafka.Message
	events    []stored
	snapshots []snapshot
	bytes     int
}

func (s *Store) newGroup() *group {
	return &group{topic: s.opts.Topic, state: s.state, recorded: s.now(), versions: map[es.Stream]int64{}, ids: map[string]bool{}}
}

// add takes an append in, whole, or says why not.
func (g *group) add(item []es.Append) error {
	if err := es.CheckAppends(item); err != nil {
		var limit *es.LimitError
		if errors.As(err, &limit) {
			return err
		}
		return refusal{err}
	}
	var (
		messages  []kafka.Message
		events    []stored
		snapshots []snapshot
		ids       = map[string]bool{}
		bytes     int
	)
	for _, a := range item {
		actual, err := g.version(a.Stream)
		if err != nil {
			return err
		}
		if actual != a.Expected {
			return &es.ConflictError{Stream: a.Stream, Expected: a.Expected, Actual: actual}
		}
		var known []string
		for _, e := range a.Events {
			there, err := g.state.knows(e.ID)
			if err != nil {
				return err
			}
			if there || g.ids[e.ID] || ids[e.ID] {
				known = append(known, e.ID)
			}
			ids[e.ID] = true
			payload, err := e.Encode()
			if err != nil {
				return refusal{err}
			}
			if len(payload) > es.EventBytesMax {
				return &es.LimitError{Stream: a.Stream, Limit: "event size in bytes", Max: es.EventBytesMax, Actual: len(payload)}
			}
			e.RecordedAt = g.recorded
			messages, events = append(messages, message(g.topic, e, payload, g.recorded)), append(events, stored{Event: e, payload: payload})
			bytes += len(payload)
		}
		if known != nil {
			return &es.DuplicateError{Stream: a.Stream, IDs: known}
		}
		if a.Snapshot != nil && len(a.Events) > 0 {
			snapshots = append(snapshots, snapshot{a.Stream, a.Expected + int64(len(a.Events)), a.Snapshot, a.Kept()})
		}
	}
	for _, a := range item {
		g.versions[a.Stream] = a.Expected + int64(len(a.Events))
	}
	for id := range ids {
		g.ids[id] = true
	}
	g.messages, g.events, g.snapshots = append(g.messages, messages...), append(g.events, events...), append(g.snapshots, snapshots...)
	g.bytes += bytes
	return nil
}

// version is where a stream stands behind what the group has taken in.
func (g *group) version(stream es.Stream) (int64, error) {
	if v, known := g.versions[stream]; known {
		return v, nil
	}
	h, err := g.state.head(stream)
	return h.Version, err
}
