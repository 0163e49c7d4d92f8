package saga_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/billing/pkg/saga"
)

// progressWithin is how soon the end of a step is stored while the next one has no answer.
const progressWithin = time.Second

// saving is a store that notes the steps that states are saved at. A save that held says to hold waits until it may go on.
type saving struct {
	saga.Store
	held func(s saga.State) <-chan struct{}

	mu    sync.Mutex
	steps []int
}

func (s *saving) Save(ctx context.Context, sagas []saga.State) []error {
	s.mu.Lock()
	for _, state := range sagas {
		s.steps = append(s.steps, state.CurrentStep)
	}
	s.mu.Unlock()
	if s.held != nil {
		if hold := s.held(sagas[0]); hold != nil {
			<-hold
		}
	}
	return s.Store.Save(ctx, sagas)
}

// saved are the steps of all saves so far.
func (s *saving) saved() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.steps)
}

// at checks where a saga is as its engine shows it, and as it is stored.
func at(t *testing.T, e *saga.Engine, store saga.Store, id string, shown, stored int) {
	t.Helper()
	s, _, err := e.Look(t.Context(), id)
	if err != nil || s.CurrentStep != shown {
		t.Errorf("shown at step %d (%v), want %d", s.CurrentStep, err, shown)
	}
	s, _, err = e.LookStored(t.Context(), id)
	if err != nil || s.CurrentStep != stored {
		t.Errorf("known to be stored at step %d (%v), want %d", s.CurrentStep, err, stored)
	}
	if s, err = store.Get(t.Context(), id); err != nil || s.CurrentStep != stored {
		t.Errorf("stored at step %d (%v), want %d", s.CurrentStep, err, stored)
	}
}

// The end of a step shows at once, and is stored soon where the next step has no answer.
func TestProgressIsShownAtOnceAndStoredSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, store := newWorld(), &saving{Store: saga.NewMemory()}
		arrived, open := gated(w, "credit")
		e := newEngine(t, store, w, nil)
		id := begin(t, e, 1)[0]
		<-arrived
		synctest.Wait()
		at(t, e, store, id, 2, 0)
		time.Sleep(progressWithin - time.Millisecond)
		at(t, e, store, id, 2, 0)
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		at(t, e, store, id, 2, 2)
		time.Sleep(time.Minute)
		if got := store.saved(); !slices.Equal(got, []int{2}) {
			t.Errorf("saved at the steps %v while one had no answer", got)
		}
		close(open)
		settled(t, store, id)
		if got := store.saved(); !slices.Equal(got, []int{2, 4}) {
			t.Errorf("saved at the steps %v", got)
		}
		stop(t, e)
	})
}

// A saga whose steps answer soon is written once; a decision to go back is stored before it is acted on.
func TestASagaThatIsSoonThroughIsWrittenOnce(t *testing.T) {
	for _, tc := range []struct {
		name   string
		refuse string
		takes  time.Duration // an action
		saves  int
	}{
		{"at once", "", 0, 1},
		{"soon", "", progressWithin / 5, 1},
		{"slowly", "", progressWithin * 3 / 5, 2},
		{"refused", "credit", progressWithin / 10, 4}, // to go back, each compensation, the end
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, store := newWorld(), &saving{Store: saga.NewMemory()}
				w.decide = refuse(tc.refuse)
				w.before = func(context.Context, saga.Call, int) error {
					time.Sleep(tc.takes)
					return nil
				}
				e := newEngine(t, store, w, nil)
				id := begin(t, e, 1)[0]
				settled(t, store, id)
				if got := store.saved(); len(got) != tc.saves {
					t.Errorf("%d saves, at the steps %v; want %d", len(got), got, tc.saves)
				}
				stop(t, e)
			})
		})
	}
}

// A saga that waits stores its progress first, whether it stays in memory or is put to sleep.
func TestASagaThatWaitsStoresItsProgressFirst(t *testing.T) {
	for _, sleeps := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlan(undo("a"), saga.Step{Name: "p", Kind: saga.Pivot, Delay: 5 * time.Second})
			store := &saving{Store: saga.NewMemory()}
			e := p.engine(t, store, func(c *saga.Config) {
				if sleeps {
					c.SleepMax = time.Second
				}
			})
			p.start(t, e, "s-1", `{}`)
			synctest.Wait()
			at(t, e, store, "s-1", 1, 1)
			if n := e.Active(); n == 0 != sleeps || len(store.saved()) != 1 {
				t.Errorf("asleep: %v; %d active, saved at %v", sleeps, n, store.saved())
			}
			if !sleeps {
				time.Sleep(6 * time.Second)
				synctest.Wait()
				if s, err := store.Get(t.Context(), "s-1"); err != nil || s.Status != saga.Completed || len(store.saved()) != 2 {
					t.Errorf("%s, saved at %v (%v)", s.Status, store.saved(), err)
				}
			}
			stop(t, e)
		})
	}
}

// Also where the write of earlier progress is still under way as it begins to wait.
func TestASagaThatWaitsStoresItsProgressBehindASlowWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan(undo("a"), undo("b"), saga.Step{Name: "p", Kind: saga.Pivot, Delay: 8 * time.Second})
		p.hang = "b"
		slow := make(chan struct{})
		store := &saving{Store: saga.NewMemory()}
		store.held = func(s saga.State) <-chan struct{} {
			if s.CurrentStep == 1 {
				return slow
			}
			return nil
		}
		e := p.engine(t, store, nil)
		p.start(t, e, "s-1", `{}`)
		time.Sleep(progressWithin + 200*time.Millisecond)
		synctest.Wait()
		if got := store.saved(); !slices.Equal(got, []int{1}) {
			t.Fatalf("saved at %v", got)
		}
		close(p.open)
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		at(t, e, store, "s-1", 2, 0)
		close(slow)
		synctest.Wait()
		at(t, e, store, "s-1", 2, 2)
		stop(t, e)
	})
}
