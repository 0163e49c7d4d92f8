package postgres

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/pgtest"
)

func newPool(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.Pool(t)
	if err := migrate.Up(t.Context(), pool, Migrations, MigrationsTable); err != nil {
		t.Fatal(err)
	}
	return pool
}

// commit appends n events of a new stream as one group, each with so many bytes of padding.
func commit(t *testing.T, s *Store, n, padding int) {
	t.Helper()
	a := es.Append{Stream: es.Stream{Type: "Test", ID: uuid.NewString()}}
	for v := range int64(n) {
		a.Events = append(a.Events, es.Event{
			ID: uuid.NewString(), Type: "Happened", Stream: a.Stream, Version: v + 1, At: time.UnixMilli(1), CorrelationID: fmt.Sprint("c-", v),
			Data: fmt.Appendf(nil, `{"padding":%q}`, strings.Repeat("x", padding)),
		})
	}
	if err := s.Append(context.Background(), a); err != nil {
		t.Error(err)
	}
}

// gives checks which positions a store remembers behind one.
func gives(t *testing.T, s *Store, after int64, limit int, wantWhole bool, want ...int64) {
	t.Helper()
	events, whole := s.Recent(1, after, limit)
	var got []int64
	for _, e := range events {
		got = append(got, e.Position)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || whole != wantWhole {
		t.Errorf("behind %d: %v, whole %v; want %v, %v", after, got, whole, want, wantWhole)
	}
}

func TestRecentGivesWhatFollowsOnAndForgetsIt(t *testing.T) {
	pool := newPool(t)
	s, other := New(pool, Options{}), New(pool, Options{})
	gives(t, s, 0, 10, true)
	commit(t, s, 3, 0)     // 1 to 3
	commit(t, s, 2, 0)     // 4 and 5
	commit(t, other, 1, 0) // 6
	commit(t, s, 2, 0)     // 7 and 8
	gives(t, s, 0, 2, true, 1, 2)
	gives(t, s, 0, 10, false)
	gives(t, s, 2, 10, true, 3, 4, 5)
	gives(t, s, 5, 10, false) // the other one's
	gives(t, other, 5, 10, true, 6)
	gives(t, s, 6, 10, true, 7, 8)
	gives(t, s, 8, 10, true)
	gives(t, s, 3, 10, false)
	commit(t, other, 1, 0) // of which this process knows nothing
	gives(t, s, 8, 10, true)
	if len(s.recent.events) != 0 || s.recent.bytes != 0 {
		t.Errorf("%d events, %d bytes are kept", len(s.recent.events), s.recent.bytes)
	}
}

// What is remembered is what the database has, whatever the order in which committers say what they have committed.
func TestRecentIsWhatIsStored(t *testing.T) {
	pool := newPool(t)
	s := New(pool, Options{})
	const committers, groups = 8, 20
	var wg sync.WaitGroup
	for n := range committers {
		wg.Go(func() {
			for range groups {
				commit(t, s, 1+n%3, 10)
			}
		})
	}
	var got []Committed
	take := func() {
		at := int64(len(got))
		events, whole := s.Recent(1, at, 7)
		if len(events) > 0 && !whole {
			t.Error("something is there, and it is not whole")
		}
		for _, e := range events {
			if at++; e.Position != at {
				t.Fatalf("position %d follows %d", e.Position, at-1)
			}
		}
		got = append(got, events...)
	}
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	for busy := true; busy; {
		select {
		case <-ended:
			busy = false
		case <-s.Committed():
		}
		take()
	}
	end, err := s.End(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for n := -1; n != len(got); {
		n = len(got)
		take()
	}
	if int64(len(got)) != end || len(s.recent.events) != 0 {
		t.Fatalf("%d of %d events, %d left", len(got), end, len(s.recent.events))
	}
	rows, err := pool.Query(t.Context(), `SELECT stream_type, stream_id, version, event_type, correlation_id, payload FROM es_event ORDER BY position`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for n := 0; rows.Next(); n++ {
		e := Committed{Position: int64(n + 1)}
		if err := rows.Scan(&e.Stream.Type, &e.Stream.ID, &e.Version, &e.Type, &e.CorrelationID, &e.Payload); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(e) != fmt.Sprint(got[n]) {
			t.Errorf("remembered %s, stored %s", got[n].Payload, e.Payload)
		}
	}
	if rows.Err() != nil {
		t.Error(rows.Err())
	}
}

// Only what was committed is remembered.
func TestRecentHasNothingThatWasRefused(t *testing.T) {
	pool := newPool(t)
	s := New(pool, Options{})
	st := es.Stream{Type: "Test", ID: uuid.NewString()}
	event := func(version int64) es.Append {
		return es.Append{Stream: st, Expected: version - 1, Events: []es.Event{{ID: uuid.NewString(), Type: "Happened", Stream: st, Version: version, At: time.UnixMilli(1), Data: []byte(`{}`)}}}
	}
	errs := s.AppendBatch(t.Context(), [][]es.Append{{event(1)}, {event(1)}, {event(2)}})
	if errs[0] != nil || errs[1] == nil || errs[2] != nil {
		t.Fatal(errs)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Append(ended, event(3)); err == nil {
		t.Fatal("committed without a connection")
	}
	events, whole := s.Recent(1, 0, 10)
	if len(events) != 2 || !whole || events[0].Version != 1 || events[1].Version != 2 {
		t.Errorf("%+v, %v", events, whole)
	}
}

// A committer that says late what it has committed leaves a gap meanwhile.
func TestRecentBehindALateCommitter(t *testing.T) {
	var s Store
	at := func(positions ...int64) (group []Committed) {
		for _, p := range positions {
			group = append(group, Committed{Position: p})
		}
		return group
	}
	s.recent.add(1, at(3, 4))
	gives(t, &s, 0, 10, false)
	s.recent.add(1, at(1, 2))
	gives(t, &s, 0, 10, true, 1, 2, 3, 4)
	s.recent.add(1, at(6))
	gives(t, &s, 4, 10, false) // 5 is read from the database, with 6
	s.recent.add(1, at(5))
	gives(t, &s, 6, 10, true)
	s.recent.add(1, at(7))
	gives(t, &s, 6, 10, true, 7)
}

// Where nobody takes it, memory stays bounded: all is forgotten, for the database has it.
func TestRecentIsBounded(t *testing.T) {
	s := New(newPool(t), Options{})
	const group = 1 << 20
	for n := range 10 {
		commit(t, s, 4, group/4)
		if s.recent.bytes > recentBytesMax+group+group/2 {
			t.Errorf("%d bytes after %d groups", s.recent.bytes, n+1)
		}
	}
	if n := len(s.recent.events); n > 36 || n == 0 {
		t.Errorf("%d events of 256 KiB are kept", n)
	}
	commit(t, s, 1, 0)
	gives(t, s, 0, 10, false)
	end, err := s.End(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	gives(t, s, end-1, 10, true, end)
}
