package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"example.com/billing/test/process"
)

// injector carries out the schedule.
type injector struct {
	c   *cluster
	say func(format string, args ...any)
	// ended is told of every fault that is over, before the next one can begin on the same target.
	ended func(f fault, at time.Time)

	mu      sync.Mutex
	counts  map[kind]int
	late    time.Duration // most that a fault began after its time
	revived []string      // services that ended by themselves and were started again, and their last words
}

// run carries out the faults and returns when all of them are over, and everything runs and is connected again.
func (in *injector) run(ctx context.Context, faults []fault) error {
	began := time.Now()
	watching, stop := context.WithCancel(ctx)
	defer stop()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	wg.Go(func() { in.supervise(watching) })
	var faulty sync.WaitGroup
	for _, f := range faults {
		if !wait(ctx, time.Until(began.Add(f.at))) {
			break
		}
		faulty.Go(func() {
			if err := in.inject(ctx, f, began); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("%s: %w", f, err))
			}
		})
	}
	faulty.Wait()
	stop()
	wg.Wait()
	return errors.Join(errs...)
}

// wait reports whether ctx still lives after d.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// inject does one fault and undoes it again, also when ctx ends meanwhile. It waits for faults on the same targets.
func (in *injector) inject(ctx context.Context, f fault, began time.Time) error {
	for _, name := range slices.Sorted(slices.Values(f.targets)) {
		in.c.locks[name].Lock()
		defer in.c.locks[name].Unlock()
	}
	if ctx.Err() != nil {
		return nil
	}
	in.say("fault  %s", f)
	late := time.Since(began.Add(f.at))
	err := in.each(f, f.begin)
	if err == nil {
		wait(ctx, f.lasts)
	}
	// A kill is over when the process is started, not when it is ready: becoming ready is a part of the recovery.
	over := time.Now()
	err = errors.Join(err, in.each(f, f.end))
	if errors.Is(err, process.ErrEnded) {
		in.say("       missed: %v", err)
		return nil
	}
	if err != nil || ctx.Err() != nil {
		return err
	}
	in.mu.Lock()
	in.counts[f.kind]++
	in.late = max(in.late, late)
	in.mu.Unlock()
	in.ended(f, over)
	return nil
}

func (in *injector) each(f fault, do func(c *cluster, target string) error) error {
	var errs []error
	for _, target := range f.targets {
		errs = append(errs, do(in.c, target))
	}
	return errors.Join(errs...)
}

func (f fault) verb() string { return strings.Fields(string(f.kind))[0] }

func (f fault) begin(c *cluster, target string) error {
	switch f.verb() {
	case "kill":
		return c.nodes[target].Kill()
	case "pause":
		return c.nodes[target].Pause()
	case "cut":
		return c.links[target].cut()
	case "delay":
		return c.links[target].slow(f.slow)
	case "hold":
		return c.held[target].hold()
	case "replace":
		return c.postgres.replace()
	case "jump":
		return c.postgres.misclock(clockAhead)
	default: // hang, isolate
		return c.links[target].hang()
	}
}

func (f fault) end(c *cluster, target string) error {
	switch f.verb() {
	case "kill":
		return c.nodes[target].Start()
	case "pause":
		return c.nodes[target].Resume()
	case "hold":
		return c.held[target].release()
	case "replace":
		return c.postgres.retire()
	case "jump": // back
		return errors.Join(c.postgres.Kill(), c.postgres.Start())
	default:
		return c.links[target].heal()
	}
}

// superviseEvery is how soon a service that ended by itself is started again, as Kubernetes would.
const superviseEvery = time.Second

func (in *injector) supervise(ctx context.Context) {
	for wait(ctx, superviseEvery) {
		for _, name := range services {
			if !in.c.locks[name].TryLock() {
				continue // a fault has it
			}
			if p, ok := in.c.nodes[name].(*process.Process); ok {
				in.revive(p)
			}
			in.c.locks[name].Unlock()
		}
	}
}

// revive starts a service again if it ended by itself.
func (in *injector) revive(p *process.Process) {
	died := p.Died()
	if died == nil {
		return
	}
	why := fmt.Sprintf("%v: %s", died, p.LastWords())
	if err := p.Start(); err != nil {
		in.say("       %s: and could not be started again: %v", why, err) // the next look tries once more
		return
	}
	in.say("       %s: started again", why)
	in.mu.Lock()
	defer in.mu.Unlock()
	in.revived = append(in.revived, why)
}
