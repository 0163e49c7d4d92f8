package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/postgres"
)

// openInline is a store whose Inline keeps a table of the events it was given, and does what else the test wants.
func openInline(t testing.TB, more func(b *pgx.Batch, e es.Event) error) (*postgres.Store, *pgxpool.Pool) {
	t.Helper()
	_, pool := open(t)
	exec(t, pool, `CREATE TABLE seen (position bigint PRIMARY KEY, event_id uuid, stream_id text, recorded_at timestamptz)`)
	return postgres.New(pool, postgres.Options{Inline: func(b *pgx.Batch, events []es.Event) error {
		for _, e := range events {
			b.Queue(`INSERT INTO seen SELECT position, event_id, stream_id, recorded_at FROM es_event WHERE event_id = $1`, e.ID)
			if more != nil {
				if err := more(b, e); err != nil {
					return err
				}
			}
		}
		return nil
	}}), pool
}

func exec(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func number(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) (n int64) {
	t.Helper()
	if err := pool.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func stream(id string) es.Stream { return es.Stream{Type: "Test", ID: id} }

// after makes an append of n events behind a version.
func after(st es.Stream, version int64, n int) es.Append {
	a := es.Append{Stream: st, Expected: version}
	for i := range n {
		a.Events = append(a.Events, es.Event{
			ID: uuid.NewString(), Type: "Happened", Stream: st, Version: version + int64(i) + 1, At: time.UnixMilli(1), CorrelationID: "c", Data: []byte(`{}`),
		})
	}
	return a
}

// checkBooks: positions have no gap, the log's end is the last one, the outbox rows cover each once, and so does the inline table.
func checkBooks(t *testing.T, s *postgres.Store, pool *pgxpool.Pool, want int64) {
	t.Helper()
	var (
		last es.Event
		n    int64
	)
	for e, err := range s.ReadAll(context.Background(), "", es.From{}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Position != last.Position+1 || e.RecordedAt.Before(last.RecordedAt) {
			t.Errorf("position %d at %v follows %d at %v", e.Position, e.RecordedAt, last.Position, last.RecordedAt)
		}
		last = e
		n++
	}
	if n != want {
		t.Errorf("%d events, want %d", n, want)
	}
	for what, sql := range map[string]string{
		"the log's end":                 `SELECT es_end()`,
		"events by the outbox rows":     `SELECT coalesce(sum(events), 0) FROM outbox_batch`,
		"positions of the outbox rows":  `SELECT count(DISTINCT p) FROM outbox_batch, generate_series(from_position, to_position) AS p`,
		"events that Inline has stored": `SELECT count(*) FROM seen JOIN es_event USING (position, event_id, stream_id, recorded_at)`,
		"rows of Inline":                `SELECT count(*) FROM seen`,
		"versions of the heads":         `SELECT coalesce(sum(version), 0) FROM es_head`,
	} {
		if got := number(t, pool, sql); got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
}

func TestInlineCommitsWithTheEvents(t *testing.T) {
	s, pool := openInline(t, nil)
	a, b := stream("a"), stream("b")
	errs := s.AppendBatch(t.Context(), [][]es.Append{
		{after(a, 0, 2)}, {after(b, 5, 1)}, {after(b, 0, 1), after(stream("c"), 0, 1)}, {{Stream: stream("d")}}, {after(a, 2, 1)},
	})
	var conflict *es.ConflictError
	if errs[0] != nil || !errors.As(errs[1], &conflict) || errs[2] != nil || errs[3] != nil || errs[4] != nil {
		t.Fatal(errs)
	}
	checkBooks(t, s, pool, 5)
	if n := number(t, pool, `SELECT count(*) FROM outbox_batch`); n != 1 {
		t.Errorf("%d outbox rows for one group, want 1", n)
	}
}

// One item of a group cannot be written: it fails with the reason, alone, and whatever builds on it is a conflict.
func TestAnItemThatTheDatabaseRefusesFailsAlone(t *testing.T) {
	errOwn := errors.New("not this one")
	for _, tc := range []struct {
		name  string
		more  func(b *pgx.Batch, e es.Event) error
		fails func(error) bool
	}{
		{"a statement violates a constraint", func(b *pgx.Batch, e es.Event) error {
			b.Queue(`INSERT INTO allowed VALUES ($1)`, e.Stream.ID)
			return nil
		}, func(err error) bool {
			var pg *pgconn.PgError
			return errors.As(err, &pg) && pg.Code == "23514"
		}},
		{"a constraint is checked at the commit", func(b *pgx.Batch, e es.Event) error {
			b.Queue(`INSERT INTO listed VALUES ($1)`, e.Stream.ID)
			return nil
		}, func(err error) bool {
			var pg *pgconn.PgError
			return errors.As(err, &pg) && pg.Code == "23503"
		}},
		{"Inline returns an error", func(_ *pgx.Batch, e es.Event) error {
			if e.Stream.ID == "bad" {
				return errOwn
			}
			return nil
		}, func(err error) bool { return errors.Is(err, errOwn) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, pool := openInline(t, tc.more)
			exec(t, pool, `CREATE TABLE allowed (stream_id text CHECK (stream_id <> 'bad'));
				CREATE TABLE names (stream_id text PRIMARY KEY); INSERT INTO names SELECT 's' || n FROM generate_series(0, 19) AS n;
				CREATE TABLE listed (stream_id text REFERENCES names DEFERRABLE INITIALLY DEFERRED)`)
			items := make([][]es.Append, 20)
			for i := range items {
				items[i] = []es.Append{after(stream(fmt.Sprint("s", i)), 0, 2)}
			}
			bad := stream("bad")
			items[7] = []es.Append{after(stream("s7"), 0, 2), after(bad, 0, 1)} // s7 goes down with it
			items[8] = []es.Append{after(bad, 1, 1)}
			items[9] = []es.Append{after(stream("s3"), 2, 2)} // builds on one that is fine
			errs := s.AppendBatch(t.Context(), items)
			var conflict *es.ConflictError
			for i, err := range errs {
				switch {
				case i == 7:
					if !tc.fails(err) {
						t.Errorf("the bad item: %v", err)
					}
				case i == 8:
					if !errors.As(err, &conflict) || conflict.Actual != 0 {
						t.Errorf("the one behind it: %v", err)
					}
				case err != nil:
					t.Errorf("item %d: %v", i, err)
				}
			}
			checkBooks(t, s, pool, 18*2)
			heads, err := s.Heads(t.Context(), []es.Stream{stream("s7"), bad, stream("s3")})
			if err != nil || heads[0].Version != 0 || heads[1].Version != 0 || heads[2].Version != 4 {
				t.Errorf("heads %+v, %v", heads, err)
			}
			if err := s.Append(t.Context(), after(stream("s7"), 0, 1)); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// AppendWith's statements and the events commit together, under one lock.
func TestAppendWith(t *testing.T) {
	errNo, errStop := errors.New("no"), errors.New("stop")
	for _, tc := range []struct {
		name     string
		reject   int // item; -1 = none
		stop     error
		accepted []int
		errs     []error // nil in the place of errConflict = any conflict
		events   int64
		notes    int64
	}{
		{"all that hold", -1, nil, []int{0, 2, 3}, []error{nil, errConflict, nil, nil}, 3, 3},
		{"without what the caller rejects", 2, nil, []int{0, 2, 3}, []error{nil, errConflict, errNo, nil}, 1, 2},
		{"nothing when the caller stops", -1, errStop, []int{0, 2, 3}, []error{errStop, errConflict, errStop, errStop}, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, pool := openInline(t, nil)
			exec(t, pool, `CREATE TABLE note (n int)`)
			var read int64 = -1
			items := [][]es.Append{{after(stream("a"), 0, 1)}, {after(stream("b"), 9, 1)}, {after(stream("c"), 0, 2)}, nil}
			var accepted []int
			errs := s.AppendWith(t.Context(), items, postgres.With{
				Read: func(b *pgx.Batch) {
					b.Queue(`SELECT count(*) FROM note`).QueryRow(func(row pgx.Row) error { return row.Scan(&read) })
				},
				Write: func(b *pgx.Batch, ok []int, reject func(int, error)) error {
					accepted = slices.Clone(ok)
					if read != 0 {
						t.Errorf("Write before Read: %d", read)
					}
					for _, i := range ok {
						if i == tc.reject {
							reject(i, errNo)
							continue
						}
						b.Queue(`INSERT INTO note VALUES ($1)`, i)
					}
					return tc.stop
				},
			})
			if !slices.Equal(accepted, tc.accepted) {
				t.Errorf("accepted %v, want %v", accepted, tc.accepted)
			}
			for i, want := range tc.errs {
				var conflict *es.ConflictError
				if errors.Is(want, errConflict) && !errors.As(errs[i], &conflict) || !errors.Is(want, errConflict) && !errors.Is(errs[i], want) {
					t.Errorf("item %d: %v, want %v", i, errs[i], want)
				}
			}
			checkBooks(t, s, pool, tc.events)
			if n := number(t, pool, `SELECT count(*) FROM note`); n != tc.notes {
				t.Errorf("%d rows of the caller's, want %d", n, tc.notes)
			}
		})
	}
}

var errConflict = errors.New("a conflict")

// What Read reads is still so when Write writes: nobody else is between them.
func TestAppendWithReadsUnderTheLock(t *testing.T) {
	s, pool := openInline(t, nil)
	exec(t, pool, `CREATE TABLE counter (n bigint); INSERT INTO counter VALUES (0)`)
	const writers = 40
	done := make(chan []error, writers)
	for range writers {
		go func() {
			var n int64
			done <- s.AppendWith(context.Background(), [][]es.Append{nil}, postgres.With{
				Read: func(b *pgx.Batch) {
					b.Queue(`SELECT n FROM counter`).QueryRow(func(row pgx.Row) error { return row.Scan(&n) })
				},
				Write: func(b *pgx.Batch, _ []int, _ func(int, error)) error {
					b.Queue(`UPDATE counter SET n = $1`, n+1)
					return nil
				},
			})
		}()
	}
	for range writers {
		if errs := <-done; errs[0] != nil {
			t.Error(errs[0])
		}
	}
	if n := number(t, pool, `SELECT n FROM counter`); n != writers {
		t.Errorf("counted %d, want %d", n, writers)
	}
}
