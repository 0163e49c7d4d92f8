package subscription

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
)

// run is one instance at work: one goroutine for the leases, one that follows the log's end, one worker for each partition held.
type run struct {
	Config
	table   table
	tail    tail
	mu      sync.Mutex
	workers map[int]*worker // by partition
	working sync.WaitGroup
}

func newRun(c Config) *run {
	return &run{Config: c, table: table{pool: c.Pool, name: c.Name, owner: uuid.NewString(), ttl: c.LeaseTTL}, workers: map[int]*worker{}}
}

// work holds leases until ctx ends.
func (r *run) work(ctx context.Context) {
	r.working.Go(func() { r.follow(ctx) })
	pause := r.newPause()
	for ctx.Err() == nil {
		wait := r.LeaseTTL / 3
		if err := r.balance(ctx); err == nil {
			pause.Reset()
		} else if ctx.Err() == nil {
			wait = min(wait, pause.NextBackOff())
			r.OnError(err, wait)
		}
		sleep(ctx, wait)
	}
	r.working.Wait()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = r.table.leave(ctx) // if this fails, the lease ends by itself
}

// balance renews the leases, takes partitions up to this instance's share, and gives back those beyond it.
func (r *run) balance(ctx context.Context) error {
	var held []lease
	leaving := map[int]bool{}
	r.mu.Lock()
	for _, w := range r.workers {
		held = append(held, lease{w.partition, w.epoch, w.position.Load()})
		leaving[w.partition] = w.leaving
	}
	r.mu.Unlock()
	leases, share, err := r.table.balance(ctx, held, leaving)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	mine := map[int]int64{}
	for _, l := range leases {
		mine[l.partition] = l.epoch
		if r.workers[l.partition] == nil {
			r.start(ctx, l)
		}
	}
	var active []int
	for p, w := range r.workers {
		switch {
		case w.leaving:
		case mine[p] != w.epoch: // epochs begin at 1
			w.leave() // fenced
		default:
			active = append(active, p)
		}
	}
	slices.Sort(active)
	for len(active) > share {
		last := len(active) - 1
		r.workers[active[last]].leave()
		active = active[:last]
	}
	return nil
}

// start works a partition until its lease is lost or given back. The caller holds the lock.
func (r *run) start(ctx context.Context, l lease) {
	ctx, cancel := context.WithCancel(ctx)
	w := &worker{run: r, partition: l.partition, epoch: l.epoch, cancel: cancel}
	w.position.Store(l.position)
	r.workers[l.partition] = w
	r.working.Go(func() {
		defer cancel()
		w.work(ctx)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = r.table.release(ctx, w.lease()) // if this fails, the lease ends by itself
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.workers, w.partition)
	})
}

// follow keeps the tail at the log's end.
func (r *run) follow(ctx context.Context) {
	pause := r.newPause()
	for wake := r.Wake; ctx.Err() == nil; {
		wait, hint := r.PollInterval, wake
		if end, err := r.table.end(ctx); err == nil {
			pause.Reset()
			r.tail.advance(end)
		} else if ctx.Err() == nil {
			wait, hint = pause.NextBackOff(), nil
			r.OnError(err, wait)
		}
		timer := time.NewTimer(wait)
		select {
		case _, open := <-hint:
			if !open {
				wake = nil
			}
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// tail is the newest position that is known of. Safe for concurrent use.
type tail struct {
	mu    sync.Mutex
	end   int64
	moved chan struct{} // closed when the end moves
}

func (t *tail) advance(end int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if end <= t.end {
		return
	}
	t.end = end
	if t.moved != nil {
		close(t.moved)
		t.moved = nil
	}
}

// await returns once the end is behind a position, or ctx has ended.
func (t *tail) await(ctx context.Context, position int64) {
	for {
		t.mu.Lock()
		if t.end > position {
			t.mu.Unlock()
			return
		}
		if t.moved == nil {
			t.moved = make(chan struct{})
		}
		moved := t.moved
		t.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return
		}
	}
}
