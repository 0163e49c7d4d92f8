package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// promoted leads a database that was promoted, for ever. No other store's leader gets its turn there.
const promoted = "promoted"

// ErrPromoted says that a database that was a copy is the truth now.
var ErrPromoted = errors.New("the database was promoted, and follows no event store any more: run the service with the event store" +
	" \"postgres\". To follow a new log that has all of its events, run first: UPDATE es_leader SET holder = '', leased_until = 'epoch'")

// ServedError says that a process leads the store which a database follows.
type ServedError struct{ Holder, Address string }

// Error says what to do about it.
func (e *ServedError) Error() string {
	return fmt.Sprintf("process %s at %s leads the event store that the database follows: stop the services first"+
		" (the lease of one that was killed ends after some seconds)", e.Holder, e.Address)
}

// RefuseServed returns a *ServedError while a process has the lead.
func (s *Store) RefuseServed(ctx context.Context) error {
	var l Leader
	err := s.pool.QueryRow(ctx, `SELECT holder, address FROM es_leader WHERE leased_until > clock_timestamp() AND holder <> $1`, promoted).
		Scan(&l.Holder, &l.Address)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return Classify("read who leads", err)
	}
	return &ServedError{l.Holder, l.Address}
}

// Promote makes a copy that ends at a position the truth: from now on it follows nothing, and no process gets the lead of the store
// that it followed. The caller has made sure that this store takes no events any more. Without force it changes nothing while a
// process has the lead, which is a *ServedError.
func (s *Store) Promote(ctx context.Context, position int64, force bool) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `UPDATE es_leader SET holder = $1, address = '', leased_until = 'infinity'
			WHERE $2 OR holder = $1 OR leased_until <= clock_timestamp()`, promoted, force)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return &ServedError{Holder: "unknown", Address: "an address in es_leader"}
		}
		tag, err = tx.Exec(ctx, `UPDATE es_log SET follows = '' WHERE es_end() = $1`, position)
		if err == nil && tag.RowsAffected() == 0 {
			err = fmt.Errorf("the database does not end at position %d any more: something writes to it", position)
		}
		return err
	})
	return Classify("promote", err)
}

// refusePromoted returns ErrPromoted if the database was promoted.
func (s *Store) refusePromoted(ctx context.Context) error {
	var is bool
	err := s.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM es_leader WHERE holder = $1)`, promoted).Scan(&is)
	if err == nil && is {
		return ErrPromoted
	}
	return Classify("read whether the database was promoted", err)
}
