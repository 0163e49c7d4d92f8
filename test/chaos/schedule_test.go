package main

import (
	"reflect"
	"slices"
	"testing"
	"time"
)

// The same seed is the same schedule, another one another; every kind is there, in order and within the run.
func TestPlan(t *testing.T) {
	for _, duration := range []time.Duration{faultsLeast, time.Minute, 15 * time.Minute} {
		for seed := range uint64(50) {
			faults, err := plan(seed, duration)
			if err != nil {
				t.Fatal(err)
			}
			again, _ := plan(seed, duration)
			other, _ := plan(seed+1, duration)
			if !reflect.DeepEqual(faults, again) || reflect.DeepEqual(faults, other) {
				t.Fatalf("seed %d: the schedule is not its function", seed)
			}
			for _, k := range kindsOfFaults {
				if !slices.ContainsFunc(faults, func(f fault) bool { return f.kind == k.kind }) {
					t.Errorf("seed %d, %s: no %s", seed, duration, k.kind)
				}
			}
			for i, f := range faults {
				if len(f.targets) == 0 || f.lasts <= 0 || f.at < calm || f.at+f.lasts > duration || i > 0 && f.at < faults[i-1].at {
					t.Errorf("seed %d, %s: %s", seed, duration, f)
				}
			}
		}
	}
	if faults, _ := plan(1, 15*time.Minute); len(faults) < 60 {
		t.Errorf("%d faults in 15 minutes", len(faults))
	}
	if _, err := plan(1, faultsLeast-1); err == nil {
		t.Error("a schedule too short for every kind")
	}
}
