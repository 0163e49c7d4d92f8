package es

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"example.com/billing/pkg/batch"
)

// Outcome is what a command led to.
type Outcome[S any] struct {
	State   S
	Version int64
	Events  []Event // stored by this command on its own stream
	// Replayed: the key was used before, by another command; Events begins with the first event of the one that used it.
	Replayed bool
}

// ExecutorOptions bound an executor. Zero means the default.
type ExecutorOptions struct {
	Batch      batch.Options
	CacheBytes int           // memory for aggregates used last, estimated by their snapshots; 128 MiB
	AttemptMax int           // times a command is decided again after conflicts; 32
	Timeout    time.Duration // how long a group keeps asking a store that does not answer; 10 s
	// Notify is told of the events of each commit, once Recall knows what they led to. It must not block; nil = nobody asks.
	Notify func([]Event)
}

// Executor carries out commands on one type of aggregate: it groups what waits, decides the commands of one stream one
// after another in memory, and commits the whole group in one append. No outcome leaves, refusals and repeats included,
// before a commit has validated the versions it was decided on. Safe for concurrent use, and beside other processes on the
// same store.
type Executor[S, C any] struct {
	decider *Decider[S, C]
	store   Store
	opts    ExecutorOptions
	cache   *cache[S]
	queue   *batch.Queue[Command[C], Outcome[S]]
	reads   *batch.Queue[string, Root[S]] // of single streams
	used    atomic.Bool
}

// NewExecutor makes an executor on a store.
func NewExecutor[S, C any](d *Decider[S, C], store Store, opts ExecutorOptions) (*Executor[S, C], error) {
	if opts.CacheBytes <= 0 {
		opts.CacheBytes = 128 << 20
	}
	if opts.Batch.Linger == 0 {
		opts.Batch.Linger = burst
	}
	if opts.AttemptMax <= 0 {
		opts.AttemptMax = 32
	}
	if opts.Timeout <= 0 {
		opts.Timeout = 10 * time.Second
	}
	cache, err := newCache[S](opts.CacheBytes)
	if err != nil {
		return nil, fmt.Errorf("new executor: %w", err)
	}
	x := &Executor[S, C]{decider: d, store: store, opts: opts, cache: cache}
	x.queue = batch.New(opts.Batch, x.flush)
	x.reads = batch.New(batch.Options{FlightMax: readFlightMax}, func(ctx context.Context, ids []string) []batch.Result[Root[S]] {
		loaded, err := x.load(ctx, ids)
		if err != nil {
			loaded = make([]batch.Result[Root[S]], len(ids))
			for i := range loaded {
				loaded[i].Err = err
			}
		}
		return loaded
	})
	return x, nil
}

// Execute carries out one command and returns its outcome, a *Refusal, batch.ErrFull, or an error that leaves the outcome
// unknown: ask again with the same key.
func (x *Executor[S, C]) Execute(ctx context.Context, c Command[C]) (Outcome[S], error) {
	return x.queue.Do(ctx, c)
}

// ExecuteAll carries out independent commands, each with its own result, in order.
func (x *Executor[S, C]) ExecuteAll(ctx context.Context, cs []Command[C]) []batch.Result[Outcome[S]] {
	return x.queue.DoAll(ctx, cs)
}

// burst is how long commands that come together take to come.
const burst = 500 * time.Microsecond

// readFlightMax is how many reads of the store for Get are under way at the same time; those that wait share the next one.
const readFlightMax = 2

// Get reads an aggregate's present state from the store; Version 0 = there is none. Never stale. Many at the same time share a read.
func (x *Executor[S, C]) Get(ctx context.Context, streamID string) (Outcome[S], error) {
	r, err := x.reads.Do(ctx, streamID)
	return Outcome[S]{State: r.State, Version: r.Version}, err
}

// GetAll reads several aggregates' present states, in the order asked.
func (x *Executor[S, C]) GetAll(ctx context.Context, streamIDs []string) ([]Outcome[S], error) {
	each, err := x.GetEach(ctx, streamIDs)
	if err != nil {
		return nil, err
	}
	out := make([]Outcome[S], len(each))
	for i, r := range each {
		if r.Err != nil {
			return nil, r.Err
		}
		out[i] = r.Value
	}
	return out, nil
}

// GetEach is GetAll with a result for each: one that cannot be read leaves the others alone.
func (x *Executor[S, C]) GetEach(ctx context.Context, streamIDs []string) ([]batch.Result[Outcome[S]], error) {
	loaded, err := x.load(ctx, streamIDs)
	if err != nil {
		return nil, err
	}
	out := make([]batch.Result[Outcome[S]], len(loaded))
	for i, l := range loaded {
		out[i].Value, out[i].Err = Outcome[S]{State: l.Value.State, Version: l.Value.Version}, l.Err
	}
	return out, nil
}

// Recall is an aggregate's state as this process knows it, without asking the store; ok = it knows one. Another process may have gone
// on from there: good for a first look, never for a refusal.
func (x *Executor[S, C]) Recall(streamID string) (out Outcome[S], ok bool) {
	incarnation, err := x.incarnation(context.Background())
	if err != nil {
		return out, false
	}
	r, ok := x.cache.get(streamID, incarnation)
	return Outcome[S]{State: r.State, Version: r.Version}, ok
}

// Forget drops aggregates that others have gone on from, by the streams and versions of what they stored: a command for one of them is
// decided on what is stored now, instead of on what this process knows, to no avail.
func (x *Executor[S, C]) Forget(events []Event) {
	for _, e := range events {
		x.cache.removeBelow(e.Stream.ID, e.Version)
	}
}

// Used reports whether commands came since it was last asked.
func (x *Executor[S, C]) Used() bool { return x.used.Swap(false) }

// Close waits for the commands and reads under way.
func (x *Executor[S, C]) Close(ctx context.Context) error {
	return errors.Join(x.queue.Close(ctx), x.reads.Close(ctx))
}

// The longest pauses between two attempts: the whole group waits, so after a conflict a short one.
const (
	conflictPauseMax = 10 * time.Millisecond
	awayPauseMax     = 500 * time.Millisecond
)

// unwritableAttemptMax is how often a command is tried on a store that takes no writes: for about a quarter of a second.
const unwritableAttemptMax = 8

// flush carries out one group. It loops until every unit is settled: conflicts and repeated keys are decided again on
// fresh state, a store that does not answer is asked again for a while.
func (x *Executor[S, C]) flush(ctx context.Context, cmds []Command[C]) []batch.Result[Outcome[S]] {
	x.used.Store(true)
	ctx, cancel := context.WithTimeout(ctx, x.opts.Timeout)
	defer cancel()
	results := make([]batch.Result[Outcome[S]], len(cmds))
	units := x.split(cmds)
	for attempt := 1; len(units) > 0; attempt++ {
		incarnation, err := x.incarnation(ctx)
		within := WithIncarnation(ctx, incarnation)
		if err == nil {
			err = x.prepare(within, cmds, units)
		}
		if err == nil {
			x.attempt(within, cmds, units, results)
		}
		open, away := units[:0], false
		for _, u := range units {
			if u.err == nil && err == nil {
				continue
			}
			for _, s := range u.streams {
				x.cache.remove(s.ID)
			}
			u.again = u.again || u.err != nil
			if cause := errors.Join(err, u.err); attempt >= x.attemptMax(cause) || ctx.Err() != nil || !retryable(cause) {
				x.settle(ctx, cmds, u, cause, results)
				continue
			}
			var unavailable *UnavailableError
			away = away || errors.As(errors.Join(err, u.err), &unavailable)
			open = append(open, u)
		}
		if units = open; len(units) > 0 {
			longest := conflictPauseMax
			if away {
				longest = awayPauseMax
			}
			pause(ctx, attempt, longest)
		}
	}
	return results
}

// incarnation is the history that the store has now: what is remembered of another one is not decided on.
func (x *Executor[S, C]) incarnation(ctx context.Context) (int64, error) {
	if s, ok := x.store.(Incarnated); ok {
		return s.Incarnation(ctx)
	}
	return 0, nil
}

// prepare gives every unit roots to decide on, and after a failed attempt the events its keys may have stored.
func (x *Executor[S, C]) prepare(ctx context.Context, cmds []Command[C], units []*unit[S, C]) error {
	type place struct {
		*unit[S, C]
		i int
	}
	var (
		missing []place
		again   []*unit[S, C]
		ids     []string
	)
	for _, u := range units {
		if u.again {
			again = append(again, u)
		}
		for i, s := range u.streams {
			if r, ok := x.cache.get(s.ID, IncarnationFrom(ctx)); ok && !u.again {
				u.roots[i] = r
				continue
			}
			if !u.again && creates(cmds, u.commands, s.ID) {
				u.roots[i] = x.decider.New()
				continue
			}
			missing = append(missing, place{u, i})
			ids = append(ids, s.ID)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	roots, err := x.load(ctx, ids)
	if err != nil {
		return err
	}
	for _, m := range missing {
		m.err = nil
	}
	for j, m := range missing {
		m.roots[m.i] = roots[j].Value
		m.err = errors.Join(m.err, roots[j].Err)
	}
	return x.findPrior(ctx, cmds, again)
}

// draft is what a unit's commands lead to, not yet stored.
type draft[S, C any] struct {
	*unit[S, C]
	after    []Root[S] // in the order of the unit's streams
	outcomes []batch.Result[Outcome[S]]
}

// attempt decides every unit in memory and appends the group. Outcomes are written to results only for units whose
// versions the append validated.
func (x *Executor[S, C]) attempt(ctx context.Context, cmds []Command[C], units []*unit[S, C], results []batch.Result[Outcome[S]]) {
	var (
		items [][]Append
		ready []draft[S, C]
	)
	for _, d := range x.drafts(ctx, cmds, units) {
		item := make([]Append, len(d.streams))
		for i, s := range d.streams {
			a := Append{Stream: s, Expected: d.roots[i].Version, Events: d.after[i].Uncommitted()}
			var err error
			a.Snapshot, err = x.snapshot(d.roots[i].Version, d.after[i])
			d.err = errors.Join(d.err, err)
			item[i] = a
		}
		if d.err == nil {
			items, ready = append(items, item), append(ready, d)
		}
	}
	if len(items) == 0 {
		return
	}
	var stored []Event
	for i, err := range x.store.AppendBatch(ctx, items) {
		d := ready[i]
		if d.err = err; err != nil {
			continue
		}
		for j, k := range d.commands {
			results[k] = d.outcomes[j]
		}
		for j := range d.after {
			x.keep(d.streams[j].ID, d.after[j], items[i][j], IncarnationFrom(ctx))
			stored = append(stored, items[i][j].Events...)
		}
	}
	if len(stored) > 0 && x.opts.Notify != nil {
		x.opts.Notify(stored)
	}
}

// keep puts a stored aggregate into the cache.
func (x *Executor[S, C]) keep(id string, r Root[S], stored Append, incarnation int64) {
	r.Commit()
	if r.Version > 0 {
		x.cache.put(id, r, x.size(stored), incarnation)
	}
}

// drafts decides the units that could be loaded. A command that would store nothing may be the repeat of one that did, and
// that left a state which now refuses it or has nothing left to do: its key is looked up before it is answered. A command
// that stores something needs no look, since the store takes an event's id once.
func (x *Executor[S, C]) drafts(ctx context.Context, cmds []Command[C], units []*unit[S, C]) []draft[S, C] {
	var (
		out   []draft[S, C]
		quiet []*unit[S, C]
	)
	for _, u := range units {
		if u.err != nil {
			continue
		}
		d := x.decide(cmds, u)
		if u.prior == nil && slices.ContainsFunc(d.outcomes, func(r batch.Result[Outcome[S]]) bool { return len(r.Value.Events) == 0 }) {
			quiet = append(quiet, u)
		} else {
			out = append(out, d)
		}
	}
	if err := x.findPrior(ctx, cmds, quiet); err != nil {
		for _, u := range quiet {
			u.err = err
		}
		return out
	}
	for _, u := range quiet {
		out = append(out, x.decide(cmds, u))
	}
	return out
}

// size is how large an appended state is, for the cache.
func (x *Executor[S, C]) size(a Append) int {
	switch {
	case x.decider.Snapshots == nil:
		return cacheUnknownBytes
	case len(a.Events) == 0:
		return sameSize
	case a.Snapshot == nil:
		return cacheUnknownBytes
	}
	return len(a.Snapshot)
}

// snapshot takes the state of a root that has something to store, where it is time for one.
func (x *Executor[S, C]) snapshot(stored int64, r Root[S]) ([]byte, error) {
	if x.decider.Snapshots == nil || len(r.uncommitted) == 0 {
		return nil, nil
	}
	if every := max(x.decider.Snapshots.Every, 1); stored/every == r.Version/every {
		return nil, nil
	}
	b, err := x.decider.Snapshots.Take(r.State)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return b, nil
}

// decide carries out a unit's commands one after another on copies of its roots. A key that was used before, in the store or
// earlier in this group, gets the first one's events.
func (x *Executor[S, C]) decide(cmds []Command[C], u *unit[S, C]) draft[S, C] {
	d := draft[S, C]{unit: u, after: slices.Clone(u.roots), outcomes: make([]batch.Result[Outcome[S]], len(u.commands))}
	inGroup := map[string][]Event{}
	for j, i := range u.commands {
		c, out := cmds[i], &d.outcomes[j]
		at := u.index(c.StreamID)
		root, stream := &d.after[at], u.streams[at]
		first := EventID(stream, c.key(), 0)
		if e, ok := u.prior[first]; ok {
			out.Value = Outcome[S]{State: root.State, Version: root.Version, Events: []Event{e}, Replayed: e.CausationID != c.ID}
			continue
		}
		if events, ok := inGroup[first]; ok {
			out.Value = Outcome[S]{State: root.State, Version: root.Version, Events: events, Replayed: true}
			continue
		}
		var (
			events []Event
			err    error
		)
		if c.OtherID == "" {
			events, err = x.decider.Apply(root, stream, c)
		} else {
			other := u.index(c.OtherID)
			events, err = x.decider.ApplyPair(root, &d.after[other], stream, u.streams[other], c)
		}
		*out = batch.Result[Outcome[S]]{Value: Outcome[S]{State: root.State, Version: root.Version, Events: events}, Err: err}
		if len(events) > 0 {
			inGroup[first] = events
		}
	}
	return d
}

// settle ends a unit that could not be appended. With several commands each is tried alone, so that one bad command
// fails itself only; one command alone gets the error.
func (x *Executor[S, C]) settle(ctx context.Context, cmds []Command[C], u *unit[S, C], cause error, results []batch.Result[Outcome[S]]) {
	if len(u.commands) == 1 || ctx.Err() != nil || retryable(cause) {
		for _, i := range u.commands {
			results[i] = batch.Result[Outcome[S]]{Err: fmt.Errorf("execute on %s: %w", u.streams[0], cause)}
		}
		return
	}
	for _, i := range u.commands {
		results[i] = x.flush(ctx, cmds[i:i+1])[0]
	}
}

// attemptMax is how often a command is tried. A server that is read-only, or whose disk is full, stays so for longer than
// a request: its caller is told soon, while there is time to answer.
func (x *Executor[S, C]) attemptMax(cause error) int {
	var unwritable interface{ Unwritable() bool }
	if errors.As(cause, &unwritable) && unwritable.Unwritable() {
		return min(unwritableAttemptMax, x.opts.AttemptMax)
	}
	return x.opts.AttemptMax
}

// retryable: deciding again on fresh state can end well.
func retryable(err error) bool {
	var (
		conflict  *ConflictError
		duplicate *DuplicateError
		unavail   *UnavailableError
	)
	return errors.As(err, &conflict) || errors.As(err, &duplicate) || errors.As(err, &unavail)
}

// pause waits a little longer after each attempt, with jitter, or until ctx ends.
func pause(ctx context.Context, attempt int, longest time.Duration) {
	d := min(time.Millisecond<<min(attempt, 10), longest)
	select {
	case <-time.After(d/2 + rand.N(d/2+1)): //nolint:gosec // jitter
	case <-ctx.Done():
	}
}
