package memory_test

import (
	"testing"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/estest"
	"example.com/billing/pkg/es/memory"
)

func TestStore(t *testing.T) {
	estest.TestStore(t, func(*testing.T) es.Store { return memory.New() })
}
