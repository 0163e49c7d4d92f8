package api

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
)

// contractRequests are transactions that have been accepted and not ended, by their type; those that are reserved on a payment
// or hold have taken 40.00 of its 100.00.
var contractRequests = map[string]func(h *harness) *transactionv1.Transaction{
	"transfer": func(h *harness) *transactionv1.Transaction { return h.accepted("t-1") },
	"payment":  func(h *harness) *transactionv1.Transaction { return h.pay("p-1", "100.00") },
	"topup": func(h *harness) *transactionv1.Transaction {
		res, err := h.Topup(h.t.Context(), &transactionv1.TopupRequest{IdempotencyKey: "u-1", SourceAccountId: world, DestinationAccountId: alice, Amount: "50.00", Currency: "USD"})
		return must(h, res.GetTransaction(), err)
	},
	"withdrawal": func(h *harness) *transactionv1.Transaction {
		res, err := h.Withdraw(h.t.Context(), &transactionv1.WithdrawRequest{IdempotencyKey: "w-1", SourceAccountId: alice, DestinationAccountId: world, Amount: "50.00", Currency: "USD"})
		return must(h, res.GetTransaction(), err)
	},
	"hold": func(h *harness) *transactionv1.Transaction {
		res, err := h.PlaceHold(h.t.Context(), &transactionv1.PlaceHoldRequest{IdempotencyKey: "h-1", AccountId: alice, DestinationAccountId: proto.String(bob), Amount: "100.00", Currency: "USD"})
		if err != nil {
			h.t.Fatal(err)
		}
		return h.read(res.GetHold().GetHoldId())
	},
	"refund": func(h *harness) *transactionv1.Transaction {
		r, err := h.refund("r-1", h.paid("p-1", "100.00").GetTransactionId(), proto.String("40.00"))
		return must(h, r, err)
	},
	"capture": func(h *harness) *transactionv1.Transaction {
		res, err := h.CaptureHold(h.t.Context(), &transactionv1.CaptureHoldRequest{HoldId: h.active("h-1").GetHoldId(), IdempotencyKey: "c-1", Amount: proto.String("40.00")})
		return must(h, res.GetTransaction(), err)
	},
	"release": func(h *harness) *transactionv1.Transaction {
		if _, err := h.VoidHold(h.t.Context(), &transactionv1.VoidHoldRequest{HoldId: h.active("h-1").GetHoldId()}); err != nil {
			h.t.Fatal(err)
		}
		return h.release()
	},
}

func must(h *harness, tr *transactionv1.Transaction, err error) *transactionv1.Transaction {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
	return tr
}

// contractEnds are the settlements as the sagas send them: each is a step of its own.
var contractEnds = map[string]transactionv1.SettlementKind{"complete": complete, "fail": fail, "compensate": compensate}

// settlementOf is the request for an end, with what the transaction is reserved on.
func settlementOf(tr *transactionv1.Transaction, end string) *transactionv1.Settlement {
	x := settlement(tr.GetTransactionId(), contractEnds[end])
	x.Step = end + "_transaction"
	if x.ReservedOn = tr.GetPaymentId(); x.GetReservedOn() == "" {
		x.ReservedOn = tr.GetHoldId()
	}
	return x
}

// reservedOn says what the payment or hold that a transaction is reserved on has left.
func (h *harness) reservedOn(tr *transactionv1.Transaction) string {
	h.t.Helper()
	if p := tr.GetPaymentId(); p != "" {
		on := h.read(p)
		return fmt.Sprintf("refunding %s, refunded %s", on.GetRefundingAmount(), on.GetRefundedAmount())
	}
	if tr.GetHoldId() == "" || tr.GetType() == "hold" {
		return ""
	}
	on := h.hold(tr.GetHoldId())
	return fmt.Sprintf("%s, capturing %s, captured %s", on.GetStatus(), on.GetCapturingAmount(), on.GetCapturedAmount())
}

// The first end of a transaction is final, for it and for what it is reserved on: repeats get the same answer and change
// nothing, another end gets a refusal and changes nothing, in one request or in several.
func TestTheFirstEndIsFinal(t *testing.T) {
	status := map[string]string{"complete": "completed", "fail": "failed", "compensate": "compensated"}
	reserved := map[string]map[string]string{
		"refund": {
			"complete": "refunding 0.00, refunded 40.00", "fail": "refunding 0.00, refunded 0.00", "compensate": "refunding 0.00, refunded 0.00",
		},
		"capture": {
			"complete": "active, capturing 0.00, captured 40.00", "fail": "active, capturing 0.00, captured 0.00",
			"compensate": "active, capturing 0.00, captured 0.00",
		},
		"release": {"complete": "voided, capturing 0.00, captured 0.00"},
	}
	never := map[string]string{"hold": "compensate", "release": "fail compensate"} // the ends that a type does not have
	for name, request := range contractRequests {
		for first := range contractEnds {
			if strings.Contains(never[name], first) {
				continue
			}
			for then := range contractEnds {
				for _, together := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s: %s, then %s, together %t", name, first, then, together), func(t *testing.T) {
						h := newHarness(t)
						tr := request(h)
						before := len(h.all())
						asked := []*transactionv1.Settlement{settlementOf(tr, first), settlementOf(tr, then), settlementOf(tr, first), settlementOf(tr, then)}
						var got []*transactionv1.SettlementResult
						if together {
							got = settle(t, h.Server, asked...)
						} else {
							for _, x := range asked {
								got = append(got, settle(t, h.Server, x)...)
							}
						}
						for i, r := range got {
							want, reason := status[first], ""
							if i%2 == 1 && then != first {
								want, reason = "", "TRANSACTION_ENDED"
							}
							if r.GetStatus() != want || r.GetErrorReason() != reason {
								t.Errorf("answer %d: %v", i+1, r)
							}
						}
						events := 1
						if reserved[name] != nil {
							events = 2
						}
						if n := len(h.all()) - before; n != events || h.read(tr.GetTransactionId()).GetStatus() != status[first] || h.reservedOn(tr) != reserved[name][first] {
							t.Errorf("%d events; the transaction is %s; reserved on: %s", n, h.read(tr.GetTransactionId()).GetStatus(), h.reservedOn(tr))
						}
					})
				}
			}
		}
	}
}

// An end that a type does not have needs a person, and leaves the way to the one that it has.
func TestEndsThatATypeDoesNotHave(t *testing.T) {
	for name, ends := range map[string][]string{"hold": {"compensate"}, "release": {"fail", "compensate"}} {
		for _, end := range ends {
			h := newHarness(t)
			tr := contractRequests[name](h)
			for _, step := range []struct{ end, status, reason string }{{end, "", "INTERNAL"}, {"complete", "completed", ""}, {end, "", "TRANSACTION_ENDED"}} {
				if r := settle(t, h.Server, settlementOf(tr, step.end))[0]; r.GetStatus() != step.status || r.GetErrorReason() != step.reason {
					t.Errorf("%s, %s after %s: %v", name, step.end, end, r)
				}
			}
		}
	}
}

// A settlement that comes before its transaction, or without it, leaves nothing that could end it later.
func TestSettlementBeforeItsTransaction(t *testing.T) {
	for end := range contractEnds {
		h := newHarness(t)
		twin := newHarness(t) // derives the same id: it is known before it is there
		id := twin.accepted("t-1").GetTransactionId()
		early := settlementOf(&transactionv1.Transaction{TransactionId: id}, end)
		for range 2 {
			if r := settle(t, h.Server, early)[0]; r.GetErrorReason() != "TRANSACTION_NOT_FOUND" {
				t.Errorf("%s: %v", end, r)
			}
		}
		if tr := h.accepted("t-1"); tr.GetTransactionId() != id || tr.GetStatus() != "pending" || len(h.all()) != 1 {
			t.Errorf("%s came before; the transaction is %v", end, tr)
		}
		if r := settle(t, h.Server, settlementOf(&transactionv1.Transaction{TransactionId: id}, "complete"))[0]; r.GetStatus() != "completed" {
			t.Errorf("%s came before; then %v", end, r)
		}
	}
}
