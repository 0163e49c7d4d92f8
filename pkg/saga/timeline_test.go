package saga_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"example.com/billing/pkg/saga"
)

// told is a timeline as people read it.
func told(entries []saga.Entry) []string {
	var out []string
	for _, e := range entries {
		s := string(e.Type)
		if e.Action != "" {
			s += " " + e.Action
		}
		if e.Reason != "" {
			s += fmt.Sprintf(" %s %q", e.Reason, e.Message)
		}
		out = append(out, s)
	}
	return out
}

// What a timeline says of each kind of path.
func TestTimeline(t *testing.T) {
	for _, tc := range []struct {
		name    string
		answers map[string]saga.Answer
		want    []string
	}{
		{"all done", nil, []string{
			"started", "step_completed reserve", "step_completed debit", "step_completed credit", "step_completed complete", "completed",
		}},
		{"refused at the first step", map[string]saga.Answer{"reserve": refusal()}, []string{"started", `refused reserve NO "It may not be."`, "failed"}},
		{"refused at the pivot", map[string]saga.Answer{"credit": refusal()}, []string{
			"started", "step_completed reserve", "step_completed debit", `refused credit NO "It may not be."`,
			"compensation_completed debit_back", "compensation_completed release", "compensated",
		}},
		{"stuck while undoing", map[string]saga.Answer{"debit": refusal(), "release": stuck()}, []string{
			"started", "step_completed reserve", `refused debit NO "It may not be."`, `needs_attention release LOST "Nobody knows."`,
		}},
		{"refused after the pivot", map[string]saga.Answer{"complete": refusal()}, []string{
			"started", "step_completed reserve", "step_completed debit", "step_completed credit", `needs_attention complete NO "It may not be."`,
		}},
		{"the end cannot be told", map[string]saga.Answer{"reserve": refusal(), "tell_failed": stuck()}, []string{
			"started", `refused reserve NO "It may not be."`, `needs_attention tell_failed LOST "Nobody knows."`,
		}},
		{"an answer that says nothing", map[string]saga.Answer{"debit": {}}, []string{
			"started", "step_completed reserve", `needs_attention debit INTERNAL ""`,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _ := play(transfer(), tc.answers)
			if got := told(s.History()); !slices.Equal(got, tc.want) {
				t.Errorf("\n got %q\nwant %q", got, tc.want)
			}
		})
	}
}

// Whatever the answers: an entry is never changed, only added to; and a state that was stored without a timeline tells the
// same, so that a saga goes on with it as if it always had had one.
func TestTimelinesOnlyGrow(t *testing.T) {
	d := transfer()
	bare := func(t *rapid.T, s saga.State) saga.State {
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var raw map[string]any
		if err := json.Unmarshal(b, &raw); err != nil {
			t.Fatal(err)
		}
		delete(raw, "timeline")
		if b, err = json.Marshal(raw); err != nil {
			t.Fatal(err)
		}
		var out saga.State
		if err := json.Unmarshal(b, &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	what := func(entries []saga.Entry) (out []string) { // type and action
		for _, e := range entries {
			out = append(out, string(e.Type)+" "+e.Action)
		}
		return out
	}
	rapid.Check(t, func(t *rapid.T) {
		s := saga.State{SagaID: "s", SagaType: d.Name, Definition: d.Version, Status: saga.InProgress, Steps: d.StepNames(), CreatedAt: now}
		for all := saga.Next(d, s); len(all) > 0; all = saga.Next(d, s) {
			next, before := all[0], s.History()
			s = saga.Apply(d, s, next, rapid.SampledFrom([]saga.Answer{done(), done(), done(), refusal(), stuck()}).Draw(t, next.Action), now)
			after := s.History()
			if len(after) <= len(before) && next.Op != saga.OpReport || !slices.Equal(after[:len(before)], before) {
				t.Fatalf("%q became %q", told(before), told(after))
			}
			if old := bare(t, s); !slices.Equal(what(old.History()), what(after)) {
				t.Fatalf("without its timeline: %q, with it: %q", told(old.History()), told(after))
			}
			if rapid.Bool().Draw(t, "stored without a timeline") {
				s = bare(t, s)
			}
		}
		if last := s.History()[len(s.History())-1]; s.Status.Ended() && string(last.Type) != string(s.Status) {
			t.Fatalf("%s ends with %q", s.Status, told(s.History()))
		}
	})
}

// An entry's result is what its action answered.
func TestEntriesHaveResults(t *testing.T) {
	s, _ := play(transfer(), map[string]saga.Answer{
		"reserve":    {Outcome: saga.Done, Result: map[string]any{"left": "9.00"}},
		"credit":     refusal(),
		"debit_back": {Outcome: saga.Done, Result: map[string]any{"newBalance": "10.00"}},
	})
	var got []string
	for i := range s.History() {
		got = append(got, string(s.Result(i)))
	}
	if want := []string{"", `{"left":"9.00"}`, "", "", `{"newBalance":"10.00"}`, "", ""}; !slices.Equal(got, want) {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
}

// Every path's timeline is stored, as the engine went.
func TestTheTimelineIsStored(t *testing.T) {
	eachStore(t, func(t *testing.T, store saga.Store) {
		w := newWorld()
		w.decide = refuse("credit")
		e := newEngine(t, store, w, nil)
		tr := trigger()
		if n, err := e.Start(t.Context(), []saga.Trigger{tr}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		s := settled(t, store, tr.SagaID)
		want := []string{
			"started", "step_completed reserve", "step_completed debit", `refused credit NO "It may not be."`,
			"compensation_completed debit_back", "compensation_completed release", "compensated",
		}
		if got := told(s.Timeline); !slices.Equal(got, want) {
			t.Errorf("\n got %q\nwant %q", got, want)
		}
		if !s.Timeline[0].At.Equal(s.CreatedAt) || !slices.IsSortedFunc(s.Timeline[1:], func(a, b saga.Entry) int { return a.At.Compare(b.At) }) {
			t.Errorf("times %v", s.Timeline)
		}
	})
}
