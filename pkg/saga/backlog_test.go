package saga_test

import (
	"context"
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

	"example.com/billing/pkg/saga"
)

// interrupted is a store whose first Insert is interrupted once it has been carried out.
type interrupted struct {
	saga.Store
	interrupt func()
	lost      bool // the answer is lost
}

func (s *interrupted) Insert(ctx context.Context, sagas []saga.State) ([]saga.State, error) {
	added, err := s.Store.Insert(ctx, sagas)
	if s.interrupt != nil {
		s.interrupt()
		s.interrupt = nil
		if s.lost {
			return nil, errLost
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return added, err
}

// A consumer loses its partition in the middle of Start: what is stored is taken up at once, and not when it has been idle for long.
func TestAStartThatIsInterruptedLeavesNothingBehind(t *testing.T) {
	for _, tc := range []struct {
		name       string
		full, lost bool
	}{{"while it stores", false, false}, {"and the answer is lost", false, true}, {"while it waits for a slot", true, false}} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlan(saga.Step{Name: "p", Kind: saga.Pivot})
			store := &interrupted{Store: saga.NewMemory(), lost: tc.lost}
			e := p.engine(t, store, func(c *saga.Config) { c.ActiveMax = 1 })
			end := running(t, e)
			if tc.full {
				p.hang = "p"
				p.start(t, e, "before", `{}`)
				synctest.Wait()
			}
			ctx, cancel := context.WithCancel(t.Context())
			store.interrupt = cancel
			_, _ = e.Start(ctx, []saga.Trigger{{SagaID: "s", EventType: "Asked", Data: json.RawMessage(`{}`), At: time.Now()}})
			close(p.open)
			time.Sleep(time.Second) // RecoverIdle is 15 s
			synctest.Wait()
			if s, err := store.Get(t.Context(), "s"); err != nil || s.Status != saga.Completed {
				t.Errorf("interrupted %s: the saga is %q, %v", tc.name, s.Status, err)
			}
			end()
		})
	}
}

// A trigger is read again by another consumer, and its saga is this engine's, which does not work on it: it does from then on.
func TestARepeatedTriggerFindsItsSagaAtWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan(saga.Step{Name: "p", Kind: saga.Pivot})
		p.hang = "p"
		store := saga.NewMemory()
		e := p.engine(t, store, nil)
		end := running(t, e)
		p.start(t, e, "other", `{}`) // the engine has its epoch
		synctest.Wait()
		owner, err := store.Get(t.Context(), "other")
		if err != nil {
			t.Fatal(err)
		}
		asked := saga.Trigger{SagaID: "s", EventType: "Asked", Data: json.RawMessage(`{}`), At: time.Now()}
		s := saga.NewState(p.definition, asked, time.Now())
		s.Epoch = owner.Epoch
		if _, err := store.Insert(t.Context(), []saga.State{s}); err != nil {
			t.Fatal(err)
		}
		close(p.open)
		if n, err := e.Start(t.Context(), []saga.Trigger{asked}); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if s, err := store.Get(t.Context(), "s"); err != nil || s.Status != saga.Completed {
			t.Errorf("the saga is %q, %v", s.Status, err)
		}
		end()
	})
}

// An engine stops though there is no slot for a saga of the backlog.
func TestStopWithABacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan(saga.Step{Name: "p", Kind: saga.Pivot})
		p.hang = "p"
		e := p.engine(t, saga.NewMemory(), func(c *saga.Config) { c.ActiveMax, c.RecoverIdle = 1, time.Millisecond })
		end := running(t, e)
		p.start(t, e, "before", `{}`)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _ = e.Start(ctx, []saga.Trigger{{SagaID: "s", EventType: "Asked", Data: json.RawMessage(`{}`), At: time.Now()}})
		time.Sleep(time.Second)
		end() // fails the test when it does not end in time
	})
}
