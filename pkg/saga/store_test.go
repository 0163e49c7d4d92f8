package saga_test

import (
	"testing"

	"example.com/billing/pkg/saga"
	"example.com/billing/pkg/saga/sagatest"
)

func TestMemory(t *testing.T) {
	sagatest.TestStateStore(t, func(*testing.T) saga.Store { return saga.NewMemory() })
}
