package saga_test

import (
	"strings"
	"testing"
	"time"

	"example.com/billing/pkg/saga"
)

// The subject's database lost its last moments and asks for a saga that has ended: it is told the end again, and only that.
func TestAnEndedSagaReportsAgain(t *testing.T) {
	eachStore(t, func(t *testing.T, store saga.Store) {
		for _, tc := range []struct {
			refuse, report string
			status         saga.Status
		}{
			{"", "complete", saga.Completed}, {"reserve", "tell_failed", saga.Failed}, {"credit", "tell_compensated", saga.Compensated},
		} {
			w := newWorld()
			w.decide = refuse(tc.refuse)
			e := newEngine(t, store, w, nil)
			asked := trigger()
			if n, err := e.Start(t.Context(), []saga.Trigger{asked}); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			if s := settled(t, store, asked.SagaID); s.Status != tc.status {
				t.Fatalf("the saga is %s, want %s", s.Status, tc.status)
			}
			before := w.asked(asked.SagaID)
			if n, err := e.Start(t.Context(), []saga.Trigger{asked}); n != 0 || err != nil {
				t.Fatal(n, err)
			}
			within(t, "the last report is sent again", func() bool { return e.Stats().ReportedAgain == 1 })
			for action, n := range w.asked(asked.SagaID) {
				want := before[action]
				if action == tc.report {
					want++
				}
				if n != want {
					t.Errorf("%s: %s was asked %d times, want %d", tc.status, action, n, want)
				}
			}
			for _, b := range w.bad {
				t.Error(b)
			}
		}
	})
}

// asked is how often each action of a saga was asked.
func (w *world) asked(id string) map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	asked := map[string]int{}
	for key, n := range w.calls {
		if action, of := strings.CutPrefix(key, id+"/"); of {
			asked[action] = n
		}
	}
	return asked
}

// within waits until something holds.
func within(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for late := time.Now().Add(20 * time.Second); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("not in time: %s", what)
		}
	}
}
