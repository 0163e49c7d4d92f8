package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"example.com/billing/pkg/es"
)

// NotNextError says that events to be imported do not follow what the database has.
type NotNextError struct {
	First int64 // position of the first of them
	Err   error
}

// Error names the position.
func (e *NotNextError) Error() string {
	return fmt.Sprintf("the events from position %d on do not follow what the database has: %v", e.First, e.Err)
}

// Unwrap returns what the database said.
func (e *NotNextError) Unwrap() error { return e.Err }

// ImportOptions say what events are imported from.
type ImportOptions struct {
	Published bool   // the other store has published them: the relay sends none
	Follows   string // what the database must follow, as Begin noted it; empty = it must follow nothing
}

// Import writes events of another store at the positions, and with the times, that they have there: all or none. They must follow what the
// database has, else it returns a *NotNextError. What is inline commits with them.
func (s *Store) Import(ctx context.Context, events []es.Event, o ImportOptions) error {
	if len(events) == 0 {
		return nil
	}
	i, err := newImported(events)
	if err != nil {
		return err
	}
	b := &pgx.Batch{}
	b.Queue("BEGIN")
	b.Queue(LockLog)
	i.queue(b, s.inline != nil, o.Follows)
	if o.Published {
		// One batch of all there is, delivered: no relay takes old ones away.
		b.Queue("UPDATE outbox_relay SET position = $1, processed_at = clock_timestamp()", i.last())
		b.Queue("DELETE FROM outbox_batch WHERE from_position <> 1")
		b.Queue(`INSERT INTO outbox_batch (from_position, to_position, events, created_at) VALUES (1, $1::bigint, least($1::bigint, 2147483647)::int, clock_timestamp())
		         ON CONFLICT (from_position) DO UPDATE SET to_position = excluded.to_position, events = excluded.events, created_at = excluded.created_at`, i.last())
	} else {
		b.Queue("INSERT INTO outbox_batch (from_position, to_position, events, created_at) VALUES ($1, $2, $3, clock_timestamp())", i.first(), i.last(), len(events))
	}
	if s.inline != nil {
		if err := s.inline(b, events); err != nil {
			return fmt.Errorf("inline: %w", err)
		}
	}
	b.Queue("COMMIT")
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return Classify("import", err)
	}
	defer conn.Release() // a connection with an open transaction is closed by the pool, which rolls back
	err = conn.SendBatch(ctx, b).Close()
	var refused *pgconn.PgError
	if errors.As(err, &refused) && (refused.Code == notAsExpected || refused.Code == uniqueViolation) {
		return &NotNextError{i.first(), err}
	}
	if err != nil {
		return Classify("import", err)
	}
	if !o.Published {
		s.recent.add(s.history.number.Load(), i.committed)
		select {
		case s.committed <- struct{}{}:
		default:
		}
	}
	return nil
}

// What the database says of events that do not follow: es_require, and keys that are there already.
const (
	notAsExpected   = "ES001"
	uniqueViolation = "23505"
)

// imported are events as arrays, and the ends of their streams.
type imported struct {
	columns
	positions []int64
	recorded  []time.Time
	committed []Committed
	order     []es.Stream
	from, to  map[es.Stream]int64
}

func newImported(events []es.Event) (*imported, error) {
	i := &imported{from: map[es.Stream]int64{}, to: map[es.Stream]int64{}}
	for n := range events {
		e := &events[n]
		payload, err := e.Encode()
		if err != nil {
			return nil, err
		}
		to, known := i.to[e.Stream]
		if !known {
			i.order = append(i.order, e.Stream)
			i.from[e.Stream], to = e.Version-1, e.Version-1
		}
		if e.Version != to+1 {
			return nil, fmt.Errorf("import %s: version %d follows version %d", e.Stream, e.Version, to)
		}
		if n > 0 && e.Position != events[n-1].Position+1 {
			return nil, fmt.Errorf("import %s: position %d follows position %d", e.Stream, e.Position, events[n-1].Position)
		}
		i.to[e.Stream] = e.Version
		i.add(e, payload)
		i.positions, i.recorded = append(i.positions, e.Position), append(i.recorded, e.RecordedAt)
		i.committed = append(i.committed, Committed{
			Position: e.Position, Stream: e.Stream, Version: e.Version, Type: e.Type, CorrelationID: e.CorrelationID, Payload: payload,
		})
	}
	return i, nil
}

func (i *imported) first() int64 { return i.positions[0] }
func (i *imported) last() int64  { return i.positions[len(i.positions)-1] }

func (i *imported) queue(b *pgx.Batch, inline bool, follows string) {
	b.Queue(`SELECT es_require(es_end() = $1 AND follows = $3 AND (NOT $2 OR not_inlined = 0)) FROM es_log`, i.first()-1, inline, follows)
	if !inline {
		b.Queue(`UPDATE es_log SET not_inlined = not_inlined + $1`, len(i.positions))
	}
	b.Queue(`INSERT INTO es_event (position, event_id, stream_type, stream_id, version, event_type, correlation_id, recorded_at, payload)
	         SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::timestamptz[], $9::bytea[])`,
		i.positions, i.ids, i.types, i.streams, i.versions, i.names, i.correlated, i.recorded, i.payloads)
	heads, ends := map[es.Stream]int64{}, map[es.Stream]*es.Append{}
	for _, st := range i.order {
		heads[st] = i.from[st]
		ends[st] = &es.Append{Stream: st, Expected: i.to[st]} // no snapshot: it is taken again when somebody needs it
	}
	queueEnds(b, i.order, ends, heads)
}

// CatchUp brings the inline tables up to the log's end, in transactions of a page each: after events were copied here by something that does not
// know those tables. A service calls it when it starts; it is done at once where nothing was.
func (s *Store) CatchUp(ctx context.Context) error {
	if s.inline == nil {
		return nil
	}
	for {
		done := false
		err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			var at, end int64
			if _, err := tx.Exec(ctx, LockLog); err != nil {
				return err
			}
			if err := tx.QueryRow(ctx, `SELECT es_end() - not_inlined, es_end() FROM es_log`).Scan(&at, &end); err != nil {
				return err
			}
			if done = at == end; done {
				return nil
			}
			rows, err := tx.Query(ctx, `SELECT position, recorded_at, payload FROM es_event WHERE position > $1 ORDER BY position LIMIT $2`, at, readPage)
			if err != nil {
				return err
			}
			events, err := pgx.CollectRows(rows, scanEvent)
			if err != nil {
				return err
			}
			if len(events) == 0 {
				return fmt.Errorf("no events behind position %d, and the log ends at %d", at, end)
			}
			b := &pgx.Batch{}
			if err := s.inline(b, events); err != nil {
				return fmt.Errorf("inline: %w", err)
			}
			b.Queue(`UPDATE es_log SET not_inlined = es_end() - $1`, events[len(events)-1].Position)
			return tx.SendBatch(ctx, b).Close()
		})
		if err != nil || done {
			return Classify("bring the inline tables up to date", err)
		}
	}
}
