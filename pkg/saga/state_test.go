package saga_test

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"example.com/billing/pkg/saga"
)

var now = time.Date(2025, 12, 9, 12, 0, 0, 123_456_789, time.UTC)

func done() saga.Answer { return saga.Answer{Outcome: saga.Done} }
func refusal() saga.Answer {
	return saga.Answer{Outcome: saga.Refused, Reason: "NO", Message: "It may not be."}
}
func stuck() saga.Answer {
	return saga.Answer{Outcome: saga.Stuck, Reason: "LOST", Message: "Nobody knows."}
}

// play carries a new saga as far as it goes: each action is done unless answers say otherwise.
func play(d saga.Definition, answers map[string]saga.Answer) (s saga.State, actions []string) {
	s = saga.State{SagaID: "s", SagaType: d.Name, Definition: d.Version, Status: saga.InProgress, Steps: d.StepNames()}
	for {
		all := saga.Next(d, s)
		if len(all) == 0 {
			return s, actions
		}
		next := all[0]
		actions = append(actions, next.Action)
		a, ok := answers[next.Action]
		if !ok {
			a = done()
		}
		s = saga.Apply(d, s, next, a, now)
	}
}

// Every path through the transfer.
func TestPaths(t *testing.T) {
	type answers = map[string]saga.Answer
	for _, tc := range []struct {
		name    string
		answers answers
		actions []string
		status  saga.Status
		step    int // steps done
		undone  int
		reason  string
		message string
	}{
		{"all done", nil, []string{"reserve", "debit", "credit", "complete"}, saga.Completed, 4, 0, "", ""},
		{"refused at the first step", answers{"reserve": refusal()}, []string{"reserve", "tell_failed"}, saga.Failed, 0, 0, "NO", "It may not be."},
		{"refused at the second step", answers{"debit": refusal()}, []string{"reserve", "debit", "release", "tell_compensated"}, saga.Compensated, 1, 1, "NO", "It may not be."},
		{"refused at the pivot", answers{"credit": refusal()}, []string{"reserve", "debit", "credit", "debit_back", "release", "tell_compensated"},
			saga.Compensated, 2, 2, "NO", "It may not be."},
		{"refused after the pivot", answers{"complete": refusal()}, []string{"reserve", "debit", "credit", "complete"}, saga.NeedsAttention, 3, 0, "NO", "complete: It may not be."},
		{"stuck at the first step", answers{"reserve": stuck()}, []string{"reserve"}, saga.NeedsAttention, 0, 0, "LOST", "reserve: Nobody knows."},
		{"stuck at the pivot", answers{"credit": stuck()}, []string{"reserve", "debit", "credit"}, saga.NeedsAttention, 2, 0, "LOST", "credit: Nobody knows."},
		{"stuck after the pivot", answers{"complete": stuck()}, []string{"reserve", "debit", "credit", "complete"}, saga.NeedsAttention, 3, 0, "LOST", "complete: Nobody knows."},
		{"a compensation is stuck", answers{"credit": refusal(), "debit_back": stuck()}, []string{"reserve", "debit", "credit", "debit_back"},
			saga.NeedsAttention, 2, 0, "LOST", "debit_back: Nobody knows."},
		{"a compensation is refused", answers{"credit": refusal(), "release": refusal()}, []string{"reserve", "debit", "credit", "debit_back", "release"},
			saga.NeedsAttention, 2, 1, "NO", "release: It may not be."},
		{"the failure cannot be told", answers{"reserve": refusal(), "tell_failed": stuck()}, []string{"reserve", "tell_failed"},
			saga.NeedsAttention, 0, 0, "LOST", "tell_failed: Nobody knows."},
		{"the compensation cannot be told", answers{"debit": refusal(), "tell_compensated": refusal()}, []string{"reserve", "debit", "release", "tell_compensated"},
			saga.NeedsAttention, 1, 1, "NO", "tell_compensated: It may not be."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, actions := play(transfer(), tc.answers)
			if !slices.Equal(actions, tc.actions) {
				t.Errorf("did %v, want %v", actions, tc.actions)
			}
			if s.Status != tc.status || s.CurrentStep != tc.step || s.Undone != tc.undone || s.ErrorReason != tc.reason || s.ErrorMessage != tc.message {
				t.Errorf("ended as %+v", s)
			}
			if s.Status.Ended() == (s.Status == saga.NeedsAttention) {
				t.Errorf("%s, ended: %v", s.Status, s.Status.Ended())
			}
			if !s.UpdatedAt.Equal(now.Truncate(time.Millisecond)) {
				t.Errorf("updated at %v", s.UpdatedAt)
			}
		})
	}
}

func TestResultsAreKept(t *testing.T) {
	s, _ := play(transfer(), map[string]saga.Answer{
		"reserve":    {Outcome: saga.Done, Result: map[string]any{"left": "9.00"}},
		"debit":      {Outcome: saga.Done, Result: map[string]any{}},
		"credit":     refusal(),
		"debit_back": {Outcome: saga.Done, Result: map[string]any{"newBalance": "10.00"}},
	})
	got, err := json.Marshal([]any{s.Results, s.Actions})
	want := `[{"debit":{},"reserve":{"left":"9.00"}},[{"action":"debit_back","result":{"newBalance":"10.00"},"timestamp":"2025-12-09T12:00:00.123Z"},` +
		`{"action":"release","timestamp":"2025-12-09T12:00:00.123Z"}]]`
	if err != nil || string(got) != want {
		t.Errorf("%v\n got %s\nwant %s", err, got, want)
	}
}

// A state is a value: what follows from it does not change it.
func TestApplyLeavesTheOldStateAlone(t *testing.T) {
	d := transfer()
	rapid.Check(t, func(t *rapid.T) {
		s := saga.State{Status: saga.InProgress, Steps: d.StepNames()}
		for range rapid.IntRange(1, 8).Draw(t, "actions") {
			all := saga.Next(d, s)
			if len(all) == 0 {
				return
			}
			next := all[0]
			before, _ := json.Marshal(s)
			for _, a := range []saga.Answer{stuck(), refusal(), {Outcome: saga.Done, Result: map[string]any{"other": 1}}} {
				saga.Apply(d, s, next, a, now)
			}
			if after, _ := json.Marshal(s); string(after) != string(before) {
				t.Fatalf("%s became %s", before, after)
			}
			a := saga.Answer{Outcome: saga.Done, Result: map[string]any{"n": 1}}
			if rapid.IntRange(0, 3).Draw(t, "refused") == 0 {
				a = refusal()
			}
			s = saga.Apply(d, s, next, a, now)
		}
	})
}

// Whatever the answers: after the pivot nothing is undone, and what was done before it is undone in reverse, or stays done.
func TestNothingIsUndoneAfterThePivot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := transfer()
		answers := map[string]saga.Answer{}
		for _, action := range []string{"reserve", "release", "debit", "debit_back", "credit", "complete", "tell_failed", "tell_compensated"} {
			answers[action] = rapid.SampledFrom([]saga.Answer{done(), done(), refusal(), stuck()}).Draw(t, action)
		}
		s, actions := play(d, answers)
		credited := slices.Contains(actions, "credit") && answers["credit"].Outcome == saga.Done
		undid := slices.Contains(actions, "release") || slices.Contains(actions, "debit_back")
		if credited && (undid || s.Status != saga.Completed && s.Status != saga.NeedsAttention) {
			t.Fatalf("credited, then %v: %s", actions, s.Status)
		}
		if s.Status == saga.Compensated && s.Undone != s.CurrentStep || s.Status == saga.Failed && s.CurrentStep != 0 {
			t.Fatalf("%s with %d done and %d undone", s.Status, s.CurrentStep, s.Undone)
		}
	})
}

func TestAnAnswerThatSaysNothingNeedsAPerson(t *testing.T) {
	for _, a := range []saga.Answer{{}, {Outcome: "perhaps"}} {
		s, actions := play(transfer(), map[string]saga.Answer{"credit": a})
		if s.Status != saga.NeedsAttention || slices.Contains(actions, "complete") || slices.Contains(actions, "debit_back") {
			t.Errorf("outcome %q: %s after %v", a.Outcome, s.Status, actions)
		}
	}
}

func TestARefusalWithoutAReasonIsARefusal(t *testing.T) {
	s, actions := play(transfer(), map[string]saga.Answer{"reserve": {Outcome: saga.Refused}})
	if s.Status != saga.Failed || s.ErrorReason == "" || !slices.Equal(actions, []string{"reserve", "tell_failed"}) {
		t.Errorf("%+v after %v", s, actions)
	}
}

// A saga that needs attention keeps what it was: whether it went forward or back, and why.
func TestAttentionForgetsNothing(t *testing.T) {
	d := saga.Definition{
		Name: "transfer", Version: 1, Trigger: "Requested", OnFailed: "tell_failed", OnCompensated: "tell_compensated",
		Steps: []saga.Step{{Name: "debit", Kind: saga.Compensatable, Compensation: "debit_back"}, {Name: "credit", Kind: saga.Pivot}},
	}
	s := saga.State{SagaID: "s", SagaType: "transfer", Definition: 1, Status: saga.InProgress, Steps: d.StepNames()}
	for _, a := range []saga.Answer{
		{Outcome: saga.Done},
		{Outcome: saga.Refused, Reason: "MAX_BALANCE", Message: "Too much."},
		{Outcome: saga.Stuck, Reason: "LOST", Message: "Nobody knows."},
	} {
		s = saga.Apply(d, s, saga.Next(d, s)[0], a, time.UnixMilli(1))
	}
	want := saga.Before{Action: "debit_back", Status: saga.Compensating, ErrorReason: "MAX_BALANCE", ErrorMessage: "Too much."}
	if s.Status != saga.NeedsAttention || s.ErrorReason != "LOST" || s.Before == nil || *s.Before != want {
		t.Errorf("%s %s, before %+v", s.Status, s.ErrorReason, s.Before)
	}
	if next := saga.Next(d, s); len(next) > 0 {
		t.Errorf("it goes on by itself: %+v", next)
	}
}
