package saga

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"example.com/billing/pkg/page"
)

// Memory is a Store in memory, for tests.
type Memory struct {
	mu     sync.Mutex
	sagas  map[string]State
	leases map[int64]time.Time // when each ends, by epoch
	epoch  int64               // the newest
}

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{sagas: map[string]State{}, leases: map[int64]time.Time{}} }

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
		if stored, ok := m.sagas[s.SagaID]; !ok || stored.Revision != s.Revision || stored.Epoch != s.Epoch {
			errs[i] = fmt.Errorf("save saga %s: %w", s.SagaID, ErrStale)
			continue
		}
		m.put(s)
	}
	return errs
}

// Override is Store's.
func (m *Memory) Override(_ context.Context, s State) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if stored, ok := m.sagas[s.SagaID]; !ok || stored.Revision != s.Revision {
		return fmt.Errorf("override saga %s: %w", s.SagaID, ErrStale)
	}
	s.Epoch = 0
	m.put(s)
	return nil
}

func (m *Memory) put(s State) {
	s.Revision++
	s.Epoch = s.OwnerStored()
	m.sagas[s.SagaID] = s
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

// Known is Store's.
func (m *Memory) Known(_ context.Context, ids []string) (known []string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		if _, ok := m.sagas[id]; ok {
			known = append(known, id)
		}
	}
	return known, nil
}

// EndedOrOwned is Store's.
func (m *Memory) EndedOrOwned(_ context.Context, epoch int64, ids []string) (found []State, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		s, ok := m.sagas[id]
		if ok && (s.Status.Ended() || s.Epoch == epoch && !s.Status.Rests()) {
			found = append(found, s)
		}
	}
	return found, nil
}

// List is Store's.
func (m *Memory) List(_ context.Context, f Filter) ([]State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at, id := f.Before.Key()
	out := m.where(func(s State) bool {
		return f.selects(s) && (s.CreatedAt.Before(at) || s.CreatedAt.Equal(at) && s.SagaID < id)
	})
	slices.SortFunc(out, func(a, b State) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), strings.Compare(b.SagaID, a.SagaID))
	})
	return out[:min(len(out), f.Limit)], nil
}

func (f Filter) selects(s State) bool {
	return s.TenantID() == f.TenantID && (f.Status == "" || s.Status == f.Status) && (f.Type == "" || s.SagaType == f.Type) &&
		(f.Subject == "" || slices.Contains(s.Subjects, f.Subject)) && (f.ErrorReason == "" || s.ErrorReason == f.ErrorReason) &&
		!s.CreatedAt.Before(f.Since) && (f.Until.IsZero() || s.CreatedAt.Before(f.Until))
}

// Count is Store's.
func (m *Memory) Count(_ context.Context, f Filter) ([]Count, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Count
	for _, s := range m.where(f.selects) {
		i := slices.IndexFunc(out, func(c Count) bool {
			return c.Type == s.SagaType && c.Status == s.Status && c.ErrorReason == s.ErrorReason
		})
		if i < 0 {
			i, out = len(out), append(out, Count{Type: s.SagaType, Status: s.Status, ErrorReason: s.ErrorReason, Oldest: s.CreatedAt})
		}
		out[i].Sagas++
		if s.CreatedAt.Before(out[i].Oldest) {
			out[i].Oldest = s.CreatedAt
		}
	}
	slices.SortFunc(out, func(a, b Count) int {
		return cmp.Or(strings.Compare(a.Type, b.Type), strings.Compare(string(a.Status), string(b.Status)), strings.Compare(a.ErrorReason, b.ErrorReason))
	})
	return out, nil
}

// Lease is Store's.
func (m *Memory) Lease(_ context.Context, _ string, epoch int64, ttl time.Duration) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if epoch == 0 {
		m.epoch++
		epoch = m.epoch
	} else if _, ok := m.leases[epoch]; !ok {
		return 0, fmt.Errorf("renew the lease of epoch %d: %w", epoch, ErrFenced)
	}
	m.leases[epoch] = time.Now().Add(ttl)
	return epoch, nil
}

// Release is Store's.
func (m *Memory) Release(_ context.Context, epoch int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.leases, epoch)
	return nil
}

// Claim is Store's.
func (m *Memory) Claim(_ context.Context, epoch int64, kinds []DefinitionID, limit int) ([]State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for e, until := range m.leases {
		if until.Before(now) {
			delete(m.leases, e)
		}
	}
	out := m.oldest(func(s State) bool {
		_, leased := m.leases[s.Epoch]
		return !s.Status.Rests() && slices.Contains(kinds, DefinitionID{s.SagaType, s.Definition}) && s.Epoch != epoch && !leased && !s.WakeAt.After(now)
	}, limit)
	for i := range out {
		out[i].Epoch = epoch
		m.sagas[out[i].SagaID] = out[i]
	}
	return out, nil
}

// Unfinished is Store's.
func (m *Memory) Unfinished(_ context.Context, epoch int64, idle time.Duration, after page.Cursor, limit int) ([]page.Cursor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	until := time.Now().Add(-idle)
	var places []page.Cursor
	for _, s := range m.oldest(func(s State) bool {
		later := s.CreatedAt.After(after.CreatedAt) || s.CreatedAt.Equal(after.CreatedAt) && s.SagaID > after.ID
		return later && s.Epoch == epoch && !s.Status.Rests() && (idle == 0 || !s.UpdatedAt.After(until))
	}, limit) {
		places = append(places, page.Cursor{CreatedAt: s.CreatedAt, ID: s.SagaID})
	}
	return places, nil
}

func (m *Memory) oldest(keep func(State) bool, limit int) []State {
	out := m.where(keep)
	slices.SortFunc(out, func(a, b State) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.SagaID, b.SagaID))
	})
	return out[:min(len(out), limit)]
}

func (m *Memory) where(keep func(State) bool) []State {
	var out []State
	for _, s := range m.sagas {
		if keep(s) {
			out = append(out, s)
		}
	}
	return out
}
