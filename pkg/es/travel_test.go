package es_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"example.com/billing/pkg/batch"
	"example.com/billing/pkg/es"
)

// pages is a store that counts and sizes what is loaded.
type pages struct {
	es.Store
	loads, most int
}

func (p *pages) Load(ctx context.Context, s es.Stream, after int64, limit int) ([]es.Event, error) {
	events, err := p.Store.Load(ctx, s, after, limit)
	p.loads++
	p.most = max(p.most, len(events))
	return events, err
}

// walked is a purse that put n times 1, in commits of 1 to 5 events, which share a recorded time.
func walked(t *testing.T, x *executor, n int) string {
	t.Helper()
	id := uuid.NewString()
	for left := n; left > 0; {
		size := min(1+rand.IntN(5), left)
		cmds := make([]es.Command[any], size)
		for i := range cmds {
			cmds[i] = command(id, "", put{1})
		}
		for _, r := range x.ExecuteAll(t.Context(), cmds) {
			if r.Err != nil {
				t.Fatal(r.Err)
			}
		}
		left -= size
	}
	return id
}

// For any time, the version is that of the last event recorded at or before it.
func TestVersionAt(t *testing.T) {
	eachStore(t, func(t *testing.T, store es.Store) {
		x := newExecutor(t, store, es.ExecutorOptions{})
		for _, n := range []int{1, 2, 3, 64, 65} {
			s := es.Stream{Type: "Purse", ID: walked(t, x, n)}
			events, err := store.Load(t.Context(), s, 0, 0)
			if err != nil {
				t.Fatal(err)
			}
			times := []time.Time{events[0].RecordedAt.Add(-time.Hour), events[n-1].RecordedAt.Add(time.Hour)}
			for _, e := range events {
				times = append(times, e.RecordedAt.Add(-time.Nanosecond), e.RecordedAt, e.RecordedAt.Add(time.Nanosecond))
			}
			for _, at := range times {
				want := int64(0)
				for _, e := range events {
					if !e.RecordedAt.After(at) {
						want = e.Version
					}
				}
				p := &pages{Store: store}
				if got, err := es.VersionAt(t.Context(), p, s, at); err != nil || got != want {
					t.Errorf("of %d events at %v: version %d (%v), want %d", n, at, got, err, want)
				}
				if p.loads > 8 || p.most > 1 {
					t.Errorf("%d loads of up to %d events, of %d events", p.loads, p.most, n)
				}
			}
		}
		if v, err := es.VersionAt(t.Context(), store, es.Stream{Type: "Purse", ID: uuid.NewString()}, time.Now()); v != 0 || err != nil {
			t.Errorf("of no events: %d, %v", v, err)
		}
	})
}

// An aggregate at any version is the fold of its events up to there, with and without snapshots.
func TestAtEveryVersion(t *testing.T) {
	eachStore(t, func(t *testing.T, store es.Store) {
		const n = 12
		id := walked(t, newExecutor(t, store, es.ExecutorOptions{}), n)
		for _, snapshots := range []bool{true, false} {
			for v := int64(0); v <= n; v++ {
				r, err := purses(snapshots).At(t.Context(), store, id, v)
				if err != nil || r.Version != v || r.State != (purse{Balance: v, Moves: v}) {
					t.Errorf("at version %d: %+v (%v)", v, r, err)
				}
			}
			if r, err := purses(snapshots).At(t.Context(), store, id, n+1); err == nil || !strings.Contains(err.Error(), "version 13 is missing") {
				t.Errorf("at a version that is not there: %+v, %v", r, err)
			}
		}
	})
}

// A long past is folded from the snapshot before it, or page by page where there is none that can be read.
func TestAtReadsInPages(t *testing.T) {
	eachStore(t, func(t *testing.T, store es.Store) {
		const n = 1203
		x := newExecutor(t, store, es.ExecutorOptions{Batch: batch.Options{BatchMax: 250}})
		id := uuid.NewString()
		cmds := make([]es.Command[any], n)
		for i := range cmds {
			cmds[i] = command(id, fmt.Sprint("k-", i), put{1})
		}
		for _, r := range x.ExecuteAll(t.Context(), cmds) {
			if r.Err != nil {
				t.Fatal(r.Err)
			}
		}
		for _, tc := range []struct {
			snapshots   bool
			version     int64
			loads, most int
		}{
			{true, n, 0, 0}, {true, n - 1, 1, 202}, {true, 1000, 0, 0}, {true, 999, 1, 499}, {true, 500, 0, 0}, {true, 499, 1, 499},
			{false, n, 3, 500}, {false, 500, 1, 500},
		} {
			p := &pages{Store: store}
			r, err := purses(tc.snapshots).At(t.Context(), p, id, tc.version)
			if err != nil || r.State.Balance != tc.version || p.loads != tc.loads || p.most != tc.most {
				t.Errorf("%+v: %+v (%v) by %d loads of up to %d events", tc, r.State, err, p.loads, p.most)
			}
		}
	})
}

func TestBetween(t *testing.T) {
	eachStore(t, func(t *testing.T, store es.Store) {
		s := es.Stream{Type: "Purse", ID: walked(t, newExecutor(t, store, es.ExecutorOptions{}), 9)}
		for _, tc := range []struct {
			after, last int64
			want        []int64
		}{{0, 3, []int64{1, 2, 3}}, {7, 9, []int64{8, 9}}, {4, 4, nil}, {5, 2, nil}} {
			var got []int64
			for e, err := range es.Between(t.Context(), store, s, tc.after, tc.last) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, e.Version)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("after %d up to %d: %v", tc.after, tc.last, got)
			}
		}
		var last error
		n := 0
		for _, err := range es.Between(t.Context(), store, s, 7, 11) {
			n, last = n+1, err
		}
		if n != 3 || last == nil {
			t.Errorf("past the end: %d values, the last with error %v", n, last)
		}
	})
}
