package batch_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"example.com/billing/pkg/batch"
)

// gate is a flush that waits to be let through, and tells what it was given.
type gate struct {
	begun chan []int    // the items of each flush, as it begins
	open  chan struct{} // one value lets one flush through
}

func newGate() *gate { return &gate{begun: make(chan []int, 1000), open: make(chan struct{}, 1000)} }

func (g *gate) flush(ctx context.Context, items []int) []batch.Result[int] {
	g.begun <- slices.Clone(items)
	select {
	case <-g.open:
	case <-ctx.Done():
	}
	results := make([]batch.Result[int], len(items))
	for i, n := range items {
		results[i].Value = 10 * n
		results[i].Err = ctx.Err()
	}
	return results
}

func (g *gate) pass(n int) {
	for range n {
		g.open <- struct{}{}
	}
}

// in runs a test in a bubble, where "everybody waits" can be waited for.
func in(t *testing.T, f func(*testing.T)) { t.Helper(); synctest.Test(t, f) }

func TestWhatWaitsDuringAFlushIsTheNextBatchInOrder(t *testing.T) {
	in(t, func(t *testing.T) {
		g := newGate()
		q := open(t, batch.Options{BatchMax: 5}, g.flush)
		var wg sync.WaitGroup
		for n := range 13 {
			wg.Go(func() {
				if r, err := q.Do(t.Context(), n); r != 10*n || err != nil {
					t.Errorf("item %d: %d, %v", n, r, err)
				}
			})
			synctest.Wait() // so that the next one comes after it
		}
		if n := q.Len(); n != 12 {
			t.Errorf("%d wait, want 12", n)
		}
		g.pass(100)
		wg.Wait()
		var batches [][]int
		for len(g.begun) > 0 {
			batches = append(batches, <-g.begun)
		}
		want := [][]int{{0}, {1, 2, 3, 4, 5}, {6, 7, 8, 9, 10}, {11, 12}}
		if !slices.EqualFunc(batches, want, slices.Equal) {
			t.Errorf("flushed %v, want %v", batches, want)
		}
	})
}

func TestAnItemAloneWaitsForNothing(t *testing.T) {
	in(t, func(t *testing.T) { // time stands still here: a timer would never end
		g := newGate()
		g.pass(1)
		if r, err := open(t, batch.Options{}, g.flush).Do(t.Context(), 4); r != 40 || err != nil {
			t.Error(r, err)
		}
	})
}

func TestDoAllKeepsTheOrderAcrossBatches(t *testing.T) {
	g := newGate()
	g.pass(100)
	q := open(t, batch.Options{BatchMax: 3}, g.flush)
	results := q.DoAll(t.Context(), []int{1, 2, 3, 4, 5, 6, 7, 8})
	for i, r := range results {
		if r.Value != 10*(i+1) || r.Err != nil {
			t.Errorf("item %d: %+v", i, r)
		}
	}
	if got := q.DoAll(t.Context(), nil); len(got) != 0 {
		t.Error(got)
	}
}

func TestFlightMaxFlushesAtOnce(t *testing.T) {
	in(t, func(t *testing.T) {
		g := newGate()
		q := open(t, batch.Options{BatchMax: 1, FlightMax: 3}, g.flush)
		var wg sync.WaitGroup
		for n := range 5 {
			wg.Go(func() { _, _ = q.Do(t.Context(), n) })
		}
		synctest.Wait()
		if n := len(g.begun); n != 3 || q.Len() != 2 {
			t.Errorf("%d flushes, %d wait; want 3 and 2", n, q.Len())
		}
		g.pass(5)
		wg.Wait()
	})
}

func TestAFullQueueSaysSoAtOnce(t *testing.T) {
	in(t, func(t *testing.T) {
		g := newGate()
		q := open(t, batch.Options{BatchMax: 2, WaitingMax: 3}, g.flush)
		var wg sync.WaitGroup
		do := func(items ...int) {
			wg.Go(func() {
				for _, r := range q.DoAll(t.Context(), items) {
					if r.Err != nil {
						t.Error(r.Err)
					}
				}
			})
			synctest.Wait()
		}
		do(1)    // under way
		do(2, 3) // wait
		for _, r := range q.DoAll(t.Context(), []int{4, 5}) {
			var overloaded interface{ Overloaded() bool }
			if !errors.Is(r.Err, batch.ErrFull) || !errors.As(r.Err, &overloaded) || !overloaded.Overloaded() {
				t.Errorf("two more: %v", r.Err)
			}
		}
		do(6) // one more fits
		if _, err := q.Do(t.Context(), 7); !errors.Is(err, batch.ErrFull) {
			t.Errorf("one too many: %v", err)
		}
		g.pass(100)
		wg.Wait()
		if r := q.DoAll(t.Context(), []int{1, 2, 3, 4, 5}); r[4].Value != 50 {
			t.Errorf("a call larger than an empty queue: %+v", r)
		}
	})
}

func TestAFlushThatBreaksAnswersEverybody(t *testing.T) {
	for _, tc := range []struct {
		name, says string
		flush      func([]int) []batch.Result[int]
	}{
		{"panic", "out of luck", func([]int) []batch.Result[int] { panic("out of luck") }},
		{"too few results", "2 results for 3 items", func(items []int) []batch.Result[int] { return make([]batch.Result[int], len(items)-1) }},
		{"too many results", "4 results for 3 items", func(items []int) []batch.Result[int] { return make([]batch.Result[int], len(items)+1) }},
		{"no results", "0 results for 3 items", func([]int) []batch.Result[int] { return nil }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			broken := true
			q := open(t, batch.Options{}, func(_ context.Context, items []int) []batch.Result[int] {
				if broken {
					return tc.flush(items)
				}
				return make([]batch.Result[int], len(items))
			})
			for i, r := range q.DoAll(t.Context(), []int{1, 2, 3}) {
				if r.Err == nil || !strings.Contains(r.Err.Error(), tc.says) {
					t.Errorf("item %d: %v", i, r.Err)
				}
			}
			broken = false
			if _, err := q.Do(t.Context(), 1); err != nil {
				t.Errorf("the next one: %v", err)
			}
		})
	}
}

func TestACallerWhoLeavesTakesNobodyAlong(t *testing.T) {
	in(t, func(t *testing.T) {
		g := newGate()
		q := open(t, batch.Options{}, g.flush)
		first, leave := context.WithCancel(t.Context())
		var left, stayed error
		var wg sync.WaitGroup
		wg.Go(func() { _, left = q.Do(first, 1) })
		synctest.Wait()
		wg.Go(func() { _, stayed = q.Do(first, 2) })
		var kept int
		var err error
		wg.Go(func() { kept, err = q.Do(t.Context(), 3) })
		synctest.Wait()
		leave()
		synctest.Wait()
		g.pass(2)
		wg.Wait()
		if !errors.Is(left, context.Canceled) || !errors.Is(stayed, context.Canceled) || kept != 30 || err != nil {
			t.Errorf("left with %v and %v; who stayed got %d, %v", left, stayed, kept, err)
		}
		if <-g.begun; !slices.Contains(<-g.begun, 2) {
			t.Error("what was handed in was not carried out")
		}
	})
}

func TestCloseWaitsForWhatItHas(t *testing.T) {
	in(t, func(t *testing.T) {
		g := newGate()
		q := open(t, batch.Options{BatchMax: 1}, g.flush)
		var done atomic.Int32
		var wg sync.WaitGroup
		for n := range 3 {
			wg.Go(func() {
				if _, err := q.Do(t.Context(), n); err != nil {
					t.Error(err)
				}
				done.Add(1)
			})
		}
		synctest.Wait()
		closed := make(chan error, 1)
		go func() { closed <- q.Close(t.Context()) }()
		synctest.Wait()
		if len(closed) > 0 {
			t.Fatal("closed with items under way")
		}
		var unavailable interface{ Unavailable() bool }
		if _, err := q.Do(t.Context(), 9); !errors.Is(err, batch.ErrClosed) || !errors.As(err, &unavailable) {
			t.Errorf("a closed queue: %v", err)
		}
		g.pass(3)
		if err := <-closed; err != nil {
			t.Error(err)
		}
		wg.Wait()
		if n := done.Load(); n != 3 {
			t.Errorf("%d of 3 done", n)
		}
		if err := q.Close(t.Context()); err != nil {
			t.Errorf("closed again: %v", err)
		}
	})
}

func TestCloseThatGivesUpEndsTheFlush(t *testing.T) {
	in(t, func(t *testing.T) {
		g := newGate()
		q := open(t, batch.Options{}, g.flush)
		var err error
		var wg sync.WaitGroup
		wg.Go(func() { _, err = q.Do(t.Context(), 1) })
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := q.Close(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("close: %v", err)
		}
		wg.Wait()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the flush's context did not end: %v", err)
		}
	})
}

// open makes a queue that is closed at the end of its test.
func open[T, R any](t *testing.T, opts batch.Options, flush func(context.Context, []T) []batch.Result[R]) *batch.Queue[T, R] {
	t.Helper()
	q := batch.New(opts, flush)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // what a test left under way it has given up
		_ = q.Close(ctx)
	})
	return q
}
