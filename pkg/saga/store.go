package saga

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"example.com/billing/pkg/page"
)

// ErrNotFound is returned by Store.Get for an unknown saga.
var ErrNotFound = errors.New("no such saga")

// ErrStale is returned by Save when the stored saga has another revision: someone else is working on it.
var ErrStale = errors.New("the saga was changed by another writer")

// Filter selects the sagas of a tenant for a list. Other empty fields select all.
type Filter struct {
	TenantID string
	Status   Status
	Type     string
	Before   page.Cursor // only sagas older than this; zero = from the newest
	Limit    int
}

// Store keeps the states of sagas. Safe for concurrent use. TestStateStore in package sagatest is its contract.
type Store interface {
	// Insert adds new sagas at revision 1 and returns those that were not there yet.
	Insert(ctx context.Context, sagas []State) ([]State, error)
	// Save writes states whose Revision is the stored one, raising it by one; others get ErrStale. A state that has ended is
	// written together with its event. One result for each, in order.
	Save(ctx context.Context, sagas []State) []error
	// Get returns a saga or ErrNotFound.
	Get(ctx context.Context, sagaID string) (State, error)
	// List returns sagas, newest first.
	List(ctx context.Context, f Filter) ([]State, error)
	// Unfinished returns sagas that have not ended and need no person, unchanged for at least idle (0 = all of them), the oldest first, from
	// behind a place in that order; the zero cursor is before the oldest.
	Unfinished(ctx context.Context, idle time.Duration, after page.Cursor, limit int) ([]State, error)
}

// Memory is a Store in memory, for tests.
type Memory struct {
	mu    sync.Mutex
	sagas map[string]State
}

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{sagas: map[string]State{}} }

// Insert is Store's.
func (m *Memory) Insert(_ context.Context, sagas []State) ([]State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var added []State
	for _, s := range sagas {
		if _, ok := m.sagas[s.SagaID]; ok {
			continue
		}
		s.Revision = 1
		m.sagas[s.SagaID] = s
		added = append(added, s)
	}
	return added, nil
}

// Save is Store's.
func (m *Memory) Save(_ context.Context, sagas []State) []error {
	m.mu.Lock()
	defer m.mu.Unlock()
	errs := make([]error, len(sagas))
	for i, s := range sagas {
		if stored, ok := m.sagas[s.SagaID]; !ok || stored.Revision != s.Revision {
			errs[i] = fmt.Errorf("save saga %s: %w", s.SagaID, ErrStale)
			continue
		}
		s.Revision++
		m.sagas[s.SagaID] = s
	}
	return errs
}

// Get is Store's.
func (m *Memory) Get(_ context.Context, id string) (State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.sagas[id]
	if !ok {
		return State{}, fmt.Errorf("saga %s: %w", id, ErrNotFound)
	}
	return s, nil
}

// List is Store's.
func (m *Memory) List(_ context.Context, f Filter) ([]State, error) {
	out := m.where(func(s State) bool {
		at, id := f.Before.Key()
		older := s.CreatedAt.Before(at) || s.CreatedAt.Equal(at) && s.SagaID < id
		return older && s.TenantID() == f.TenantID && (f.Status == "" || s.Status == f.Status) && (f.Type == "" || s.SagaType == f.Type)
	})
	slices.SortFunc(out, func(a, b State) int {
		if c := b.CreatedAt.Compare(a.CreatedAt); c != 0 {
			return c
		}
		return strings.Compare(b.SagaID, a.SagaID)
	})
	return out[:min(len(out), f.Limit)], nil
}

// Unfinished is Store's.
func (m *Memory) Unfinished(_ context.Context, idle time.Duration, after page.Cursor, limit int) ([]State, error) {
	until := time.Now().Add(-idle)
	out := m.where(func(s State) bool {
		later := s.CreatedAt.After(after.CreatedAt) || s.CreatedAt.Equal(after.CreatedAt) && s.SagaID > after.ID
		return later && (s.Status == InProgress || s.Status == Compensating) && (idle == 0 || !s.UpdatedAt.After(until))
	})
	slices.SortFunc(out, func(a, b State) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.SagaID, b.SagaID))
	})
	return out[:min(len(out), limit)], nil
}

func (m *Memory) where(keep func(State) bool) []State {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []State
	for _, s := range m.sagas {
		if keep(s) {
			out = append(out, s)
		}
	}
	return out
}
