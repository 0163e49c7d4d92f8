package kafka

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/kafka"
)

// Reader reads a log without a state of its own, and without leading it: always from its beginning. Safe for concurrent use.
type Reader struct {
	Kafka kafka.Config
	Topic string
}

// ReadAll yields what is committed when it is called, as es.Store's.
func (r Reader) ReadAll(ctx context.Context, aggregateType string, from es.From) iter.Seq2[es.Event, error] {
	return func(yield func(es.Event, error) bool) {
		ends, err := kafka.Ends(ctx, r.Kafka, r.Topic)
		if err == nil && len(ends) != 1 {
			err = fmt.Errorf("topic %s has %d partitions: an event store's log has one", r.Topic, len(ends))
		}
		if err != nil {
			yield(es.Event{}, err)
			return
		}
		r.read(ctx, ends[0], selected(aggregateType, from, yield))
	}
}

// Follow yields everything, and then what comes, until ctx ends.
func (r Reader) Follow(ctx context.Context, aggregateType string, from es.From) iter.Seq2[es.Event, error] {
	return func(yield func(es.Event, error) bool) {
		r.read(ctx, math.MaxInt64, selected(aggregateType, from, yield))
	}
}

// selected passes only what is asked for on.
func selected(aggregateType string, from es.From, yield func(es.Event, error) bool) func(es.Event, error) bool {
	return func(e es.Event, err error) bool {
		if err == nil && (e.Position <= from.After || e.RecordedAt.Before(from.Since) || aggregateType != "" && e.Stream.Type != aggregateType) {
			return true
		}
		return yield(e, err)
	}
}

func (r Reader) read(ctx context.Context, end int64, yield func(es.Event, error) bool) {
	tail, err := kafka.NewTail(r.Kafka, r.Topic, 0, 0)
	if err != nil {
		yield(es.Event{}, err)
		return
	}
	defer tail.Close()
	position := int64(0)
	for tail.Next() < end {
		messages, err := tail.Read(ctx)
		if err != nil {
			if ctx.Err() == nil || end < math.MaxInt64 {
				yield(es.Event{}, err)
			}
			return
		}
		for _, m := range messages {
			e, err := read(m)
			if errors.Is(err, errForeign) {
				continue
			}
			position++
			e.Position = position
			if !yield(e.Event, err) || err != nil {
				return
			}
		}
	}
}

// Import writes events of another store, at the positions and with the times that they have there. They must follow what is in the log. It is
// done in several commits, each whole; where it fails, what is there is a beginning of what was to be. The store must lead.
func (s *Store) Import(ctx context.Context, events []es.Event) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	for len(events) > 0 {
		g, n := s.newGroup(), 0
		for ; n < len(events) && n < importMax && g.bytes < bytesMax; n++ {
			if err := g.take(events[n], int64(n)); err != nil {
				return err
			}
		}
		if err := s.commit(ctx, g); err != nil {
			return unavailable("import", err)
		}
		events = events[n:]
	}
	return nil
}

// take takes an event in as it is.
func (g *group) take(e es.Event, n int64) error {
	if want := g.state.at.Position + n + 1; e.Position != want {
		return fmt.Errorf("import %s: position %d, the log's next is %d", e.Stream, e.Position, want)
	}
	last := g.state.at.Recorded
	if len(g.events) > 0 {
		last = g.events[len(g.events)-1].RecordedAt
	}
	if e.RecordedAt.Before(last) {
		return fmt.Errorf("import %s: position %d was recorded at %s, before the one it follows (%s)", e.Stream, e.Position, e.RecordedAt, last)
	}
	version, err := g.version(e.Stream)
	if err != nil {
		return err
	}
	if e.Version != version+1 {
		return fmt.Errorf("import %s: version %d follows version %d", e.Stream, e.Version, version)
	}
	known, err := g.state.knows(e.ID)
	if err != nil {
		return err
	}
	if known || g.ids[e.ID] {
		return &es.DuplicateError{Stream: e.Stream, IDs: []string{e.ID}}
	}
	payload, err := e.Encode()
	if err != nil {
		return err
	}
	g.versions[e.Stream], g.ids[e.ID] = e.Version, true
	g.messages, g.events = append(g.messages, message(g.topic, e, payload, e.RecordedAt)), append(g.events, stored{Event: e, payload: payload})
	g.bytes += len(payload)
	return nil
}

// importMax is how many events are imported in one commit.
const importMax = 10_000
