package saga

import (
	"context"
	"errors"
	"time"

	"example.com/billing/pkg/page"
)

// ErrNotFound is returned by Store.Get for an unknown saga.
var ErrNotFound = errors.New("no such saga")

// ErrStale is returned by Save when the stored saga has another revision or belongs to another engine: someone else works on it.
var ErrStale = errors.New("the saga was changed by another writer")

// ErrFenced is returned by Lease when an epoch's lease ended and its sagas may have been taken over.
var ErrFenced = errors.New("the lease has ended")

// Filter selects the sagas of a tenant for a list or a count. Other empty fields select all.
type Filter struct {
	TenantID    string
	Status      Status
	Type        string
	Subject     string // one of State.Subjects
	ErrorReason string
	Since       time.Time   // created at or after
	Until       time.Time   // created before
	Before      page.Cursor // of lists: only sagas older than this; zero = from the newest
	Limit       int         // of lists
}

// Count is how many sagas of one kind there are.
type Count struct {
	Type        string
	Status      Status
	ErrorReason string
	Sagas       int64
	Oldest      time.Time // when the oldest was created
}

// Store keeps the states of sagas, and whose they are. Engines hold leases, each under an epoch of its own; a saga belongs to
// the epoch that is stored with it. Safe for concurrent use. TestStateStore in package sagatest is its contract.
type Store interface {
	// Insert adds new sagas at revision 1, under their Epoch, and returns those that were not there yet, in the order given.
	Insert(ctx context.Context, sagas []State) ([]State, error)
	// Save writes states whose Revision and Epoch are the stored ones, raising the revision by one; others get ErrStale. A state that
	// rests or has WakeAt belongs to nobody from then on (epoch 0). One that has ended is written together with its event.
	// One result for each, in order.
	Save(ctx context.Context, sagas []State) []error
	// Override is Save of one state whatever epoch it belongs to; it belongs to nobody from then on, and whose it was gets ErrStale.
	Override(ctx context.Context, s State) error
	// Get returns a saga or ErrNotFound.
	Get(ctx context.Context, sagaID string) (State, error)
	// Known returns the ids of those of these sagas that there are, in any order.
	Known(ctx context.Context, ids []string) ([]string, error)
	// EndedOrOwned returns those of these sagas that have ended, and those that belong to this epoch and do not rest, in any order.
	EndedOrOwned(ctx context.Context, epoch int64, ids []string) ([]State, error)
	// List returns sagas, newest first.
	List(ctx context.Context, f Filter) ([]State, error)
	// Count counts sagas by type, status and error reason, in this order.
	Count(ctx context.Context, f Filter) ([]Count, error)

	// Lease begins a lease under a new epoch (epoch 0), or renews one, or returns ErrFenced. It lasts for ttl by the store's clock.
	Lease(ctx context.Context, owner string, epoch int64, ttl time.Duration) (int64, error)
	// Release ends a lease at once.
	Release(ctx context.Context, epoch int64) error
	// Claim ends the leases that were not renewed in time, makes unfinished sagas of these kinds that are nobody's, or of an epoch
	// without a lease, this epoch's, the oldest first, limit at most, and returns them. Those that sleep (WakeAt) wait until it is
	// time; those of other kinds are left to engines that know them.
	Claim(ctx context.Context, epoch int64, kinds []DefinitionID, limit int) ([]State, error)
	// Unfinished returns the places of an epoch's sagas that do not rest, unchanged for at least idle (0 = all of them), the oldest
	// first, from behind a place in that order; the zero cursor is before the oldest. It reads no states: it is asked every second.
	Unfinished(ctx context.Context, epoch int64, idle time.Duration, after page.Cursor, limit int) ([]page.Cursor, error)
}
