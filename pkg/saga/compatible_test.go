package saga_test

import (
	"strings"
	"testing"

	"example.com/billing/pkg/saga"
	"example.com/billing/pkg/saga/sagatest"
)

// What would leave stored sagas without a way on is found.
func TestReleasedVersionsAreHeldTo(t *testing.T) {
	dir := t.TempDir()
	if err := sagatest.Released(dir, false, transfer()); err == nil || !strings.Contains(err.Error(), "-update") {
		t.Errorf("a version without a file: %v", err)
	}
	if err := sagatest.Released(dir, true, transfer(), order()); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		change func(*saga.Definition)
		wrong  string
	}{
		{"nothing", func(*saga.Definition) {}, ""},
		{"a deadline", func(d *saga.Definition) { d.Deadline = 1 }, ""},
		{"a step taken out", func(d *saga.Definition) { d.Steps = d.Steps[1:] }, "needs a new version"},
		{"a step more", func(d *saga.Definition) { d.Steps = append(d.Steps, saga.Step{Name: "x", Kind: saga.Retriable}) }, "needs a new version"},
		{"another compensation", func(d *saga.Definition) { d.Steps[0].Compensation = "x" }, "needs a new version"},
		{"a condition", func(d *saga.Definition) { d.Steps[3].When = &saga.Condition{Field: "x"} }, "needs a new version"},
		{"another way to tell", func(d *saga.Definition) { d.OnFailed = "x" }, "needs a new version"},
		{"the version gone", func(d *saga.Definition) { d.Version = 2 }, "transfer.1.json was released"},
	} {
		d := transfer()
		tc.change(&d)
		err := sagatest.Released(dir, false, d, order())
		if tc.wrong == "" && err != nil || tc.wrong != "" && (err == nil || !strings.Contains(err.Error(), tc.wrong)) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}
