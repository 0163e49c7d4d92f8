package postgres

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/progress"
)

const (
	elsewhereEvery = 25 * time.Millisecond // between two looks while somebody waits
	elsewhereMax   = 1000                  // events of one look; what lies further back, nobody waits for any more
)

// elsewhere tells what other processes commit from what this one does. Safe for concurrent use.
type elsewhere struct {
	mu   sync.Mutex
	seen int64 // every event up to here is this process's own, or was told of

	incarnation int64 // of the database that seen is a position of
}

// commit notes a group of this process: where it lies right behind what is known, no other process's lie in between.
func (e *elsewhere) commit(incarnation int64, group []Committed) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if incarnation != e.incarnation {
		return
	}
	if group[0].Position == e.seen+1 {
		e.seen = group[len(group)-1].Position
	}
}

func (e *elsewhere) upTo(incarnation, position int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if incarnation == e.incarnation {
		e.seen = max(e.seen, position)
	}
}

// known is what seen is, and in which incarnation.
func (e *elsewhere) known() (incarnation, seen int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.incarnation, e.seen
}

// begin forgets what was seen in an older incarnation.
func (e *elsewhere) begin(incarnation int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if incarnation > e.incarnation {
		e.incarnation, e.seen = incarnation, 0
	}
}

// TellOfOthers calls notify with events that other processes have committed, soon after they have, until ctx ends. Only their streams
// and versions are set. It looks while wanted is true, and finds then what was committed shortly before too. An event of this process may be
// among them.
func (s *Store) TellOfOthers(ctx context.Context, log *slog.Logger, wanted func() bool, notify func([]es.Event)) error {
	tick := time.NewTicker(elsewhereEvery)
	defer tick.Stop()
	for failing := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !wanted() {
			progress.Rest(ctx)
			continue
		}
		progress.Beat(ctx)
		events, err := s.lookElsewhere(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !failing {
			log.Warn("what other processes commit is not seen", "error", err)
		}
		failing = err != nil
		if len(events) > 0 {
			notify(events)
		}
	}
}

// lookElsewhere reads the streams and versions of what was committed behind what is known.
func (s *Store) lookElsewhere(ctx context.Context) ([]es.Event, error) {
	if _, err := s.Incarnation(ctx); err != nil {
		return nil, err
	}
	incarnation, seen := s.elsewhere.known()
	rows, err := s.pool.Query(ctx, `SELECT position, stream_type, stream_id, version FROM es_event
		WHERE position > greatest($1, (SELECT es_end()) - $2) ORDER BY position`, seen, elsewhereMax)
	if err != nil {
		return nil, Classify("look for others' events", err)
	}
	var (
		events []es.Event
		e      es.Event
	)
	_, err = pgx.ForEachRow(rows, []any{&e.Position, &e.Stream.Type, &e.Stream.ID, &e.Version}, func() error { events = append(events, e); return nil })
	if len(events) > 0 && err == nil {
		s.elsewhere.upTo(incarnation, events[len(events)-1].Position)
	}
	return events, Classify("look for others' events", err)
}
