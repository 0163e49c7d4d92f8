package saga_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/billing/pkg/saga"
)

// slow is a store whose writes wait for a gate.
type slow struct {
	saga.Store
	gate chan struct{}
}

func (s *slow) Save(ctx context.Context, states []saga.State) []error {
	<-s.gate
	return s.Store.Save(ctx, states)
}

// Memory is ahead of what is stored, and shows it; who is told entry by entry sees only what is stored. A state that was passed over
// while a write was under way is written when that has landed, though the next step has no answer.
func TestLookStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan(undo("a"), undo("b"), saga.Step{Name: "p", Kind: saga.Pivot})
		p.hang = "p"
		store := &slow{Store: saga.NewMemory(), gate: make(chan struct{})}
		e := p.engine(t, store, nil)
		p.start(t, e, "s", `{}`)
		synctest.Wait() // a and b are done, p hangs; the write of a has not landed
		shown, _, err := e.Look(t.Context(), "s")
		stored, changed, err2 := e.LookStored(t.Context(), "s")
		if err != nil || err2 != nil || !strings.HasSuffix(types(shown), "step_completed:b") || types(stored) != "started" {
			t.Errorf("shown %q (%v), stored %q (%v)", types(shown), err, types(stored), err2)
		}
		close(store.gate)
		<-changed
		synctest.Wait()
		stored, _, _ = e.LookStored(t.Context(), "s")
		really, _ := store.Get(t.Context(), "s")
		if !strings.HasSuffix(types(stored), "step_completed:b") || types(really) != types(stored) {
			t.Errorf("after the writes %q is stored, and %q is told", types(really), types(stored))
		}
		close(p.open)
		stop(t, e)
	})
}

// An engine that has no place left leaves sagas to others.
func TestAFullEngineClaimsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full, free := newPlan(saga.Step{Name: "p", Kind: saga.Pivot}), newPlan(saga.Step{Name: "p", Kind: saga.Pivot})
		full.hang = "p"
		store := saga.NewMemory()
		one := full.engine(t, store, func(c *saga.Config) { c.ActiveMax, c.AwakeMax = 1, time.Hour })
		end := running(t, one)
		full.start(t, one, "stuck", `{}`)
		synctest.Wait()
		for _, id := range []string{"x", "y", "z"} { // nobody's
			s := saga.NewState(full.definition, saga.Trigger{SagaID: id, At: time.Now()}, time.Now())
			if _, err := store.Insert(t.Context(), []saga.State{s}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		two := free.engine(t, store, nil)
		endTwo := running(t, two)
		time.Sleep(time.Minute)
		synctest.Wait()
		for _, id := range []string{"x", "y", "z"} {
			if s, _ := store.Get(t.Context(), id); s.Status != saga.Completed {
				t.Errorf("saga %s is %s", id, s.Status)
			}
		}
		close(full.open)
		end()
		endTwo()
	})
}
