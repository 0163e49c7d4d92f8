package saga_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/billing/pkg/saga"
)

// account is an engine's one account that cannot be read for a while; all others answer at once.
type account struct {
	*plan
	broken atomic.Bool
	store  saga.Store
	engine *saga.Engine
	end    func()
}

func brokenAccount(t *testing.T, change func(*saga.Config)) *account {
	a := &account{plan: newPlan(saga.Step{Name: "p", Kind: saga.Pivot}), store: saga.NewMemory()}
	a.broken.Store(true)
	a.engine = a.plan.engine(t, a.store, func(c *saga.Config) {
		act := c.Actions["p"]
		c.Actions["p"] = func(ctx context.Context, call saga.Call) (saga.Answer, error) {
			if a.broken.Load() && strings.Contains(string(call.Input), "broken") {
				return saga.Answer{}, errLost
			}
			return act(ctx, call)
		}
		change(c)
	})
	a.end = running(t, a.engine)
	return a
}

func (a *account) start(t *testing.T, id, subject string) {
	t.Helper()
	n, err := a.engine.Start(t.Context(), []saga.Trigger{{
		SagaID: id, EventType: "Asked", Data: json.RawMessage(`{"account":"` + subject + `"}`), Subjects: []string{subject}, At: time.Now(),
	}})
	if n != 1 || err != nil {
		t.Fatal(n, err)
	}
}

func (a *account) status(t *testing.T, id string) saga.State {
	t.Helper()
	s, err := a.store.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Many more sagas than there are slots wait for one account that cannot be read. They sleep and leave the slots to others; each of
// them ends once the account answers.
func TestSagasWithoutAnAnswerLeaveTheirSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slots, sagas = 8, 100
		a := brokenAccount(t, func(c *saga.Config) { c.ActiveMax = slots })
		for i := range sagas {
			a.start(t, fmt.Sprint("broken-", i), "broken")
		}
		for i := range 20 {
			time.Sleep(10 * time.Second)
			began, id := time.Now(), fmt.Sprint("fine-", i)
			a.start(t, id, "fine")
			for a.status(t, id).Status != saga.Completed {
				if time.Since(began) > 10*time.Second {
					t.Fatalf("saga %s has nothing to do with the broken account and does not end", id)
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
		for i := range sagas {
			s := a.status(t, fmt.Sprint("broken-", i))
			if s.Status != saga.InProgress || s.Naps == 0 || types(s) != "started no_answer:p" {
				t.Errorf("%s is %s after %d naps: %s", s.SagaID, s.Status, s.Naps, types(s))
			}
		}
		if n := a.engine.Stats().Naps; n < sagas {
			t.Errorf("%d naps are counted", n)
		}
		a.broken.Store(false)
		time.Sleep(2 * time.Minute)
		for i := range sagas {
			if s := a.status(t, fmt.Sprint("broken-", i)); s.Status != saga.Completed || s.Naps != 0 {
				t.Errorf("%s is %s after the account answers again, with %d naps", s.SagaID, s.Status, s.Naps)
			}
		}
		if n := a.engine.Stats().Unanswered; n != 0 {
			t.Errorf("%d actions have no answer in the end", n)
		}
		a.end()
	})
}

// Where slots are scarce, only some sagas of an account without an answer stay awake; where they are not, none sleeps at once.
func TestACrowdWithoutAnAnswerIsCapped(t *testing.T) {
	for _, tc := range []struct{ sagas, slots, awake int }{{20, 20, 10}, {20, 100, 20}} {
		synctest.Test(t, func(t *testing.T) {
			a := brokenAccount(t, func(c *saga.Config) { c.ActiveMax, c.CrowdMax = tc.slots, 3 })
			for i := range tc.sagas {
				a.start(t, fmt.Sprint(i), "broken")
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if n := a.engine.Active(); n > tc.awake || tc.awake == tc.sagas && n < tc.sagas {
				t.Errorf("%d of %d sagas without an answer are awake in %d slots, want %d", n, tc.sagas, tc.slots, tc.awake)
			}
			a.end()
		})
	}
}

// An engine that does not run wakes nobody: its sagas stay awake.
func TestNobodySleepsWhereNobodyWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan(saga.Step{Name: "p", Kind: saga.Pivot})
		p.hang = "p"
		e := p.engine(t, saga.NewMemory(), func(c *saga.Config) { c.ActiveMax = 1 })
		p.start(t, e, "s", `{}`)
		time.Sleep(time.Hour)
		close(p.open)
		time.Sleep(time.Minute)
		if n := e.Stats().Naps; n != 0 || strings.Join(p.effects(), " ") != "p" {
			t.Errorf("%d naps, effects %v", n, p.effects())
		}
		stop(t, e)
	})
}
