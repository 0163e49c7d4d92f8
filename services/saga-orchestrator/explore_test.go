package orchestrator

import (
	"flag"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/saga"
	"example.com/billing/pkg/saga/sagatest"
)

var deep = flag.Bool("explore-deep", false, "explore the sagas with more going wrong at once; minutes")

// Every interleaving of refusals, crashes, a lost lease, late and repeated calls, lost answers, deadlines and a person stepping
// in, within the budgets, of every built-in saga: no bad state, and from each state a way to an end.
func TestExploreAllSagas(t *testing.T) {
	doses := []sagatest.Budget{
		{Crashes: 1, Takeovers: 1, Duplicate: 1, Deadlines: 1},
		{Crashes: 1, Lost: 1, Stuck: 1, Verbs: 1},
	}
	if *deep {
		doses = append(doses, sagatest.Budget{Crashes: 2, Takeovers: 1, Duplicate: 2, Deadlines: 1},
			sagatest.Budget{Crashes: 1, Takeovers: 1, Duplicate: 1, Lost: 1, Deadlines: 1, Stuck: 1},
			sagatest.Budget{Crashes: 1, Takeovers: 1, Duplicate: 1, Deadlines: 1, Stuck: 1, Verbs: 1})
	}
	for _, d := range Definitions() {
		t.Run(d.Name, func(t *testing.T) {
			t.Parallel()
			for _, b := range doses {
				t.Logf("within %+v: %+v", b, sagatest.Explore(t, d, b))
			}
		})
	}
}

// A version that was released goes on as it did: sagas of it may be stored anywhere.
func TestReleasedSagasCanRun(t *testing.T) {
	sagatest.Compatible(t, filepath.Join("testdata", "sagas"), flag.Lookup("update").Value.String() == "true", Definitions()...)
}

// Our own sagas on the real engine, against services with the contract of theirs: a crash at every edge, every call repeated, a
// person stopping them everywhere. What is left in the end is the whole amount on one side.
func TestSagasSurviveCrashes(t *testing.T) {
	for _, d := range Definitions() {
		t.Run(d.Name, func(t *testing.T) {
			t.Parallel()
			sagatest.Crash(t, sagatest.Subject{Definition: d, Input: []byte(`{"amount":"50.00"}`), New: func() sagatest.Services { return ledger(d) }})
		})
	}
}

// ledger are services of a definition: a debit takes 50 from an account that has 50, its rollback brings it back, a credit gives it
// to the other, and a transaction has one end.
func ledger(d saga.Definition) sagatest.Services {
	service := sagatest.NewService()
	source, destination, ends := 50, 0, []string{}
	s := sagatest.Services{Actions: map[string]saga.Action{}, Registers: map[string]saga.Registers{}}
	end := func(name string) saga.Action {
		return service.Do(func(saga.Call) (map[string]any, error) { ends = append(ends, name); return nil, nil })
	}
	for _, step := range d.Steps {
		switch {
		case step.Compensation != "":
			s.Actions[step.Name] = service.Do(func(saga.Call) (map[string]any, error) {
				if source < 50 {
					return nil, es.Refuse("INSUFFICIENT_FUNDS", "There is less.")
				}
				source -= 50
				return map[string]any{"sourceNewBalance": source}, nil
			})
			s.Actions[step.Compensation] = service.Undo(func(saga.Call) (map[string]any, error) { source += 50; return nil, nil })
			s.Registers[step.Compensation] = service
		case strings.HasPrefix(step.Name, "credit_"):
			s.Actions[step.Name] = service.Do(func(saga.Call) (map[string]any, error) { destination += 50; return nil, nil })
		case step.Name == CompleteTransaction:
			s.Actions[step.Name] = end("completed")
			continue
		default: // holds move nothing
			s.Actions[step.Name] = service.Do(func(saga.Call) (map[string]any, error) { return nil, nil })
		}
		s.Registers[step.Name] = service
	}
	s.Actions[d.OnFailed], s.Actions[d.OnCompensated] = end("failed"), end("compensated")
	s.Check = func(st saga.State) error {
		moves := d.Steps[0].Compensation != ""
		want := [2]int{50, 0}
		if moves && st.Status == saga.Completed {
			want = [2]int{0, 50}
		}
		if got := [2]int{source, destination}; got != want || len(ends) != 1 || ends[0] != string(st.Status) {
			return fmt.Errorf("%s: balances %v, want %v; the transaction was told %v", st.Status, got, want, ends)
		}
		return nil
	}
	return s
}
