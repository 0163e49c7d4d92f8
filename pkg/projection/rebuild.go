package projection

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/job"
	"example.com/billing/pkg/kafka"
)

// Source is where a rebuild reads the events: their owner's store, on connections of its own. On the projection's it could
// wait for ever, for one that waits for the rebuild's lock.
type Source interface {
	// ReadAll, Load and End are es.Store's.
	ReadAll(ctx context.Context, aggregateType string, from es.From) iter.Seq2[es.Event, error]
	Load(ctx context.Context, s es.Stream, after int64, limit int) ([]es.Event, error)
	End(ctx context.Context) (int64, error)
}

// Rebuilt is how far a rebuild is, and what it found once it has ended.
type Rebuilt struct {
	Events      int64 `json:"events"`      // folded so far
	EventsTotal int64 `json:"eventsTotal"` // there were when last looked
	Rows        int64 `json:"rows"`        // of the new table
	// Before the switch: rows that both tables show at the same version with other content, rows that only one of them has
	// although both should, rows that are ahead of their stream.
	Repaired int64 `json:"repaired"`
	// Before the switch: rows of the old table that had not caught up with their stream.
	Behind int64 `json:"behind"`
	// SHA-256 in hex of the new table as COPY prints it, in the order of the ids; see checksum.
	Checksum string `json:"checksum"`
}

const (
	batchMax      = 5000     // events written at once
	batchBytesMax = 16 << 20 // of payload written at once
	closeMax      = batchMax // as few events left are folded under the lock
	passesMax     = 20       // over the events, to come that close; more writers than that are not waited for
	youngAge      = time.Minute
	attemptsMax   = 60 // to switch: a table that somebody reads for long, such as a backup, has to be waited for
	attemptPause  = time.Second
	pauseMax      = 10 * time.Second
)

// Rebuild folds all events into a new table beside the one in use, compares the two and switches, as the run of a job. The
// old table is read and written meanwhile. The switch happens in one transaction, which finishes the run: it blocks the
// projection's writes while the last events are folded and the tables compared, and readers only for the moment of the
// rename. On an error nothing has changed. What the table has beyond columns, constraints, indexes and storage
// settings, such as grants and triggers, is not carried over.
//
// A transaction of another that took its snapshot before the switch and comes to the table after it sees it empty: one that
// reads several tables in one snapshot locks this one (ACCESS SHARE) before its first statement.
func (f *Folded[S, C]) Rebuild(ctx context.Context, run *job.Run, source Source) error {
	r := &rebuild[S, C]{Folded: f, run: run, source: source, shadow: f.Table + "_rebuild", youngsters: f.Table + "_rebuild_young"}
	err := r.prepare(ctx)
	if err == nil {
		err = r.catchUp(ctx)
	}
	if err == nil {
		// It has been written without a log, which everybody's commits would have had to wait for; now it is written once more,
		// with one, and without the dead versions of its rows.
		err = r.alone(ctx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `ALTER TABLE `+r.shadow+` SET LOGGED; ANALYZE `+r.shadow)
			return err
		})
	}
	if err == nil {
		err = r.switchOver(ctx)
	}
	if err != nil {
		r.cleanUp(ctx)
		return fmt.Errorf("rebuild %s: %w", f.Table, err)
	}
	return nil
}

// rebuild is one rebuild under way. Whatever it writes, it writes in a transaction behind the job's guard. No setting, lock or
// table outlives its transaction in the session: a pooler may give the next one to another.
type rebuild[S, C any] struct {
	*Folded[S, C]
	run        *job.Run
	source     Source
	shadow     string
	youngsters string    // table of the streams that are young
	young      time.Time // streams that began at or after this may not have reached the old table yet
	at         place
}

// alone runs f in a transaction beside which no other run does anything. Nothing that it writes matters before the switch.
func (r *rebuild[S, C]) alone(ctx context.Context, f func(tx pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, r.run.Conn, func(tx pgx.Tx) error {
		if err := r.run.Guard(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = off`); err != nil {
			return err
		}
		return f(tx)
	})
}

// place is how far a rebuild is.
type place struct {
	Rebuilt
	after int64 // position of the last event folded
}

// prepare makes the new table, and drops one that an earlier run left.
func (r *rebuild[S, C]) prepare(ctx context.Context) error {
	return r.alone(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, r.drop()+`; CREATE UNLOGGED TABLE `+r.shadow+` (LIKE `+r.Table+` INCLUDING ALL);
			CREATE UNLOGGED TABLE `+r.youngsters+` (id uuid PRIMARY KEY)`); err != nil {
			return err
		}
		var options *string // which LIKE leaves out
		if err := tx.QueryRow(ctx, `SELECT array_to_string(reloptions, ', '), clock_timestamp() - $2::interval FROM pg_class WHERE oid = $1::text::regclass`,
			r.Table, youngAge).Scan(&options, &r.young); err != nil {
			return err
		}
		if options == nil {
			return nil
		}
		_, err := tx.Exec(ctx, `ALTER TABLE `+r.shadow+` SET (`+*options+`)`)
		return err
	})
}

// drop removes what a rebuild left.
func (r *rebuild[S, C]) drop() string {
	return `DROP TABLE IF EXISTS ` + r.shadow + `, ` + r.youngsters
}

// cleanUp drops the new table of a rebuild that failed, if its turn lasts. Else the next one does.
func (r *rebuild[S, C]) cleanUp(ctx context.Context) {
	if r.run.Conn.IsClosed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = r.alone(ctx, func(tx pgx.Tx) error { // the next rebuild drops it otherwise
		_, err := tx.Exec(ctx, r.drop())
		return err
	})
}

// catchUp folds until few events are left.
func (r *rebuild[S, C]) catchUp(ctx context.Context) error {
	for range passesMax {
		end, err := r.source.End(ctx)
		if err != nil {
			return err
		}
		r.at.EventsTotal = end
		before := r.at.after
		if err := r.pass(ctx, r.alone, end); err != nil {
			return err
		}
		if end-before <= closeMax {
			return nil
		}
	}
	return nil
}

// transact runs a function in a transaction, or behind a savepoint.
type transact func(ctx context.Context, f func(tx pgx.Tx) error) error

// stretch is events that are written at once, and the position after them.
type stretch struct {
	events []es.Event
	after  int64
}

// pass folds the events up to a position. The next ones are read while some are written.
func (r *rebuild[S, C]) pass(ctx context.Context, in transact, end int64) error {
	ahead := make(chan stretch)
	g, reading := errgroup.WithContext(ctx)
	from := r.at.after
	g.Go(func() error {
		defer close(ahead)
		return r.readAhead(reading, from, end, ahead)
	})
	g.Go(func() error {
		for s := range ahead {
			if len(s.events) > 0 {
				if err := in(ctx, func(tx pgx.Tx) error { return r.write(ctx, tx, s.events) }); err != nil {
					return err
				}
			}
			r.at.Events += int64(len(s.events))
			r.at.after = s.after
			if err := r.run.Show(ctx, r.at.Rebuilt); err != nil {
				return err
			}
		}
		return nil
	})
	return g.Wait()
}

// readAhead reads the events between two positions and hands them on.
func (r *rebuild[S, C]) readAhead(ctx context.Context, from, end int64, ahead chan<- stretch) error {
	var (
		s    stretch
		size int
	)
	send := func(after int64) error {
		s.after = after
		select {
		case ahead <- s:
			s, size = stretch{}, 0
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for e, err := range r.source.ReadAll(ctx, r.Decider.Type, es.From{After: from}) {
		if err != nil {
			return err
		}
		if e.Position > end {
			break
		}
		s.events, size = append(s.events, e), size+len(e.Data)
		if len(s.events) == batchMax || size >= batchBytesMax {
			if err := send(e.Position); err != nil {
				return err
			}
		}
	}
	return send(end)
}

// write folds events into the new table: what its rows show already is dropped, what they lack is loaded.
func (r *rebuild[S, C]) write(ctx context.Context, tx pgx.Tx, events []es.Event) error {
	streams, byStream := group(events)
	roots, err := r.read(ctx, tx, r.shadow, streams)
	if err != nil {
		return err
	}
	var (
		young []string
		fresh []es.Stream
	)
	for _, s := range streams {
		if first := byStream[s][0]; first.Version == 1 && !first.RecordedAt.Before(r.young) {
			young = append(young, s.ID)
		}
		if byStream[s], err = r.follow(ctx, s, roots[s].Version, byStream[s]); err != nil {
			return err
		}
		if len(byStream[s]) > 0 {
			fresh = append(fresh, s)
		}
		if _, known := roots[s]; !known {
			r.at.Rows++ // about: rows that Write leaves out are counted too, until the comparison
		}
	}
	if _, err := tx.Exec(ctx, `INSERT INTO `+r.youngsters+` SELECT unnest($1::uuid[]) ON CONFLICT DO NOTHING`, young); err != nil {
		return err
	}
	return r.fold(ctx, tx, r.shadow, roots, fresh, byStream)
}

// follow returns the events that continue a stream. One whose rows Write leaves out, for there is nothing to show yet, is
// loaded from its beginning.
func (r *rebuild[S, C]) follow(ctx context.Context, s es.Stream, have int64, events []es.Event) ([]es.Event, error) {
	next, gap := follow(s, have, events)
	if gap == nil {
		return next, nil
	}
	all, err := r.source.Load(ctx, s, have, 0)
	if err != nil {
		return nil, err
	}
	if next, gap = follow(s, have, all); gap != nil {
		return nil, fmt.Errorf("%s: the store lacks events: %w", s, gap)
	}
	if last := events[len(events)-1].Version; kafka.Next(have+int64(len(next)), last) != kafka.Duplicate {
		return nil, fmt.Errorf("%s: the store has version %d and does not load it", s, last)
	}
	return next, nil
}

// switchOver puts the new table in the old one's place, as soon as nobody stands in the way.
func (r *rebuild[S, C]) switchOver(ctx context.Context) error {
	pause := attemptPause
	for attempt := 1; ; attempt++ {
		before := r.at
		err := r.attempt(ctx)
		if err == nil || !inTheWay(err) || attempt == attemptsMax {
			return err
		}
		r.at = before // it was rolled back
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause = min(2*pause, pauseMax)
		if err := r.catchUp(ctx); err != nil {
			return err
		}
	}
}

// inTheWay tells that another transaction held a lock for too long.
func inTheWay(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "55P03" || pg.Code == "40P01")
}
