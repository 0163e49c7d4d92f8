package saga_test

import (
	"flag"
	"testing"

	"example.com/billing/pkg/saga"
	"example.com/billing/pkg/saga/sagatest"
)

var deep = flag.Bool("explore-deep", false, "explore sagas with more going wrong; minutes")

// Everything that can go wrong within a budget, in every order, leads to a right end.
func TestExplore(t *testing.T) {
	money := []saga.Step{{Name: "debit", Kind: saga.Compensatable, Compensation: "debit_back"}, {Name: "credit", Kind: saga.Pivot}, {Name: "complete", Kind: saga.Retriable}}
	side := []saga.Step{
		{Name: "flight", Kind: saga.Compensatable, Compensation: "flight_back", Parallel: "book"},
		{Name: "hotel", Kind: saga.Compensatable, Compensation: "hotel_back", Parallel: "book"},
		{Name: "pay", Kind: saga.Pivot},
	}
	undoable := []saga.Step{{Name: "a", Kind: saga.Compensatable, Compensation: "a_back"}, {Name: "b", Kind: saga.Compensatable, Compensation: "b_back"}}
	forward := []saga.Step{{Name: "a", Kind: saga.Retriable, Parallel: "all"}, {Name: "b", Kind: saga.Retriable, Parallel: "all"}}
	small := sagatest.Budget{Crashes: 1, Takeovers: 1, Duplicate: 1, Deadlines: 1}
	for _, tc := range []struct {
		name  string
		steps []saga.Step
		dose  []sagatest.Budget
	}{
		{"money", money, []sagatest.Budget{small, {Takeovers: 1, Duplicate: 1, Deadlines: 1, Stuck: 1, Verbs: 1}, {Crashes: 1, Lost: 2, Stuck: 1, Verbs: 2}}},
		{"side by side", side, []sagatest.Budget{{Crashes: 1, Duplicate: 1, Deadlines: 1}, {Takeovers: 1, Duplicate: 1}}},
		{"only undoable", undoable, []sagatest.Budget{small, {Crashes: 1, Duplicate: 1, Deadlines: 1, Stuck: 1, Verbs: 1}}},
		{"only forward", forward, []sagatest.Budget{{Crashes: 1, Takeovers: 1, Duplicate: 1, Stuck: 1, Verbs: 1}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := saga.Definition{Name: tc.name, Version: 1, Trigger: "x", OnFailed: "tell_failed", OnCompensated: "tell_compensated", Steps: tc.steps}
			if *deep {
				tc.dose = append(tc.dose, sagatest.Budget{Crashes: 2, Takeovers: 1, Duplicate: 2, Deadlines: 1}, sagatest.Budget{Crashes: 1, Takeovers: 1, Duplicate: 1, Deadlines: 1, Stuck: 1, Verbs: 1})
			}
			for _, b := range tc.dose {
				t.Logf("%+v: %+v", b, sagatest.Explore(t, d, b))
			}
		})
	}
}
