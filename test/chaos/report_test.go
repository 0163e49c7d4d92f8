package main

import (
	"slices"
	"testing"

	"example.com/billing/test/chaos/auditor"
)

// What is not printed is counted: both what the auditor did not keep, and what is too much for a screen.
func TestViolations(t *testing.T) {
	kept := func(n int) []auditor.Violation { return slices.Repeat([]auditor.Violation{{Kind: "money"}}, n) }
	for _, tc := range []struct {
		wrong, kept, count int // of the auditor's
		lines              int
		last               string
	}{
		{1, 0, 0, 1, "stuck"},
		{1, 20, 20, 21, "money: : "},
		{1, 20, 25, 22, "… and 5 more"},
		{1, 60, 60, 51, "… and 11 more"},
		{1, 60, 90, 51, "… and 41 more"},
	} {
		r := &result{wrong: slices.Repeat([]string{"stuck"}, tc.wrong), report: &auditor.Report{Violations: kept(tc.kept), Count: tc.count}}
		if got := r.violations(); len(got) != tc.lines || got[len(got)-1] != tc.last {
			t.Errorf("%+v: %d lines, the last is %q", tc, len(got), got[len(got)-1])
		}
	}
}
