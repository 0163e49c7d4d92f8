package saga_test

import (
	"context"
	"hash/fnv"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/saga"
)

// paths are the ways through the transfer that recovery tests take, by saga.
var paths = []struct {
	refuse  string
	status  saga.Status
	effects []string
}{
	{"", saga.Completed, []string{"reserve", "debit", "credit", "complete"}},
	{"credit", saga.Compensated, []string{"reserve", "debit", "debit_back", "release", "tell_compensated"}},
	{"reserve", saga.Failed, []string{"tell_failed"}},
	{"complete", saga.NeedsAttention, []string{"reserve", "debit", "credit"}},
}

func pathOf(id string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	return int(h.Sum32()) % len(paths)
}

// byPath refuses what the saga's path says.
func byPath(c saga.Call) saga.Answer { return refuse(paths[pathOf(c.SagaID)].refuse)(c) }

// checkPaths waits for sagas and checks that each ended by its path, with each effect once.
func checkPaths(t *testing.T, store saga.Store, w *world, ids []string) {
	t.Helper()
	seen := map[int]bool{}
	for _, id := range ids {
		p := paths[pathOf(id)]
		seen[pathOf(id)] = true
		if s := settled(t, store, id); s.Status != p.status {
			t.Errorf("saga %s is %s, want %s", id, s.Status, p.status)
		}
		w.check(t, id, p.effects...)
	}
	if len(ids) >= 40 && len(seen) != len(paths) {
		t.Errorf("only %d of %d paths were taken", len(seen), len(paths))
	}
}

// An engine stops in the middle of each action in turn, before or after the action had its effect. Another one takes up the saga
// and ends it; each effect is there once.
func TestAnotherEngineFinishesWhatOneLeft(t *testing.T) {
	eachStore(t, func(t *testing.T, store saga.Store) {
		for path, p := range paths {
			actions := p.effects
			if p.refuse != "" {
				actions = append([]string{p.refuse}, actions...)
			}
			for _, action := range actions {
				for _, late := range []bool{false, true} {
					id := trigger()
					for pathOf(id.SagaID) != path {
						id = trigger()
					}
					w := newWorld()
					w.decide = byPath
					reached := make(chan struct{})
					var once sync.Once
					hang := func(ctx context.Context, c saga.Call, _ int) error {
						if c.Action != action {
							return nil
						}
						once.Do(func() { close(reached) })
						<-ctx.Done()
						return ctx.Err()
					}
					if late {
						w.after = hang
					} else {
						w.before = hang
					}
					first := newEngine(t, store, w, nil)
					if n, err := first.Start(t.Context(), []saga.Trigger{id}); n != 1 || err != nil {
						t.Fatal(n, err)
					}
					<-reached
					stop(t, first)
					if n := first.Active(); n != 0 {
						t.Errorf("%d sagas are worked on after the stop", n)
					}
					w.before, w.after = nil, nil
					second := newEngine(t, store, w, nil)
					ctx, cancel := context.WithCancel(t.Context())
					done := make(chan struct{})
					go func() { _ = second.Run(ctx); close(done) }()
					checkPaths(t, store, w, []string{id.SagaID})
					cancel()
					<-done
				}
			}
		}
	})
}

// silent is a store that an engine cannot renew its lease in, as if its process had been paused.
type silent struct {
	saga.Store
	paused atomic.Bool
}

func (s *silent) Lease(ctx context.Context, owner string, epoch int64, ttl time.Duration) (int64, error) {
	if s.paused.Load() {
		return 0, &es.UnavailableError{Op: "lease", Err: errLost}
	}
	return s.Store.Lease(ctx, owner, epoch, ttl)
}

// An engine falls silent in the middle of all its sagas, for longer than its lease; another one takes them over and is at work when
// the first wakes up: each saga ends as it would have with one, with each effect once, and the late one writes nothing.
func TestASilentEngineIsFenced(t *testing.T) {
	eachStore(t, func(t *testing.T, store saga.Store) {
		w := newWorld()
		w.decide = byPath
		var n atomic.Int64
		both := make(chan struct{})
		w.before = func(context.Context, saga.Call, int) error {
			<-both
			if n.Add(1)%5 == 0 { // some calls are lost, so that neither engine is always ahead
				return errLost
			}
			return nil
		}
		pausable := &silent{Store: store}
		a := newEngine(t, pausable, w, func(c *saga.Config) { c.LeaseTTL = 300 * time.Millisecond })
		ids := begin(t, a, 40)
		pausable.paused.Store(true)
		b := newEngine(t, store, w, nil)
		run(t, b)
		late := time.Now().Add(20 * time.Second)
		for ; a.Active() != 40 || b.Active() != 40; runtime.Gosched() {
			if time.Now().After(late) {
				t.Errorf("%d and %d of 40 sagas are worked on", a.Active(), b.Active())
				break
			}
		}
		pausable.paused.Store(false)
		close(both)
		checkPaths(t, store, w, ids)
		for ; a.Active() > 0; runtime.Gosched() {
			if time.Now().After(late) {
				t.Fatalf("the late engine still works on %d sagas", a.Active())
			}
		}
	})
}

// Two engines share what there is to do: a saga is worked on by one of them.
func TestTwoEnginesShareTheWork(t *testing.T) {
	eachStore(t, func(t *testing.T, store saga.Store) {
		w := newWorld()
		w.decide = byPath
		a, b := newEngine(t, store, w, nil), newEngine(t, store, w, nil)
		run(t, a)
		run(t, b)
		checkPaths(t, store, w, append(begin(t, a, 20), begin(t, b, 20)...))
		for key, n := range w.calls {
			if n > 1 {
				t.Errorf("%s was called %d times", key, n)
			}
		}
	})
}

// shaky is a store whose writes lose answers: before they are done or after.
type shaky struct {
	saga.Store
	n atomic.Int64
}

func (s *shaky) Save(ctx context.Context, states []saga.State) []error {
	unavailable := func() []error {
		errs := make([]error, len(states))
		for i := range errs {
			errs[i] = &es.UnavailableError{Op: "save", Err: errLost}
		}
		return errs
	}
	switch s.n.Add(1) % 4 {
	case 0:
		return unavailable()
	case 1, 2:
		s.Store.Save(ctx, states)
		return unavailable()
	}
	return s.Store.Save(ctx, states)
}

func (s *shaky) Get(ctx context.Context, id string) (saga.State, error) {
	if s.n.Add(1)%3 == 0 {
		return saga.State{}, &es.UnavailableError{Op: "get", Err: errLost}
	}
	return s.Store.Get(ctx, id)
}

// A write may be lost, or done without an answer: sagas end right all the same, each effect once.
func TestLostWritesDoNoHarm(t *testing.T) {
	eachStore(t, func(t *testing.T, store saga.Store) {
		w := newWorld()
		w.decide = byPath
		e := newEngine(t, &shaky{Store: store}, w, nil)
		ids := begin(t, e, 40)
		checkPaths(t, store, w, ids)
	})
}

// A saga whose definition is gone is left alone, and does not stop the others.
func TestASagaWithoutADefinitionWaits(t *testing.T) {
	store, w := saga.NewMemory(), newWorld()
	old := saga.State{SagaID: "old", SagaType: "transfer", Definition: 7, Status: saga.InProgress, CreatedAt: now, UpdatedAt: now}
	if _, err := store.Insert(t.Context(), []saga.State{old}); err != nil {
		t.Fatal(err)
	}
	e := newEngine(t, store, w, nil)
	run(t, e)
	id := begin(t, e, 1)[0]
	settled(t, store, id)
	w.check(t, id, "reserve", "debit", "credit", "complete")
	w.check(t, "old")
	if s, err := store.Get(t.Context(), "old"); err != nil || s.Status != saga.InProgress || s.Revision != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}

// Start stores everything before it returns: what an engine was given and did not get to, the next one does.
func TestWhatWasStartedIsNotLost(t *testing.T) {
	eachStore(t, func(t *testing.T, store saga.Store) {
		w := newWorld()
		w.decide = byPath
		arrived, open := gated(w, "reserve")
		first := newEngine(t, store, w, func(c *saga.Config) { c.ActiveMax = 1 })
		var (
			triggers []saga.Trigger
			ids      []string
		)
		for range 20 {
			tr := trigger()
			triggers, ids = append(triggers, tr), append(ids, tr.SagaID)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-arrived; cancel() }() // the first has the only place; the others wait for it
		if n, err := first.Start(ctx, triggers); n != 20 || err != nil {
			t.Fatal(n, err)
		}
		stop(t, first)
		if n, err := first.Start(t.Context(), []saga.Trigger{trigger()}); n != 0 || err == nil {
			t.Errorf("an engine that has stopped took %d sagas (%v)", n, err)
		}
		close(open)
		run(t, newEngine(t, store, w, func(c *saga.Config) { c.RecoverEvery, c.RecoverIdle = time.Hour, time.Hour }))
		checkPaths(t, store, w, ids)
	})
}
