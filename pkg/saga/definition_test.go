package saga_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/billing/pkg/saga"
)

// transfer is the saga of these tests.
func transfer() saga.Definition {
	return saga.Definition{
		Name: "transfer", Version: 1, Trigger: "TransferRequested",
		Steps: []saga.Step{
			{Name: "reserve", Kind: saga.Compensatable, Compensation: "release"},
			{Name: "debit", Kind: saga.Compensatable, Compensation: "debit_back"},
			{Name: "credit", Kind: saga.Pivot},
			{Name: "complete", Kind: saga.Retriable},
		},
		OnFailed: "tell_failed", OnCompensated: "tell_compensated",
	}
}

func TestValidate(t *testing.T) {
	steps := func(s ...saga.Step) func(*saga.Definition) { return func(d *saga.Definition) { d.Steps = s } }
	undo := saga.Step{Name: "a", Kind: saga.Compensatable, Compensation: "a_back"}
	undoB := saga.Step{Name: "b", Kind: saga.Compensatable, Compensation: "b_back"}
	pivot, retry := saga.Step{Name: "p", Kind: saga.Pivot}, saga.Step{Name: "r", Kind: saga.Retriable}
	with := func(s saga.Step, word string) saga.Step { s.Parallel = word; return s }
	for _, tc := range []struct {
		name   string
		change func(*saga.Definition)
		wrong  []string // what the error says; none = valid
	}{
		{"the transfer", func(*saga.Definition) {}, nil},
		{"without a pivot", steps(undo, undoB), nil},
		{"compensatable and retriable without a pivot", steps(undo, retry), []string{"step r: between compensatable and retriable steps stands a pivot"}},
		{"only a pivot", steps(pivot), nil},
		{"only retriable", steps(retry), nil},
		{"no name", func(d *saga.Definition) { d.Name = "" }, []string{"required"}},
		{"version 0", func(d *saga.Definition) { d.Version = 0 }, []string{"required"}},
		{"no trigger", func(d *saga.Definition) { d.Trigger = "" }, []string{"required"}},
		{"no steps", steps(), []string{"required"}},
		{"no OnFailed", func(d *saga.Definition) { d.OnFailed = "" }, []string{"OnFailed"}},
		{"no OnCompensated", func(d *saga.Definition) { d.OnCompensated = "" }, []string{"OnCompensated"}},
		{"a step without a name", steps(saga.Step{Kind: saga.Pivot}), []string{"step 1"}},
		{"a name twice", steps(undo, undo), []string{`step 2: the name "a"`}},
		{"an unknown kind", steps(saga.Step{Name: "a", Kind: "maybe"}), []string{`unknown kind "maybe"`}},
		{"no kind", steps(saga.Step{Name: "a"}), []string{"unknown kind"}},
		{"compensatable without a compensation", steps(saga.Step{Name: "a", Kind: saga.Compensatable}), []string{"step a: a compensatable step has a compensation"}},
		{"compensatable after the pivot", steps(pivot, undo), []string{"step a: a compensatable step stands before"}},
		{"compensatable after a retriable step", steps(retry, undo), []string{"step a"}},
		{"two pivots", steps(pivot, saga.Step{Name: "q", Kind: saga.Pivot}), []string{"step q: there is one pivot"}},
		{"a pivot after a retriable step", steps(retry, pivot), []string{"step p"}},
		{"a pivot with a compensation", steps(saga.Step{Name: "p", Kind: saga.Pivot, Compensation: "p_back"}), []string{"only a compensatable step"}},
		{"at the same time", steps(with(undo, "x"), with(undoB, "x"), pivot), nil},
		{"at the same time, apart", steps(with(undo, "x"), undoB, with(saga.Step{Name: "c", Kind: saga.Compensatable, Compensation: "c_back"}, "x"), pivot), []string{`step c: steps of "x" stand side by side`}},
		{"at the same time, of two kinds", steps(with(undo, "x"), with(pivot, "x")), []string{"step p: the pivot stands alone", `steps of "x" have one kind`}},
		{"a compensation of the same name", steps(undo, saga.Step{Name: "a_back", Kind: saga.Pivot}), []string{`the name "a_back"`}},
		{"only conditional steps", steps(saga.Step{Name: "r", Kind: saga.Retriable, When: &saga.Condition{Field: "f"}}), []string{"every step has a condition"}},
		{"a condition on nothing", steps(saga.Step{Name: "r", Kind: saga.Retriable, When: &saga.Condition{}}, saga.Step{Name: "q", Kind: saga.Retriable}), []string{"step r: its condition names no field"}},
		{"a conditional pivot", steps(undo, saga.Step{Name: "p", Kind: saga.Pivot, When: &saga.Condition{Field: "f"}}), []string{"step p: the pivot has no condition"}},
		{"a deadline that ends nothing", func(d *saga.Definition) { d.Steps, d.Deadline = []saga.Step{retry}, time.Hour }, []string{"the deadline 1h0m0s ends nothing"}},
		{"a deadline of a retriable step", steps(pivot, saga.Step{Name: "r", Kind: saga.Retriable, Deadline: time.Hour}), []string{"step r: a retriable step has no deadline"}},
		{"times below zero", func(d *saga.Definition) { d.Deadline, d.Steps[0].Delay = -1, -1 }, []string{"the deadline -1ns is below zero", "step reserve: a delay or deadline is below zero"}},
		{"everything at once", func(d *saga.Definition) { *d = saga.Definition{Steps: []saga.Step{{}, {}}} }, []string{"required", "OnFailed", "step 1", "step 2", "unknown kind"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := transfer()
			tc.change(&d)
			err := d.Validate()
			if (err == nil) != (tc.wrong == nil) {
				t.Fatalf("got %v", err)
			}
			for _, w := range tc.wrong {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q is not in %v", w, err)
				}
			}
		})
	}
}

func TestRegistry(t *testing.T) {
	first, second, topup := transfer(), transfer(), transfer()
	second.Version, second.Steps = 2, second.Steps[1:]
	topup.Name, topup.Trigger = "topup", "TopupRequested"
	r, err := saga.NewRegistry(second, topup, first)
	if err != nil {
		t.Fatal(err)
	}
	if d, ok := r.Find("transfer", 1); !ok || len(d.Steps) != 4 {
		t.Errorf("version 1: %+v, %v", d, ok)
	}
	if _, ok := r.Find("transfer", 3); ok {
		t.Error("found a version that is not there")
	}
	if d, ok := r.ByTrigger("TransferRequested"); !ok || d.Version != 2 {
		t.Errorf("the newest by its trigger: %+v, %v", d, ok)
	}
	if _, ok := r.ByTrigger("Nothing"); ok {
		t.Error("found a trigger that is not there")
	}
	if got := r.Triggers(); !slices.Equal(got, []string{"TopupRequested", "TransferRequested"}) {
		t.Errorf("triggers %v", got)
	}
	if got := r.Types(); !slices.Equal(got, []string{"topup", "transfer"}) {
		t.Errorf("types %v", got)
	}
	if got := first.StepNames(); !slices.Equal(got, []string{"reserve", "debit", "credit", "complete"}) {
		t.Errorf("steps %v", got)
	}
	if _, err := saga.NewRegistry(first, first); err == nil || !strings.Contains(err.Error(), "transfer/1 is defined twice") {
		t.Errorf("twice: %v", err)
	}
	if _, err := saga.NewRegistry(saga.Definition{}); err == nil {
		t.Error("an invalid definition was taken")
	}
}

func TestADeadlineNeedsARegister(t *testing.T) {
	d := transfer()
	d.Deadline = time.Hour
	r, err := saga.NewRegistry(d)
	if err != nil {
		t.Fatal(err)
	}
	_, err = saga.NewEngine(saga.Config{Registry: r, Actions: newWorld().actions(), Store: saga.NewMemory()})
	if err == nil || !strings.Contains(err.Error(), `its pivot "credit" needs a register`) {
		t.Errorf("got %v", err)
	}
}
