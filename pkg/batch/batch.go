// Package batch is the one queue that stands before every durable edge: callers hand in an item and wait for its result;
// while a flush is in flight the next batch collects. At low load a batch is one item and waits for nothing, at high load it is
// hundreds. What a batch costs by itself is shared by its items: where items come often, a batch collects for a moment.
package batch

import (
	"context"
	"fmt"
	"sync"
	"time"
)

var (
	// ErrFull is returned when as many items wait as the queue allows: the caller is told at once instead of waiting long.
	ErrFull error = fullError{}
	// ErrClosed is returned once the queue was closed.
	ErrClosed error = closedError{}
)

type fullError struct{}

func (fullError) Error() string    { return "the queue is full" }
func (fullError) Overloaded() bool { return true }

type closedError struct{}

func (closedError) Error() string     { return "the queue is closed" }
func (closedError) Unavailable() bool { return true }

// Result is one item's outcome.
type Result[R any] struct {
	Value R
	Err   error
}

// Options bound a queue. Zero means the default.
type Options struct {
	BatchMax   int // items in one flush; 256
	WaitingMax int // items waiting for a flush; 16 × BatchMax
	FlightMax  int // flushes at the same time; 1
	// Linger is how long a batch collects where items come so often that this makes it larger; where they come seldom nobody waits.
	// 0 = never.
	Linger time.Duration
}

// Queue collects items and flushes them in batches, in the order they came. Safe for concurrent use.
type Queue[T, R any] struct {
	flush func(context.Context, []T) []Result[R]
	opts  Options
	ctx   context.Context
	stop  context.CancelFunc

	mu      sync.Mutex
	waiting []*waiter[T, R]
	flight  int           // goroutines that flush
	idle    int           // goroutines that wait for work
	wake    chan struct{} // has one of those work
	closed  bool
	came    time.Time     // when the newest item came
	between time.Duration // time between two items, averaged over the last ones
	done    sync.WaitGroup
}

type waiter[T, R any] struct {
	item   T
	result chan Result[R]
}

// New makes a queue. flush gets 1 to BatchMax items and returns one result for each, in order. It is given a context that
// ends only when Close gives up waiting, never a caller's: a caller who leaves does not take the others along.
func New[T, R any](opts Options, flush func(context.Context, []T) []Result[R]) *Queue[T, R] {
	if opts.BatchMax <= 0 {
		opts.BatchMax = 256
	}
	if opts.WaitingMax <= 0 {
		opts.WaitingMax = 16 * opts.BatchMax
	}
	if opts.FlightMax <= 0 {
		opts.FlightMax = 1
	}
	ctx, stop := context.WithCancel(context.Background()) //nolint:gosec // Close calls it
	return &Queue[T, R]{flush: flush, opts: opts, ctx: ctx, stop: stop, between: seldom, wake: make(chan struct{}, opts.FlightMax)}
}

// Do hands in one item and waits for its result. When ctx ends first, Do returns its error and the item's outcome is
// unknown: it may still be carried out.
func (q *Queue[T, R]) Do(ctx context.Context, item T) (R, error) {
	r := q.DoAll(ctx, []T{item})[0]
	return r.Value, r.Err
}

// DoAll hands in several items, which may end up in different flushes, and waits for all of them. It takes all or none: with
// too little room every result is ErrFull.
func (q *Queue[T, R]) DoAll(ctx context.Context, items []T) []Result[R] {
	results := make([]Result[R], len(items))
	waiters := make([]*waiter[T, R], len(items))
	for i, item := range items {
		waiters[i] = &waiter[T, R]{item: item, result: make(chan Result[R], 1)}
	}
	if err := q.enqueue(waiters); err != nil {
		for i := range results {
			results[i].Err = err
		}
		return results
	}
	for i, w := range waiters {
		select {
		case results[i] = <-w.result:
		case <-ctx.Done():
			results[i].Err = ctx.Err()
		}
	}
	return results
}

// Len is how many items wait for a flush.
func (q *Queue[T, R]) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

// Close takes no more items and waits until those it has are done, or ctx ends; then the flush's context is cancelled.
func (q *Queue[T, R]) Close(ctx context.Context) error {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	defer q.stop()
	idle := make(chan struct{})
	go func() { q.done.Wait(); close(idle) }()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close queue: %w", ctx.Err())
	}
}

func (q *Queue[T, R]) enqueue(ws []*waiter[T, R]) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return ErrClosed
	}
	// A call larger than the whole queue is let in when nothing waits: it could never be otherwise.
	if len(q.waiting) > 0 && len(q.waiting)+len(ws) > q.opts.WaitingMax {
		return ErrFull
	}
	q.waiting = append(q.waiting, ws...)
	q.note(len(ws))
	if q.flight < q.opts.FlightMax {
		q.flight++
		q.done.Add(1)
		if q.idle > 0 {
			q.idle--
			q.wake <- struct{}{}
		} else {
			go q.work()
		}
	}
	return nil
}

// seldom is the longest time between items that counts.
const seldom = 100 * time.Millisecond

// note averages the time between items.
func (q *Queue[T, R]) note(items int) {
	now := time.Now()
	since := min(now.Sub(q.came), seldom)
	q.came = now
	q.between += (since/time.Duration(max(items, 1)) - q.between) / 8
}

// restMax is how long a goroutine without work stays: a new one would have to grow its stack again.
const restMax = time.Second

// work flushes whenever there is something, until there was nothing for a while or the queue is closed.
func (q *Queue[T, R]) work() {
	rest := time.NewTimer(restMax)
	defer rest.Stop()
	for {
		q.run()
		rest.Reset(restMax)
		select {
		case <-q.wake:
			continue
		case <-rest.C:
		case <-q.ctx.Done():
		}
		q.mu.Lock()
		select {
		case <-q.wake: // just now
			q.mu.Unlock()
			continue
		default:
		}
		q.idle--
		q.mu.Unlock()
		return
	}
}

// run flushes until nothing waits.
func (q *Queue[T, R]) run() {
	defer q.done.Done()
	for {
		q.mu.Lock()
		n := min(len(q.waiting), q.opts.BatchMax)
		if n > 0 && n < q.opts.BatchMax && q.between < q.opts.Linger && !q.closed {
			q.mu.Unlock()
			time.Sleep(q.opts.Linger)
			q.mu.Lock()
			n = min(len(q.waiting), q.opts.BatchMax)
		}
		if n == 0 {
			q.flight--
			q.idle++
			q.mu.Unlock()
			return
		}
		batch := q.waiting[:n:n]
		q.waiting = q.waiting[n:]
		if len(q.waiting) == 0 {
			q.waiting = nil // let go of the array
		}
		q.mu.Unlock()
		q.flushOne(batch)
	}
}

// flushOne carries out one batch; whatever the flush does, everybody gets a result.
func (q *Queue[T, R]) flushOne(batch []*waiter[T, R]) {
	items := make([]T, len(batch))
	for i, w := range batch {
		items[i] = w.item
	}
	results, err := q.call(items)
	for i, w := range batch {
		if err != nil {
			w.result <- Result[R]{Err: err}
			continue
		}
		w.result <- results[i]
	}
}

func (q *Queue[T, R]) call(items []T) (results []Result[R], err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("flush panicked: %v", p)
		}
	}()
	results = q.flush(q.ctx, items)
	if len(results) != len(items) {
		return nil, fmt.Errorf("flush returned %d results for %d items", len(results), len(items))
	}
	return results, nil
}
