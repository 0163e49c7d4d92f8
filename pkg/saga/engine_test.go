package saga_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"example.com/billing/pkg/saga"
)

func TestAnEngineNeedsEveryAction(t *testing.T) {
	r, err := saga.NewRegistry(transfer())
	if err != nil {
		t.Fatal(err)
	}
	actions := newWorld().actions()
	delete(actions, "debit_back")
	delete(actions, "tell_failed")
	_, err = saga.NewEngine(saga.Config{Registry: r, Actions: actions, Store: saga.NewMemory()})
	if err == nil || !strings.Contains(err.Error(), `"debit_back"`) || !strings.Contains(err.Error(), `"tell_failed"`) {
		t.Errorf("got %v", err)
	}
}

// Each path on each store: what the saga's state says in the end, and what happened in the world.
func TestAnEngineCarriesSagasOut(t *testing.T) {
	for _, tc := range []struct {
		name    string
		decide  func(saga.Call) saga.Answer
		status  saga.Status
		step    int
		results []string
		undone  []string
		effects []string
	}{
		{"all done", nil, saga.Completed, 4, []string{"complete", "credit", "debit", "reserve"}, nil, []string{"reserve", "debit", "credit", "complete"}},
		{"refused at the first step", refuse("reserve"), saga.Failed, 0, nil, nil, []string{"tell_failed"}},
		{"refused at the second step", refuse("debit"), saga.Compensated, 1, []string{"reserve"}, []string{"release"}, []string{"reserve", "release", "tell_compensated"}},
		{"refused at the pivot", refuse("credit"), saga.Compensated, 2, []string{"debit", "reserve"}, []string{"debit_back", "release"},
			[]string{"reserve", "debit", "debit_back", "release", "tell_compensated"}},
		{"refused after the pivot", refuse("complete"), saga.NeedsAttention, 3, []string{"credit", "debit", "reserve"}, nil, []string{"reserve", "debit", "credit"}},
		{"a compensation is refused", refuse("credit", "debit_back"), saga.NeedsAttention, 2, []string{"debit", "reserve"}, nil, []string{"reserve", "debit"}},
		{"a panic", func(c saga.Call) saga.Answer {
			if c.Action == "credit" {
				panic("out of luck")
			}
			return done()
		}, saga.NeedsAttention, 2, []string{"debit", "reserve"}, nil, []string{"reserve", "debit"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			eachStore(t, func(t *testing.T, store saga.Store) {
				w := newWorld()
				w.decide = tc.decide
				w.before = func(_ context.Context, _ saga.Call, nth int) error { // every action has no answer at first
					if nth <= 2 {
						return errLost
					}
					return nil
				}
				var told atomic.Int32
				e := newEngine(t, store, w, func(c *saga.Config) { c.OnEnd = func(saga.State) { told.Add(1) } })
				tr := trigger()
				if n, err := e.Start(t.Context(), []saga.Trigger{tr}); n != 1 || err != nil {
					t.Fatal(n, err)
				}
				s := settled(t, store, tr.SagaID)
				stop(t, e)
				var results, undone []string
				for step, r := range s.Results {
					if string(r) != `{"did":"`+step+`"}` {
						t.Errorf("result of %s: %s", step, r)
					}
					results = append(results, step)
				}
				slices.Sort(results)
				for _, a := range s.Actions {
					undone = append(undone, a.Action)
				}
				if s.Status != tc.status || s.CurrentStep != tc.step || !slices.Equal(results, tc.results) || !slices.Equal(undone, tc.undone) {
					t.Errorf("%s at step %d, results %v, undone %v", s.Status, s.CurrentStep, results, undone)
				}
				if s.SagaType != "transfer" || s.CausedBy != tr.EventID || s.CorrelationID != "corr-1" || string(s.Input) != string(tr.Data) || s.Metadata["tenantId"] != "t-1" {
					t.Errorf("the trigger is lost: %+v", s)
				}
				w.check(t, tr.SagaID, tc.effects...)
				if n := told.Load(); n != 1 {
					t.Errorf("%s was told %d times", s.Status, n)
				}
			})
		})
	}
}

func TestACallSaysWhatItIsFor(t *testing.T) {
	w, store := newWorld(), saga.NewMemory()
	w.decide = refuse("credit")
	e := newEngine(t, store, w, nil)
	tr := trigger()
	if _, err := e.Start(t.Context(), []saga.Trigger{tr}); err != nil {
		t.Fatal(err)
	}
	settled(t, store, tr.SagaID)
	base := saga.Call{SagaID: tr.SagaID, SagaType: "transfer", Input: tr.Data, CorrelationID: "corr-1", CausedBy: tr.EventID, Metadata: tr.Metadata}
	for action, undoes := range map[string]string{"reserve": "", "credit": "", "debit_back": "debit", "release": "reserve", "tell_compensated": ""} {
		want := base
		want.Action, want.Undoes = action, undoes
		if slices.Contains([]string{"debit_back", "release", "tell_compensated"}, action) {
			want.ErrorReason, want.ErrorMessage = "NO", "It may not be."
		}
		b, err := json.Marshal(want)
		if err != nil || w.first[tr.SagaID+"/"+action] != string(b) {
			t.Errorf("%s\n got %s\nwant %s", action, w.first[tr.SagaID+"/"+action], b)
		}
	}
}

// A trigger that arrives again, in the same call, later, or at another engine, starts nothing.
func TestATriggerStartsOneSaga(t *testing.T) {
	eachStore(t, func(t *testing.T, store saga.Store) {
		w := newWorld()
		a, b := newEngine(t, store, w, nil), newEngine(t, store, w, nil)
		triggers := []saga.Trigger{trigger(), trigger()}
		triggers = append(triggers, triggers...)
		var (
			wg    sync.WaitGroup
			added atomic.Int32
		)
		for i := range 10 {
			wg.Go(func() {
				n, err := []*saga.Engine{a, b}[i%2].Start(context.Background(), triggers)
				if err != nil {
					t.Error(err)
				}
				added.Add(int32(n))
			})
		}
		wg.Wait()
		if n := added.Load(); n != 2 {
			t.Errorf("%d sagas are new, want 2", n)
		}
		for _, tr := range triggers {
			settled(t, store, tr.SagaID)
			w.check(t, tr.SagaID, "reserve", "debit", "credit", "complete")
		}
		unknown := trigger()
		unknown.EventType = "Nothing"
		fine := trigger()
		if n, err := a.Start(t.Context(), []saga.Trigger{fine, unknown}); n != 0 || err == nil {
			t.Errorf("an unknown trigger: %d, %v", n, err)
		}
		if _, err := a.Get(t.Context(), fine.SagaID); !errors.Is(err, saga.ErrNotFound) {
			t.Errorf("half of a call was stored: %v", err)
		}
	})
}

func TestActiveMaxBoundsTheWork(t *testing.T) {
	w, store := newWorld(), saga.NewMemory()
	var active, most atomic.Int32
	w.before = func(context.Context, saga.Call, int) error {
		if n := active.Add(1); n > most.Load() {
			most.Store(n)
		}
		return nil
	}
	w.after = func(context.Context, saga.Call, int) error { active.Add(-1); return nil }
	e := newEngine(t, store, w, func(c *saga.Config) { c.ActiveMax = 3 })
	for _, id := range begin(t, e, 40) {
		settled(t, store, id)
		w.check(t, id, "reserve", "debit", "credit", "complete")
	}
	if n := most.Load(); n > 3 || n == 0 {
		t.Errorf("%d actions at once", n)
	}
}

// gated holds calls of an action until it is opened.
func gated(w *world, action string) (arrived, open chan struct{}) {
	arrived, open = make(chan struct{}, 100), make(chan struct{})
	w.before = func(ctx context.Context, c saga.Call, _ int) error {
		if c.Action != action {
			return nil
		}
		arrived <- struct{}{}
		select {
		case <-open:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return arrived, open
}

func TestGetShowsProgressAtOnce(t *testing.T) {
	for _, tc := range []struct {
		action string
		refuse string
		status saga.Status
		step   int
		undone int
	}{
		{"reserve", "", saga.InProgress, 0, 0}, {"debit", "", saga.InProgress, 1, 0}, {"credit", "", saga.InProgress, 2, 0},
		{"debit_back", "credit", saga.Compensating, 2, 0}, {"release", "credit", saga.Compensating, 2, 1},
	} {
		t.Run(tc.action, func(t *testing.T) {
			eachStore(t, func(t *testing.T, store saga.Store) {
				w := newWorld()
				w.decide = refuse(tc.refuse)
				arrived, open := gated(w, tc.action)
				e := newEngine(t, store, w, nil)
				id := begin(t, e, 1)[0]
				<-arrived
				s, err := e.Get(t.Context(), id)
				if err != nil || s.Status != tc.status || s.CurrentStep != tc.step || s.Undone != tc.undone || e.Active() != 1 {
					t.Errorf("%s at step %d, %d undone (%v), %d active", s.Status, s.CurrentStep, s.Undone, err, e.Active())
				}
				close(open)
				settled(t, store, id)
			})
		})
	}
}

// The last action tells others that the work is done: who hears of it and asks waits the moment until the saga has ended.
func TestGetWaitsForTheEnd(t *testing.T) {
	for _, tc := range []struct {
		last   string
		refuse string
		status saga.Status
	}{{"complete", "", saga.Completed}, {"tell_failed", "reserve", saga.Failed}, {"tell_compensated", "credit", saga.Compensated}} {
		t.Run(tc.last, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, store := newWorld(), saga.NewMemory()
				w.decide = refuse(tc.refuse)
				_, open := gated(w, tc.last)
				e := newEngine(t, store, w, nil)
				id := begin(t, e, 1)[0]
				synctest.Wait()
				began := time.Now()
				s, err := e.Get(t.Context(), id)
				if took := time.Since(began); err != nil || s.Status.Ended() || took != 500*time.Millisecond {
					t.Errorf("an action that hangs: %s after %v (%v)", s.Status, took, err)
				}
				got := make(chan saga.State, 1)
				go func() {
					s, err := e.Get(t.Context(), id)
					if err != nil {
						t.Error(err)
					}
					got <- s
				}()
				synctest.Wait()
				if len(got) > 0 {
					t.Fatal("did not wait")
				}
				close(open)
				if s := <-got; s.Status != tc.status {
					t.Errorf("got %s, want %s", s.Status, tc.status)
				}
				ended, cancel := context.WithCancel(t.Context())
				cancel()
				if _, err := e.Get(t.Context(), uuid.NewString()); !errors.Is(err, saga.ErrNotFound) {
					t.Errorf("an unknown saga: %v", err)
				}
				if s, err := e.Get(ended, id); err != nil || s.Status != tc.status {
					t.Errorf("a saga that has ended: %+v, %v", s, err)
				}
				stop(t, e)
			})
		})
	}
}
