package estest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"example.com/billing/pkg/es"
)

func testLookup(t *testing.T, s es.Store) {
	st := newStream()
	e := events(st, 0, 3)
	mustAppend(t, s, es.Append{Stream: st, Events: e})
	got, err := s.Lookup(t.Context(), []string{e[2].ID, uuid.NewString(), e[0].ID})
	if err != nil || len(got) != 2 {
		t.Fatalf("found %d events (%v), want 2", len(got), err)
	}
	for _, g := range got {
		if g.ID != e[g.Version-1].ID {
			t.Errorf("version %d has id %s", g.Version, g.ID)
		}
	}
}

// testReadAll: a reader follows while writers commit; it must see every event once, positions without a gap, and each
// stream's versions in order.
func testReadAll(t *testing.T, s es.Store) {
	const writers, each = 8, 25
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			st := newStream()
			for v := range int64(each) {
				if err := s.Append(context.WithoutCancel(t.Context()), es.Append{Stream: st, Expected: v, Events: events(st, v, 1)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	defer wg.Wait() // a writer may hear of its commit after the reader saw it
	versions := map[string]int64{}
	var last int64
	for n := 0; n < writers*each; {
		finished := false
		select {
		case <-done:
			finished = true
		default:
		}
		before := n
		for e, err := range s.ReadAll(t.Context(), "", es.From{After: last}) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Position != last+1 {
				t.Fatalf("position %d follows %d", e.Position, last)
			}
			if e.Version != versions[e.Stream.ID]+1 {
				t.Fatalf("%s: version %d follows %d", e.Stream, e.Version, versions[e.Stream.ID])
			}
			versions[e.Stream.ID], last = e.Version, e.Position
			n++
		}
		if finished && n == before && n < writers*each {
			t.Fatalf("read %d events, want %d", n, writers*each)
		}
	}
	for e, err := range s.ReadAll(t.Context(), "Nothing", es.From{}) {
		t.Fatalf("a type without events yields %v, %v", e, err)
	}
}

func testReadSince(t *testing.T, s es.Store) {
	st := newStream()
	mustAppend(t, s, es.Append{Stream: st, Events: events(st, 0, 2)})
	old := mustLoad(t, s, st, 0)[1].RecordedAt
	for v := int64(2); ; v++ { // until the clock has moved
		mustAppend(t, s, es.Append{Stream: st, Expected: v, Events: events(st, v, 1)})
		if newest := mustLoad(t, s, st, v)[0].RecordedAt; newest.After(old) {
			var got []int64
			for e, err := range s.ReadAll(t.Context(), "Test", es.From{Since: newest}) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, e.Version)
			}
			if len(got) != 1 || got[0] != v+1 {
				t.Errorf("since the newest event: versions %v, want [%d]", got, v+1)
			}
			return
		}
	}
}

// testClock: what is recorded before a time of the clock is there to be read, and stays all there is, while writers commit.
func testClock(t *testing.T, s es.Store) {
	const writers, each, looks = 4, 20, 10
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			st := newStream()
			for v := range int64(each) {
				if err := s.Append(context.WithoutCancel(t.Context()), es.Append{Stream: st, Expected: v, Events: events(st, v, 1)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	defer wg.Wait()
	before := func(at time.Time) (n int) {
		for e, err := range s.ReadAll(t.Context(), "", es.From{}) {
			if err != nil {
				t.Fatal(err)
			}
			if e.RecordedAt.Before(at) {
				n++
			}
		}
		return n
	}
	type look struct {
		at time.Time
		n  int
	}
	var seen []look
	for range looks {
		at, err := s.Clock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, look{at, before(at)})
	}
	wg.Wait()
	if at, err := s.Clock(t.Context()); err != nil || before(at.Add(time.Microsecond)) != writers*each {
		t.Errorf("the clock says %s (%v), and not everything was recorded by then", at, err)
	}
	for _, l := range seen {
		if n := before(l.at); n != l.n {
			t.Errorf("%d events were recorded before %s, and %d later on", l.n, l.at, n)
		}
	}
}

func testEnd(t *testing.T, s es.Store) {
	before, err := s.End(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st := newStream()
	if err := s.Append(t.Context(), es.Append{Stream: st, Events: events(st, 0, 3)}); err != nil {
		t.Fatal(err)
	}
	if end, err := s.End(t.Context()); err != nil || end != before+3 {
		t.Errorf("the end was %d and is %d (%v) after 3 events", before, end, err)
	}
	stored, err := s.Load(t.Context(), st, 2, 0)
	if err != nil || len(stored) != 1 || stored[0].Position != before+3 {
		t.Errorf("the newest event is %v (%v), not at position %d", stored, err, before+3)
	}
}
