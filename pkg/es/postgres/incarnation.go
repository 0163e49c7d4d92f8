package postgres

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"example.com/billing/pkg/es"
)

// Incarnation is one history of a database: another one begins when a standby is promoted or a backup is restored. Appends wait until
// it is recorded, so FromPosition is exactly where the log ended at its beginning.
type Incarnation struct {
	Number       int64
	FromPosition int64 // the log's end when it began
	KnownTo      int64 // highest position known of older incarnations; above FromPosition, the events between are lost
	NoticedAt    time.Time
	RecoveredAt  time.Time // when an operator recovered from the loss; zero = not yet, or nothing was lost
}

// Lost is how many events of older incarnations are not in the log any more, as far as any process told.
func (i Incarnation) Lost() int64 { return max(i.KnownTo-i.FromPosition, 0) }

// What the database says of a writer that knows another history, and of a clock that is far ahead.
const (
	otherHistory = "ES002"
	clockAhead   = "ES003"
)

// incarnationCheckEvery is how often a process asks, without a commit that would tell.
const incarnationCheckEvery = time.Second

// history is the incarnation that a process's memory belongs to.
type history struct {
	number atomic.Int64 // 0 = not asked yet
	asking sync.Mutex
	asked  time.Time // under asking

	watching sync.Mutex
	watchers []func(Incarnation)
}

// Incarnation is es.Incarnated's.
func (s *Store) Incarnation(ctx context.Context) (int64, error) {
	if n := s.history.number.Load(); n != 0 {
		return n, nil
	}
	err := s.refresh(ctx)
	return s.history.number.Load(), err
}

// WatchIncarnations calls f when the process notices that the database has another history than the one it knew. f must not block.
func (s *Store) WatchIncarnations(f func(Incarnation)) {
	s.history.watching.Lock()
	defer s.history.watching.Unlock()
	s.history.watchers = append(s.history.watchers, f)
}

// CheckIncarnation asks the database for its incarnation, once a second at most, and records a new one.
func (s *Store) CheckIncarnation(ctx context.Context) error {
	s.history.asking.Lock()
	recent := time.Since(s.history.asked) < incarnationCheckEvery
	s.history.asking.Unlock()
	if recent {
		return nil
	}
	return s.refresh(ctx)
}

// refresh asks the database for its incarnation. If it is another one than the process knew, all that it remembers of the log is
// dropped, and what it knew beyond the new incarnation's beginning is noted as lost.
func (s *Store) refresh(ctx context.Context) error {
	s.history.asking.Lock()
	defer s.history.asking.Unlock()
	now, err := s.present(ctx)
	if err != nil {
		return &es.UnavailableError{Op: "read the incarnation", Err: err}
	}
	s.history.asked = time.Now()
	known := s.history.number.Load()
	if now.Number == known {
		return nil
	}
	if known != 0 {
		if err := s.NoteKnown(ctx, known, s.position(known)); err != nil {
			return err
		}
	}
	s.recent.mu.Lock()
	s.recent.begin(now.Number)
	s.recent.mu.Unlock()
	s.elsewhere.begin(now.Number)
	s.history.number.Store(now.Number)
	if known == 0 {
		return nil
	}
	if now, err = s.newestIncarnation(ctx); err != nil {
		return err
	}
	s.history.watching.Lock()
	defer s.history.watching.Unlock()
	for _, f := range s.history.watchers {
		f(now)
	}
	return nil
}

// position is the highest position that this process knows of an incarnation.
func (s *Store) position(incarnation int64) int64 {
	s.recent.mu.Lock()
	at := int64(0)
	if s.recent.incarnation == incarnation {
		at = s.recent.newest
	}
	s.recent.mu.Unlock()
	if n, seen := s.elsewhere.known(); n == incarnation {
		at = max(at, seen)
	}
	return at
}

// present is the newest incarnation, which is recorded first if it is a new one.
func (s *Store) present(ctx context.Context) (Incarnation, error) {
	var (
		now  Incarnation
		same bool
	)
	err := s.pool.QueryRow(ctx, `SELECT number, identity = es_identity() FROM es_incarnation ORDER BY number DESC LIMIT 1`).Scan(&now.Number, &same)
	if err != nil || same {
		return now, err
	}
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, LockLog); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `WITH newest AS (SELECT number, identity FROM es_incarnation ORDER BY number DESC LIMIT 1),
			begun AS (INSERT INTO es_incarnation (number, identity, from_position, known_to)
				SELECT number + 1, es_identity(), es_end(), es_end() FROM newest WHERE identity <> es_identity() RETURNING number)
			SELECT coalesce((SELECT number FROM begun), (SELECT number FROM newest))`).Scan(&now.Number)
	})
	return now, err
}

// NoteKnown notes that there was an event at a position of an incarnation: if a newer one began before it, the event is lost.
func (s *Store) NoteKnown(ctx context.Context, incarnation, position int64) error {
	_, err := s.pool.Exec(ctx, `UPDATE es_incarnation SET known_to = greatest(known_to, $2)
		WHERE number = (SELECT min(number) FROM es_incarnation WHERE number > $1) AND known_to < $2`, incarnation, position)
	return Classify("note what was known of an older incarnation", err)
}

// Incarnations returns all histories of the database, the oldest first.
func (s *Store) Incarnations(ctx context.Context) ([]Incarnation, error) {
	rows, err := s.pool.Query(ctx, `SELECT number, from_position, known_to, noticed_at, recovered_at FROM es_incarnation ORDER BY number`)
	if err != nil {
		return nil, Classify("read incarnations", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Incarnation, error) {
		var (
			i         Incarnation
			recovered *time.Time
		)
		err := row.Scan(&i.Number, &i.FromPosition, &i.KnownTo, &i.NoticedAt, &recovered)
		if recovered != nil {
			i.RecoveredAt = recovered.UTC()
		}
		i.NoticedAt = i.NoticedAt.UTC()
		return i, err
	})
	return all, Classify("read incarnations", err)
}

func (s *Store) newestIncarnation(ctx context.Context) (Incarnation, error) {
	all, err := s.Incarnations(ctx)
	if err != nil || len(all) == 0 {
		return Incarnation{}, err
	}
	return all[len(all)-1], nil
}

// Unrecovered returns the incarnations that lost events and that no operator has recovered from.
func (s *Store) Unrecovered(ctx context.Context) ([]Incarnation, error) {
	all, err := s.Incarnations(ctx)
	var lost []Incarnation
	for _, i := range all {
		if i.Lost() > 0 && i.RecoveredAt.IsZero() {
			lost = append(lost, i)
		}
	}
	return lost, err
}

// Recovered notes that an operator has recovered from what incarnations up to this one lost.
func (s *Store) Recovered(ctx context.Context, number int64) error {
	_, err := s.pool.Exec(ctx, `UPDATE es_incarnation SET recovered_at = clock_timestamp()
		WHERE number <= $1 AND known_to > from_position AND recovered_at IS NULL`, number)
	return Classify("note the recovery", err)
}

// withIncarnation has an append know the incarnation that it was decided in: the one its context says, else the process's.
func (s *Store) withIncarnation(ctx context.Context) (context.Context, int64, error) {
	if n := es.IncarnationFrom(ctx); n != 0 {
		return ctx, n, nil
	}
	n, err := s.Incarnation(ctx)
	return es.WithIncarnation(ctx, n), n, err
}

// historyError classifies the error of an append. If another incarnation refused the append, the process first drops what it
// remembers of the log, so that the next attempt decides on what the database has.
func (s *Store) historyError(ctx context.Context, op string, err error) error {
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == otherHistory {
		return &es.UnavailableError{Op: op, Err: errors.Join(err, s.refresh(ctx))}
	}
	return Classify(op, err)
}

var _ es.Incarnated = (*Store)(nil)
