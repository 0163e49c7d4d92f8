package edge_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
	"example.com/billing/pkg/rpc"
	eventv1 "example.com/billing/proto/gen/go/billing/event/v1"
	"example.com/billing/services/edge"
)

// untilEnd is a watch that says when it runs.
func untilEnd(running chan<- struct{}) func(context.Context) error {
	return func(ctx context.Context) error {
		running <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
}

// As many watches as there are places run at once; one more is OVERLOADED until one of them ends.
func TestWatchesAreBounded(t *testing.T) {
	const most = 500
	w := edge.NewWatches(t.Context())
	ctx, cancel := context.WithCancel(t.Context())
	running, ended := make(chan struct{}), make(chan error)
	for range most {
		go func() { ended <- w.Serve(ctx, untilEnd(running)) }()
	}
	for range most {
		<-running
	}
	if e := rpc.ErrorOf(w.Serve(t.Context(), func(context.Context) error { return nil })); e == nil || e.Reason != "OVERLOADED" || e.RetryAfter == 0 {
		t.Errorf("one too many: %v", e)
	}
	cancel()
	for range most {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("a caller who left: %v", err)
		}
	}
	if err := w.Serve(t.Context(), func(context.Context) error { return nil }); err != nil {
		t.Errorf("once there is room: %v", err)
	}
}

// The end of the service ends the watches, and says to come back; a caller who leaves hears nothing of that.
func TestWatchesEndWithTheService(t *testing.T) {
	stop, cancel := context.WithCancel(t.Context())
	w := edge.NewWatches(stop)
	running, ended := make(chan struct{}), make(chan error)
	go func() { ended <- w.Serve(t.Context(), untilEnd(running)) }()
	<-running
	cancel()
	if e := rpc.ErrorOf(<-ended); e == nil || e.Reason != "UNAVAILABLE" || e.RetryAfter == 0 {
		t.Errorf("got %v", e)
	}
	errBroken := errors.New("broken")
	if err := w.Serve(t.Context(), func(ctx context.Context) error {
		<-ctx.Done() // a watch that comes when the service stops already
		return ctx.Err()
	}); rpc.ErrorOf(err).Reason != "UNAVAILABLE" {
		t.Errorf("after the stop: %v", err)
	}
	if err := edge.NewWatches(t.Context()).Serve(t.Context(), func(context.Context) error { return errBroken }); !errors.Is(err, errBroken) {
		t.Errorf("a watch that fails: %v", err)
	}
}

func TestWatchedEvents(t *testing.T) {
	w, store, s := edge.NewWatches(t.Context()), memory.New(), es.Stream{Type: "Account", ID: "a-1"}
	at := time.Date(2025, 12, 9, 12, 0, 0, 0, time.UTC)
	events := []es.Event{
		{
			ID: "e-1", Type: "BalanceChanged", Stream: s, Version: 1, At: at, CorrelationID: "corr-1", CausationID: "cmd-1", Data: []byte(`{"newBalance":"1.00"}`),
			Metadata: map[string]any{"actor": "ann", "tenantId": "default", "sagaId": "t-1", "step": "debit_source", "causedBy": "e-0"},
		},
		{ID: "e-2", Type: "Bare", Stream: s, Version: 2, At: at, CorrelationID: "corr-2", Data: []byte(`{}`)},
	}
	if err := store.Append(t.Context(), es.Append{Stream: s, Events: events}); err != nil {
		t.Fatal(err)
	}
	errEnough := errors.New("enough")
	var got []*eventv1.RecordedEvent
	err := w.Events(t.Context(), store, s, 0, func(e *eventv1.RecordedEvent) error {
		if e.GetRecordedAt().AsTime().Before(at) {
			t.Errorf("recorded at %v", e.GetRecordedAt().AsTime())
		}
		e.RecordedAt = nil
		if got = append(got, e); len(got) == 2 {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Fatal(err)
	}
	first, _ := edge.Recorded(events[0])
	if d := first.GetData().AsMap()["newBalance"]; d != "1.00" || first.GetOccurredAt().AsTime() != at {
		t.Errorf("data %v, at %v", d, first.GetOccurredAt())
	}
	first.RecordedAt = nil
	if !proto.Equal(got[0], first) || got[0].GetActor() != "ann" || got[0].GetTransactionId() != "t-1" || got[0].GetStep() != "debit_source" || got[0].GetCausedBy() != "e-0" ||
		got[0].GetVersion() != 1 || got[0].GetEventId() != "e-1" || got[0].GetCorrelationId() != "corr-1" || got[0].GetCausationId() != "cmd-1" {
		t.Errorf("the first is %v", got[0])
	}
	if b := got[1]; b.TransactionId != nil || b.Step != nil || b.CausedBy != nil || b.GetActor() != "" || b.GetVersion() != 2 {
		t.Errorf("the second is %v", b)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Events(ctx, store, s, 0, func(*eventv1.RecordedEvent) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who left: %v", err)
	}
	if _, err := edge.Recorded(es.Event{Data: []byte(`[]`)}); err == nil {
		t.Error("data that is no object was shown")
	}
}

// A watch that resumes behind more than the stream has is told that this is gone.
func TestAWatchIsNotAheadOfItsStream(t *testing.T) {
	s := es.Stream{Type: "Account", ID: "a"}
	for after, reason := range map[int64]string{0: "", 3: "", 4: "HISTORY_LOST"} {
		err := edge.NotAhead(s, after, 3)
		if e := rpc.ErrorOf(err); (e == nil) != (reason == "") || e != nil && e.Reason != reason {
			t.Errorf("behind version %d of 3: %v", after, err)
		}
	}
}
