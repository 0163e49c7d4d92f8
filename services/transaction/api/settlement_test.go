package api

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"example.com/billing/pkg/rpc"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/edge"
)

const (
	complete   = transactionv1.SettlementKind_SETTLEMENT_KIND_COMPLETE
	fail       = transactionv1.SettlementKind_SETTLEMENT_KIND_FAIL
	compensate = transactionv1.SettlementKind_SETTLEMENT_KIND_COMPENSATE
)

func TestSettle(t *testing.T) {
	for kind, want := range map[transactionv1.SettlementKind]string{complete: "completed", fail: "failed", compensate: "compensated"} {
		t.Run(want, func(t *testing.T) {
			h := newHarness(t)
			id := h.accepted("k-1").GetTransactionId()
			s := settlement(id, kind)
			s.ErrorReason, s.ErrorMessage = "INSUFFICIENT_FUNDS", "Not enough."
			upper := proto.Clone(s).(*transactionv1.Settlement)
			upper.TransactionId = strings.ToUpper(id)
			for i, r := range settle(t, h.Server, s, s, upper) {
				if r.GetStatus() != want || r.GetVersion() != 2 || r.GetErrorReason() != "" {
					t.Errorf("settlement %d: %v", i, r)
				}
			}
			other := settlement(id, complete)
			if other.Step = "another_step"; kind == complete {
				other.Kind = fail
			}
			if r := settle(t, h.Server, other)[0]; r.GetStatus() != "" || r.GetErrorReason() != "TRANSACTION_ENDED" {
				t.Errorf("another end: %v", r)
			}
			other.Step = s.Step
			if r := settle(t, h.Server, other)[0]; r.GetStatus() != want {
				t.Errorf("another end with the first one's key: %v", r)
			}
			events := h.all()
			if len(events) != 2 || events[1].Metadata["sagaId"] != id || events[1].Metadata["causedBy"] != "event-1" || events[1].CorrelationID != "corr-1" {
				t.Errorf("events %+v", events)
			}
			got, err := h.GetTransaction(t.Context(), &transactionv1.GetTransactionRequest{TransactionId: id})
			if err != nil || got.GetTransaction().GetStatus() != want || got.GetTransaction().GetErrorReason() != "INSUFFICIENT_FUNDS" {
				t.Errorf("read %v, %v", got, err)
			}
		})
	}
}

// Each settlement of a batch stands alone.
func TestSettleBatchWithMalformedSettlements(t *testing.T) {
	h := newHarness(t)
	id := h.accepted("k-1").GetTransactionId()
	noStep := settlement(id, complete)
	noStep.Step = ""
	results := settle(t, h.Server, settlement("x", complete), noStep, settlement(id, 0), settlement(none, complete), settlement(id, complete))
	for i, want := range []string{"INVALID_ARGUMENT", "INVALID_ARGUMENT", "INVALID_ARGUMENT", "TRANSACTION_NOT_FOUND", ""} {
		if r := results[i]; r.GetErrorReason() != want || (r.GetStatus() == "completed") != (want == "") {
			t.Errorf("settlement %d: %v", i, r)
		}
	}
	if n := len(h.all()); n != 2 {
		t.Errorf("%d events", n)
	}
}

func TestSettleIsBounded(t *testing.T) {
	h := newHarness(t)
	for _, n := range []int{0, edge.BatchMax + 1} {
		_, err := h.Settle(t.Context(), &transactionv1.SettleRequest{Settlements: make([]*transactionv1.Settlement, n)})
		if rpc.ErrorOf(err).Reason != "INVALID_ARGUMENT" {
			t.Errorf("%d settlements: %v", n, err)
		}
	}
}
