package es

import (
	"context"
	"fmt"
	"slices"

	"example.com/billing/pkg/batch"
)

// load reads aggregates from the store, each with its own result: snapshot where there is one, and the events after it.
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
		roots[i].Value, roots[i].Err = x.loadOne(ctx, streams[i], h)
	}
	return roots, nil
}

// loadOne reads one aggregate. A panic in the domain is that aggregate's error: the others of the group go on.
func (x *Executor[S, C]) loadOne(ctx context.Context, stream Stream, h Head) (r Root[S], err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("load %s: panicked: %v", stream, p)
		}
	}()
	r = x.decider.restore(h)
	if r.Version == h.Version {
		return r, nil
	}
	events, err := x.store.Load(ctx, stream, r.Version, 0)
	if err != nil {
		return r, fmt.Errorf("load %s: %w", stream, err)
	}
	err = x.decider.Replay(&r, events...)
	return r, err
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
