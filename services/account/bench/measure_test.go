package main

import (
	"testing"

	"example.com/billing/pkg/pgtest"
)

// The measurement, small: what it checks holds.
func TestMeasure(t *testing.T) {
	if err := measure(t.Context(), pgtest.DSN(t), 1_000, 8_000, t.Logf); err != nil {
		t.Fatal(err)
	}
}
