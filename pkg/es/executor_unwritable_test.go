package es_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/uuid"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
)

// readOnly is a store whose server takes no writes.
type readOnly struct {
	es.Store
	calls int
}

type refusedWriteError struct{}

func (refusedWriteError) Error() string    { return "read-only" }
func (refusedWriteError) Unwritable() bool { return true }

func (s *readOnly) AppendBatch(_ context.Context, items [][]es.Append) []error {
	s.calls++
	errs := make([]error, len(items))
	for i := range errs {
		errs[i] = &es.UnavailableError{Op: "append", Err: refusedWriteError{}}
	}
	return errs
}

// A store that takes no writes stays so for longer than a request: the caller is told soon, not at its deadline.
func TestReadOnlyStoreIsReportedSoon(t *testing.T) {
	s := &readOnly{Store: memory.New()}
	_, err := newExecutor(t, s, es.ExecutorOptions{}).Execute(t.Context(), command(uuid.NewString(), "", put{1}))
	var unavailable *es.UnavailableError
	if !errors.As(err, &unavailable) || s.calls == 0 || s.calls > 8 {
		t.Errorf("after %d attempts: %v", s.calls, err)
	}
}
