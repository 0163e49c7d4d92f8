package batch_test

import (
	"bytes"
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/billing/pkg/batch"
)

const lingers = 10 * time.Millisecond

// carried is a flush that takes no time, and notes what it was given and by which goroutine.
type carried struct {
	mu      sync.Mutex
	batches [][]int
	workers []string
}

func (c *carried) flush(_ context.Context, items []int) []batch.Result[int] {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.batches, c.workers = append(c.batches, slices.Clone(items)), append(c.workers, goroutine())
	return make([]batch.Result[int], len(items))
}

// take returns what was carried since it was last asked.
func (c *carried) take() [][]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.batches
	c.batches = nil
	return out
}

// worker is the goroutine of the newest flush.
func (c *carried) worker() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.workers[len(c.workers)-1]
}

// goroutine names the one that calls it, as stack traces do.
func goroutine() string {
	stack := make([]byte, 64)
	name, _, _ := bytes.Cut(stack[:runtime.Stack(stack, false)], []byte("["))
	return string(name)
}

// lives tells whether a goroutine has not ended.
func lives(name string) bool {
	stacks := make([]byte, 1<<20)
	return bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte(name+"["))
}

// do hands in items and returns how long they took.
func do(t *testing.T, q *batch.Queue[int, int], items ...int) time.Duration {
	t.Helper()
	began := time.Now()
	for _, r := range q.DoAll(t.Context(), items) {
		if r.Err != nil {
			t.Error(r.Err)
		}
	}
	return time.Since(began)
}

// hurry has a queue know that items come often: in full batches, for which nothing waits.
func hurry(t *testing.T, q *batch.Queue[int, int], batchMax int) {
	t.Helper()
	for range 50 {
		if d := do(t, q, make([]int, batchMax)...); d != 0 {
			t.Errorf("a full batch took %v", d)
		}
	}
}

func TestABatchCollectsWhereItemsComeOften(t *testing.T) {
	in(t, func(t *testing.T) {
		var c carried
		q := open(t, batch.Options{Linger: lingers}, c.flush)
		var longest atomic.Int64
		var wg sync.WaitGroup
		for n := range 200 {
			wg.Go(func() {
				if d := int64(do(t, q, n)); d > longest.Load() {
					longest.Store(d)
				}
			})
			time.Sleep(time.Millisecond)
		}
		wg.Wait()
		batches := c.take()
		if all := slices.Concat(batches...); !slices.IsSorted(all) || len(all) != 200 {
			t.Errorf("carried %v", all)
		}
		for _, b := range batches[len(batches)-10 : len(batches)-1] {
			if len(b) < 9 || len(b) > 12 {
				t.Errorf("%d items together, want as many as come in %v: %v", len(b), lingers, batches)
			}
		}
		if d := time.Duration(longest.Load()); d != lingers {
			t.Errorf("the longest wait was %v, want %v", d, lingers)
		}
	})
}

func TestNobodyLingersWhereItemsComeSeldom(t *testing.T) {
	in(t, func(t *testing.T) {
		var c carried
		q := open(t, batch.Options{BatchMax: 4, Linger: lingers}, c.flush)
		hurry(t, q, 4)
		if d := do(t, q, 1); d != lingers {
			t.Errorf("an item among many took %v, want %v", d, lingers)
		}
		hurry(t, q, 4)
		for range 50 { // the first one after a pause, too
			time.Sleep(2 * lingers)
			time.Sleep(100 * time.Millisecond)
			if d := do(t, q, 1); d != 0 {
				t.Fatalf("an item alone took %v", d)
			}
		}
		for range 50 {
			time.Sleep(lingers + time.Millisecond)
			if d := do(t, q, 1); d != 0 {
				t.Fatalf("an item that no other would have come to took %v", d)
			}
		}
	})
}

func TestNobodyLingersWithoutLinger(t *testing.T) {
	in(t, func(t *testing.T) {
		var c carried
		q := open(t, batch.Options{BatchMax: 4}, c.flush)
		hurry(t, q, 4)
		if d := do(t, q, 1); d != 0 {
			t.Errorf("took %v", d)
		}
	})
}

// What is left after a full batch lingers; once the queue is closed it does not.
func TestCloseDoesNotLinger(t *testing.T) {
	for _, closes := range []bool{false, true} {
		in(t, func(t *testing.T) {
			g := newGate()
			q := open(t, batch.Options{BatchMax: 4, Linger: lingers}, g.flush)
			g.pass(50)
			hurry(t, q, 4)
			var wg sync.WaitGroup
			wg.Go(func() { do(t, q, 1, 2, 3, 4, 5, 6) })
			synctest.Wait() // four are under way, two wait
			began := time.Now()
			want := lingers
			if closes {
				want = 0
				wg.Go(func() {
					if err := q.Close(t.Context()); err != nil {
						t.Error(err)
					}
				})
				synctest.Wait()
			}
			g.pass(2)
			wg.Wait()
			if d := time.Since(began); d != want {
				t.Errorf("closed: %v; took %v, want %v", closes, d, want)
			}
		})
	}
}

// A goroutine flushes again and again; without work it ends after a while, and when the queue is closed at once.
func TestGoroutinesAreUsedAgain(t *testing.T) {
	in(t, func(t *testing.T) {
		var c carried
		q := batch.New(batch.Options{FlightMax: 3}, c.flush)
		do(t, q, 1)
		first := c.worker()
		for range 20 {
			time.Sleep(900 * time.Millisecond)
			if do(t, q, 1); c.worker() != first {
				t.Fatal("another goroutine, while one had no work")
			}
		}
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		if lives(first) {
			t.Error("a goroutine without work stays for ever")
		}
		do(t, q, 1)
		second := c.worker()
		if second == first || !lives(second) {
			t.Errorf("%s after %s", second, first)
		}
		if err := q.Close(t.Context()); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if lives(second) {
			t.Error("a goroutine outlives its queue")
		}
	})
}

// bounded is a flush that counts how many of it are under way.
type bounded struct{ now, most, items atomic.Int64 }

func (b *bounded) flush(_ context.Context, items []int) []batch.Result[int] {
	now := b.now.Add(1)
	for most := b.most.Load(); now > most && !b.most.CompareAndSwap(most, now); most = b.most.Load() {
	}
	runtime.Gosched()
	b.items.Add(int64(len(items)))
	b.now.Add(-1)
	return make([]batch.Result[int], len(items))
}

// Many come and go: everybody gets a result, and never are more flushes under way than allowed.
func TestNoWakeUpIsLost(t *testing.T) {
	const callers, calls = 40, 300
	for _, linger := range []time.Duration{0, 50 * time.Microsecond} {
		var b bounded
		q := open(t, batch.Options{BatchMax: 4, WaitingMax: callers, FlightMax: 3, Linger: linger}, b.flush)
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				for n := range calls {
					do(t, q, n)
				}
			})
		}
		wg.Wait()
		if n, most := b.items.Load(), b.most.Load(); n != callers*calls || most > 3 || most < 2 {
			t.Errorf("%d items in up to %d flushes at the same time", n, most)
		}
	}
}

// Work comes in the moment that goroutines give up waiting for it.
func TestWorkForAGoroutineThatIsAboutToEnd(t *testing.T) {
	in(t, func(t *testing.T) {
		var b bounded
		q := open(t, batch.Options{BatchMax: 1, FlightMax: 3}, b.flush)
		for range 1000 {
			var wg sync.WaitGroup
			for n := range 3 {
				wg.Go(func() {
					time.Sleep(time.Second)
					do(t, q, n)
				})
			}
			synctest.Wait() // their timers come before those of the goroutines of the queue
			do(t, q, 1, 2, 3)
			wg.Wait()
		}
		if n, most := b.items.Load(), b.most.Load(); n != 6000 || most > 3 {
			t.Errorf("%d items in up to %d flushes at the same time", n, most)
		}
	})
}
