// Package memory is an event store in memory, for tests.
package memory

import (
	"context"
	"fmt"
	"iter"
	"sort"
	"sync"
	"time"

	"example.com/billing/pkg/batch"
	"example.com/billing/pkg/es"
)

// Store keeps events in memory. Safe for concurrent use.
type Store struct {
	mu     sync.RWMutex
	events []es.Event // by position - 1
	byID   map[string]int
	heads  map[es.Stream]*head
}

type head struct {
	es.Head
	at   []int     // index into events, by version - 1
	kept []es.Head // snapshots kept for good, oldest first
}

// New returns an empty store.
func New() *Store {
	return &Store{byID: map[string]int{}, heads: map[es.Stream]*head{}}
}

// Scope is the whole store.
func (s *Store) Scope() es.Scope { return es.ScopeStore }

// Append is es.Store's.
func (s *Store) Append(ctx context.Context, streams ...es.Append) error {
	return s.AppendBatch(ctx, [][]es.Append{streams})[0]
}

// AppendBatch is es.Store's.
func (s *Store) AppendBatch(ctx context.Context, items [][]es.Append) []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := make([]error, len(items))
	for i, item := range items {
		if errs[i] = ctx.Err(); errs[i] == nil {
			errs[i] = s.append(item)
		}
	}
	return errs
}

func (s *Store) append(streams []es.Append) error {
	if err := es.CheckAppends(streams); err != nil {
		return err
	}
	var (
		ids    = map[string]bool{}
		events []es.Event
	)
	for _, a := range streams {
		if actual := s.head(a.Stream).Version; actual != a.Expected {
			return &es.ConflictError{Stream: a.Stream, Expected: a.Expected, Actual: actual}
		}
		var stored []string
		for _, e := range a.Events {
			if _, ok := s.byID[e.ID]; ok || ids[e.ID] {
				stored = append(stored, e.ID)
			}
			ids[e.ID] = true
			payload, err := e.Encode()
			if err != nil {
				return err
			}
			if len(payload) > es.EventBytesMax {
				return &es.LimitError{Stream: a.Stream, Limit: "event size in bytes", Max: es.EventBytesMax, Actual: len(payload)}
			}
			read, err := es.Decode(payload) // what is stored is JSON
			if err != nil {
				return err
			}
			events = append(events, read)
		}
		if stored != nil {
			return &es.DuplicateError{Stream: a.Stream, IDs: stored}
		}
	}
	now := time.Now().UTC()
	for _, a := range streams {
		if len(a.Events) == 0 {
			continue
		}
		var h *head
		for range a.Events {
			e := events[0]
			events = events[1:]
			e.Position, e.RecordedAt = int64(len(s.events)+1), now
			h = s.add(e)
		}
		if a.Snapshot != nil {
			h.Snapshot, h.SnapshotVersion = a.Snapshot, h.Version
		}
		if a.Kept() {
			h.kept = append(h.kept, h.Head)
		}
	}
	return nil
}

// Import writes events of another store, at the positions and with the times that they have there. They must follow what is here.
func (s *Store) Import(ctx context.Context, events []es.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range events {
		if err := ctx.Err(); err != nil {
			return err
		}
		if e.Position != int64(len(s.events)+1) || e.Version != s.head(e.Stream).Version+1 {
			return fmt.Errorf("import %s: position %d, version %d does not follow position %d, version %d", e.Stream, e.Position, e.Version, len(s.events), s.head(e.Stream).Version)
		}
		if _, known := s.byID[e.ID]; known {
			return &es.DuplicateError{Stream: e.Stream, IDs: []string{e.ID}}
		}
		s.add(e)
	}
	return nil
}

// add adds an event to its stream.
func (s *Store) add(e es.Event) *head {
	h := s.heads[e.Stream]
	if h == nil {
		h = &head{}
		s.heads[e.Stream] = h
	}
	s.byID[e.ID] = len(s.events)
	h.at = append(h.at, len(s.events))
	s.events = append(s.events, e)
	h.Version = e.Version
	return h
}

func (s *Store) head(st es.Stream) es.Head {
	if h := s.heads[st]; h != nil {
		return h.Head
	}
	return es.Head{}
}

// Load is es.Store's.
func (s *Store) Load(ctx context.Context, st es.Stream, after int64, limit int) ([]es.Event, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.load(st, after, limit), ctx.Err()
}

// LoadEach is es.Store's.
func (s *Store) LoadEach(ctx context.Context, spans []es.Span) ([]batch.Result[[]es.Event], error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	loaded := make([]batch.Result[[]es.Event], len(spans))
	for i, span := range spans {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		loaded[i].Value = s.load(span.Stream, span.After, span.Limit)
	}
	return loaded, ctx.Err()
}

// load needs the lock.
func (s *Store) load(st es.Stream, after int64, limit int) []es.Event {
	h := s.heads[st]
	if h == nil || after >= h.Version {
		return nil
	}
	var events []es.Event
	at := h.at[max(after, 0):]
	if limit > 0 {
		at = at[:min(limit, len(at))]
	}
	for _, i := range at {
		events = append(events, s.events[i])
	}
	return events
}

// Clock is es.Store's.
func (s *Store) Clock(ctx context.Context) (time.Time, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return time.Now().UTC(), ctx.Err()
}

// Heads is es.Store's.
func (s *Store) Heads(ctx context.Context, streams []es.Stream) ([]es.Head, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	heads := make([]es.Head, len(streams))
	for i, st := range streams {
		heads[i] = s.head(st)
	}
	return heads, ctx.Err()
}

// Snapshot is es.Store's.
func (s *Store) Snapshot(ctx context.Context, st es.Stream, version int64) (es.Head, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var newest es.Head
	if h := s.heads[st]; h != nil {
		for _, k := range h.kept {
			if k.Version <= version {
				newest = k
			}
		}
	}
	return newest, ctx.Err()
}

// Lookup is es.Store's.
func (s *Store) Lookup(ctx context.Context, ids []string) ([]es.Event, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var events []es.Event
	for _, id := range ids {
		if i, ok := s.byID[id]; ok {
			events = append(events, s.events[i])
		}
	}
	return events, ctx.Err()
}

// End is es.Store's.
func (s *Store) End(ctx context.Context) (int64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return int64(len(s.events)), ctx.Err()
}

// ReadAll is es.Store's.
func (s *Store) ReadAll(ctx context.Context, aggregateType string, from es.From) iter.Seq2[es.Event, error] {
	return func(yield func(es.Event, error) bool) {
		for next := int(from.After); ; next++ {
			if err := ctx.Err(); err != nil {
				yield(es.Event{}, err)
				return
			}
			s.mu.RLock()
			if next == int(from.After) && !from.Since.IsZero() {
				next = max(next, sort.Search(len(s.events), func(i int) bool { return !s.events[i].RecordedAt.Before(from.Since) }))
			}
			if next >= len(s.events) {
				s.mu.RUnlock()
				return
			}
			e := s.events[next]
			s.mu.RUnlock()
			if (aggregateType == "" || e.Stream.Type == aggregateType) && !yield(e, nil) {
				return
			}
		}
	}
}
