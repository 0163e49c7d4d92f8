package api

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"example.com/billing/pkg/rpc"
	"example.com/billing/pkg/saga"
	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
)

// reason is the reason of an error, with the fields that it names.
func reason(err error) string {
	e := rpc.ErrorOf(err)
	if e == nil {
		return ""
	}
	out := e.Reason
	for _, v := range e.Violations {
		out += " " + v.Field + ":" + v.Rule
	}
	return out
}

// The verbs that the end-to-end tests cannot bring about: money in transit, a saga that is being worked on, one on its way.
func TestVerbsAreRefused(t *testing.T) {
	h := newHarness(t)
	credited := make(chan struct{})
	on := h.instance(t.Context(), func(action string) saga.Answer {
		if action == "credit_destination" {
			<-credited
			return saga.Answer{Outcome: saga.Stuck, Reason: "LOST", Message: "Nobody knows."}
		}
		return saga.Answer{Outcome: saga.Done}
	})
	id := h.transactions.accept()
	resolve := func(id, why string) error {
		_, err := on.client.ResolveSaga(t.Context(), &sagav1.ResolveSagaRequest{SagaId: id, Reason: why})
		return err
	}
	if got := reason(resolve(id, "x")); got != "SAGA_NOT_WAITING" {
		t.Errorf("a saga that is on its way: %s", got)
	}
	h.start(on, id)
	if got := reason(resolve(id, "x")); got != "SAGA_NOT_WAITING" {
		t.Errorf("a saga that is being worked on: %s", got)
	}
	close(credited)
	h.eventually(id, saga.NeedsAttention)
	h.says = map[string]saga.Register{"debit_source": saga.RegisterDone}
	if got := reason(resolve(id, "x")); got != "SAGA_MONEY_IN_TRANSIT" {
		t.Errorf("debited and not credited: %s", got)
	}
	for why, want := range map[string]string{"": "INVALID_ARGUMENT reason:required", strings.Repeat("ü", 257): "INVALID_ARGUMENT reason:max_length:256"} {
		if got := reason(resolve(id, why)); got != want {
			t.Errorf("for %d characters: %s", len(why), got)
		}
	}
	if got := reason(resolve("odd", "x")); got != "INVALID_ARGUMENT sagaId:uuid" {
		t.Errorf("an odd id: %s", got)
	}
	_, err := on.client.CountSagas(t.Context(), &sagav1.CountSagasRequest{Status: "odd", Type: "odd", AccountId: "odd", CreatedFrom: &timestamppb.Timestamp{Nanos: -1}})
	if got := reason(err); !strings.HasPrefix(got, "INVALID_ARGUMENT") || strings.Count(got, ":") < 4 {
		t.Errorf("a count by nothing that there is: %s", got)
	}
}

// eventually waits until a saga is stored in a status.
func (h *harness) eventually(id string, status saga.Status) {
	h.t.Helper()
	tick, late := time.NewTicker(5*time.Millisecond), time.After(20*time.Second)
	defer tick.Stop()
	for {
		s, err := h.store.Get(context.Background(), id)
		if err == nil && s.Status == status {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			h.t.Fatalf("saga %s is %s (%v), not %s", id, s.Status, err, status)
		}
	}
}
