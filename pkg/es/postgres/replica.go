package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"example.com/billing/pkg/es"
)

const (
	replicaPage      = 2000                   // events of one import
	replicaPageBytes = 4 << 20                // of its payloads, about
	replicaPoll      = 250 * time.Millisecond // between two looks for what nobody told of
	replicaWaitMax   = 10 * time.Second       // for the copy to have what is asked for
)

// Replica keeps a database as a copy of another event store, with all that is inline, so that whatever reads the events' tables goes on
// working when they are not the truth. The database knows how far it is and whom it follows; two processes that both copy do no harm.
type Replica struct {
	ReplicaConfig
	wake chan struct{}

	mu    sync.Mutex
	at    int64         // position up to which the database has everything
	last  string        // id of the event there
	moved chan struct{} // closed, and made anew, when at moves
}

// ReplicaConfig says what follows what.
type ReplicaConfig struct {
	To        *Store
	From      es.Store
	Name      string // of what is followed, such as "kafka Wm3…": the database never follows another one
	Published bool   // the other store publishes its events; else the relay does
	Log       *slog.Logger
}

// OtherHistoryError says that a database has events which the store that it is to follow does not have.
type OtherHistoryError struct {
	Name     string
	Position int64  // of the first that differs, or the newest that there is only here
	Detail   string // what is there
}

// Error says what to do about it.
func (e *OtherHistoryError) Error() string {
	return fmt.Sprintf("the database has events up to position %d that the event store %q has not (%s): copy them there first, or give the service an empty database",
		e.Position, e.Name, e.Detail)
}

// NewReplica makes a copy's keeper. Run works.
func NewReplica(cfg ReplicaConfig) *Replica {
	return &Replica{ReplicaConfig: cfg, wake: make(chan struct{}, 1), moved: make(chan struct{})}
}

// Begin asks whether the database can follow the store: what it has must be what the store has, up to there. It then notes that it follows.
func (r *Replica) Begin(ctx context.Context) error {
	if err := r.To.refusePromoted(ctx); err != nil {
		return err
	}
	at, err := r.To.End(ctx)
	if err != nil {
		return err
	}
	end, err := r.From.End(ctx)
	if err != nil {
		return err
	}
	if at > end {
		return &OtherHistoryError{r.Name, at, fmt.Sprintf("it ends at position %d", end)}
	}
	last, err := r.same(ctx, at)
	if err != nil {
		return err
	}
	tag, err := r.To.pool.Exec(ctx, `UPDATE es_log SET follows = $1 WHERE es_end() = $2`, r.Name, at)
	if err == nil && tag.RowsAffected() != 1 {
		err = &es.UnavailableError{Op: "note what is followed", Err: fmt.Errorf("something else writes to the database")}
	}
	r.reached(at, last)
	return Classify("note what is followed", err)
}

// same wants both to have the same event at a position, and returns its id.
func (r *Replica) same(ctx context.Context, at int64) (id string, err error) {
	if at == 0 {
		return "", nil
	}
	ours, err := newest(ctx, r.To, at)
	if err != nil {
		return "", err
	}
	theirs, err := newest(ctx, r.From, at)
	if err != nil {
		return "", err
	}
	if ours.ID != theirs.ID {
		return "", &OtherHistoryError{r.Name, at, fmt.Sprintf("it has event %s there, and the database %s", theirs.ID, ours.ID)}
	}
	return ours.ID, nil
}

func newest(ctx context.Context, s es.Store, position int64) (es.Event, error) {
	for e, err := range s.ReadAll(ctx, "", es.From{After: position - 1}) {
		return e, err
	}
	return es.Event{}, fmt.Errorf("no event at position %d", position)
}

// Wake tells that the other store has committed something.
func (r *Replica) Wake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run copies until ctx ends. What does not work is tried again; a store that turns out to have another history than the database is an
// *OtherHistoryError.
func (r *Replica) Run(ctx context.Context) error {
	again := backoff.NewExponentialBackOff()
	again.InitialInterval, again.MaxInterval = 50*time.Millisecond, 2*time.Second
	poll := time.NewTicker(replicaPoll)
	defer poll.Stop()
	polled := false
	for {
		var err error
		if polled {
			err = r.stillThere(ctx)
		}
		if err == nil {
			err = r.copy(ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
		var other *OtherHistoryError
		if errors.As(err, &other) {
			return err
		}
		var notNext *NotNextError
		if errors.As(err, &notNext) { // another process copies too, or something that does not know the inline tables did
			if err = r.look(ctx, notNext); err == nil {
				continue
			}
			if errors.As(err, &other) {
				return err
			}
		}
		wake := r.wake
		wait := poll.C
		if err != nil {
			pause := again.NextBackOff()
			r.Log.Warn("the database does not follow the event store", "store", r.Name, "error", err, "again_in", pause)
			wake, wait = nil, time.After(pause)
		} else {
			again.Reset()
		}
		select {
		case <-wake:
			polled = false
		case <-wait:
			polled = true
		case <-ctx.Done():
			return nil
		}
	}
}

// stillThere looks whether the database has what was copied to it: after a fail-over it may not.
func (r *Replica) stillThere(ctx context.Context) error {
	end, err := r.To.End(ctx)
	if at, _ := r.position(); err != nil || end >= at {
		return err
	}
	return r.look(ctx, &NotNextError{First: end + 2, Err: errors.New("the database ends before that")})
}

// look finds out how far the database is, where what was to be copied does not follow.
func (r *Replica) look(ctx context.Context, notNext *NotNextError) error {
	if err := r.To.CatchUp(ctx); err != nil {
		return err
	}
	at, err := r.To.End(ctx)
	if err != nil {
		return err
	}
	if at == notNext.First-1 {
		return notNext
	}
	last, err := r.same(ctx, at)
	if err != nil {
		return err
	}
	if was, _ := r.position(); at < was {
		r.Log.Error("the database lost a part of its copy, which is copied again", "store", r.Name, "was_at", was, "is_at", at)
	}
	r.set(at, last)
	return nil
}

// copy copies all that there is. It reads the event that was copied last once more: a store that does not have it any more has lost what it had.
func (r *Replica) copy(ctx context.Context) error {
	for {
		var (
			page  []es.Event
			bytes int
		)
		at, last := r.position()
		found := at == 0
		for e, err := range r.From.ReadAll(ctx, "", es.From{After: max(at-1, 0)}) {
			if err != nil {
				return err
			}
			if e.Position == at {
				if found = e.ID == last; !found {
					return &OtherHistoryError{r.Name, at, fmt.Sprintf("it has event %s there, and the database %s", e.ID, last)}
				}
				continue
			}
			page = append(page, e)
			if bytes += len(e.Data); len(page) == replicaPage || bytes > replicaPageBytes {
				break
			}
		}
		if !found {
			return &OtherHistoryError{r.Name, at, "it ends before that"}
		}
		if len(page) == 0 {
			return nil
		}
		if err := r.To.Import(ctx, page, ImportOptions{Published: r.Published, Follows: r.Name}); err != nil {
			return err
		}
		r.reached(page[len(page)-1].Position, page[len(page)-1].ID)
	}
}

// position is how far the database is, and the id of the event there.
func (r *Replica) position() (at int64, last string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.at, r.last
}

func (r *Replica) reached(at int64, last string) {
	if was, _ := r.position(); at > was {
		r.set(at, last)
	}
}

// set says how far the database is: further than before, or less far where it lost a part.
func (r *Replica) set(at int64, last string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at, r.last = at, last
	close(r.moved)
	r.moved = make(chan struct{})
}

// Await returns once the database has all that the store had when it was called, after 10 s with an *es.UnavailableError.
func (r *Replica) Await(ctx context.Context) error {
	end, err := r.From.End(ctx)
	if err != nil {
		return err
	}
	return r.until(ctx, func() (bool, error) { at, _ := r.position(); return at >= end, nil })
}

// AwaitVersions returns once the database has the streams at these versions.
func (r *Replica) AwaitVersions(ctx context.Context, versions map[es.Stream]int64) error {
	streams := make([]es.Stream, 0, len(versions))
	for st := range versions {
		streams = append(streams, st)
	}
	return r.until(ctx, func() (bool, error) {
		heads, err := r.To.Heads(ctx, streams)
		for i, h := range heads {
			if h.Version < versions[streams[i]] {
				return false, err
			}
		}
		return err == nil, err
	})
}

// until waits until there is what is asked for.
func (r *Replica) until(ctx context.Context, there func() (bool, error)) error {
	over := time.NewTimer(replicaWaitMax)
	defer over.Stop()
	for {
		r.mu.Lock()
		moved := r.moved
		r.mu.Unlock()
		if ok, err := there(); ok || err != nil {
			return err
		}
		r.Wake()
		select {
		case <-moved:
		case <-over.C:
			return &es.UnavailableError{Op: "wait for the database's copy", Err: fmt.Errorf("it is not there after %s", replicaWaitMax)}
		case <-ctx.Done():
			return &es.UnavailableError{Op: "wait for the database's copy", Err: ctx.Err()}
		}
	}
}

// FollowsError says that a database is a copy of another event store.
type FollowsError struct{ Name string }

// Error says what to do about it.
func (e *FollowsError) Error() string {
	return fmt.Sprintf("the database is a copy of the event store %q: run the service on that store, or make the copy the truth first", e.Name)
}

// RefuseCopy returns a *FollowsError if the database is a copy of another store: what is appended to it would not be there.
func (s *Store) RefuseCopy(ctx context.Context) error {
	var name string
	if err := s.pool.QueryRow(ctx, `SELECT follows FROM es_log`).Scan(&name); err != nil {
		return Classify("read what is followed", err)
	}
	if name != "" {
		return &FollowsError{name}
	}
	return nil
}
