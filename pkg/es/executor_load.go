package es

import (
	"context"
	"fmt"
	"slices"

	"example.com/billing/pkg/batch"
)

// loadEventsMax is how many events one call of the store loads at most. It bounds memory for streams of any length.
const loadEventsMax = 4096

// load reads aggregates from the store, each with its own result. It reads all heads at once, and then the events
// after the snapshots in as few calls as loadEventsMax allows.
func (x *Executor[S, C]) load(ctx context.Context, ids []string) ([]batch.Result[Root[S]], error) {
	streams := make([]Stream, len(ids))
	for i, id := range ids {
		streams[i] = Stream{Type: x.decider.Type, ID: id}
	}
	heads, err := x.store.Heads(ctx, streams)
	if err != nil {
		return nil, fmt.Errorf("load heads: %w", err)
	}
	roots := make([]batch.Result[Root[S]], len(ids))
	for i, h := range heads {
		roots[i].Err = guard(streams[i], func() error { roots[i].Value = x.decider.restore(h); return nil })
	}
	for {
		spans, of := missing(streams, heads, roots)
		if len(spans) == 0 {
			return roots, nil
		}
		loaded, err := x.store.LoadEach(ctx, spans)
		if err != nil {
			return nil, fmt.Errorf("load events: %w", err)
		}
		for j, l := range loaded {
			r := &roots[of[j]]
			if r.Err = l.Err; r.Err == nil {
				r.Err = x.fold(&r.Value, spans[j], l.Value)
			}
		}
	}
}

// missing are the next events that roots need to get to their heads, and which roots these are.
func missing[S any](streams []Stream, heads []Head, roots []batch.Result[Root[S]]) (spans []Span, of []int) {
	left := int64(loadEventsMax)
	for i, r := range roots {
		n := min(heads[i].Version-r.Value.Version, left)
		if r.Err != nil || n <= 0 {
			continue
		}
		spans = append(spans, Span{Stream: streams[i], After: r.Value.Version, Limit: int(n)})
		of = append(of, i)
		left -= n
	}
	return spans, of
}

// fold replays a span's events. It returns a *ConflictError if some are missing: the stream then ends earlier than
// its head said, as after a fail-over that lost events, and has to be read again.
func (x *Executor[S, C]) fold(r *Root[S], span Span, events []Event) error {
	if err := guard(span.Stream, func() error { return x.decider.Replay(r, events...) }); err != nil {
		return err
	}
	if want := span.After + int64(span.Limit); r.Version < want {
		err := &ConflictError{Stream: span.Stream, Expected: want, Actual: r.Version}
		return fmt.Errorf("load: %w", err)
	}
	return nil
}

// guard makes a panic in the domain the error of one aggregate: the others of the group go on.
func guard(stream Stream, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("load %s: panicked: %v", stream, p)
		}
	}()
	return f()
}

// findPrior looks up which keys of these units are used already, with the first event of each command that used one.
func (x *Executor[S, C]) findPrior(ctx context.Context, cmds []Command[C], units []*unit[S, C]) error {
	if len(units) == 0 {
		return nil
	}
	var ids []string
	for _, u := range units {
		for _, i := range u.commands {
			ids = append(ids, EventID(Stream{Type: x.decider.Type, ID: cmds[i].StreamID}, cmds[i].key(), 0))
		}
	}
	found, err := x.store.Lookup(ctx, ids)
	if err != nil {
		return fmt.Errorf("look up events: %w", err)
	}
	for _, u := range units {
		u.prior = map[string]Event{}
		for _, e := range found {
			if slices.Contains(u.streams, e.Stream) {
				u.prior[e.ID] = e
			}
		}
	}
	return nil
}
