package orchestrator

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/saga"
)

const sagaID = "33333333-3333-4333-8333-333333333333"

func TestDefinitions(t *testing.T) {
	registry, err := saga.NewRegistry(Definitions()...)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(registry.Types(), " "); got != "hold payment refund release topup transfer withdrawal" {
		t.Errorf("types %s", got)
	}
	if got := strings.Join(registry.Triggers(), " "); got != "HoldRequested PaymentRequested RefundRequested ReleaseRequested TopupRequested TransferRequested WithdrawalRequested" {
		t.Errorf("triggers %s", got)
	}
	money := func(debit, rollback, credit string) []saga.Step {
		return []saga.Step{
			{Name: debit, Kind: saga.Compensatable, Compensation: rollback}, {Name: credit, Kind: saga.Pivot}, {Name: "complete_transaction", Kind: saga.Retriable},
		}
	}
	transfer := money("debit_source", "credit_source_rollback", "credit_destination")
	steps := map[string][]saga.Step{
		"transfer": transfer, "topup": transfer, "withdrawal": transfer,
		"payment": money("debit_customer", "credit_customer_rollback", "credit_merchant"),
		"refund":  money("debit_merchant", "credit_merchant_rollback", "credit_customer"),
		"hold":    {{Name: "place_hold", Kind: saga.Pivot}, {Name: "complete_transaction", Kind: saga.Retriable}},
		"release": {{Name: "release_hold", Kind: saga.Retriable}, {Name: "complete_transaction", Kind: saga.Retriable}},
	}
	for _, d := range Definitions() {
		if err := d.Validate(); err != nil {
			t.Error(err)
		}
		if !slices.Equal(d.Steps, steps[d.Name]) || d.OnFailed != "fail_transaction" || d.OnCompensated != "compensate_transaction" {
			t.Errorf("%s is %+v", d.Name, d)
		}
		if found, ok := registry.ByTrigger(strings.ToUpper(d.Name[:1]) + d.Name[1:] + "Requested"); !ok || found.Name != d.Name {
			t.Errorf("%s is triggered by %s", d.Name, d.Trigger)
		}
	}
}

func TestReadInput(t *testing.T) {
	in, err := ReadInput(json.RawMessage(`{"sourceAccountId":"a","destinationAccountId":"b","amount":"50.00","currency":"USD","reference":"rent"}`))
	if err != nil || in != (Input{SourceID: "a", DestinationID: "b", Amount: "50.00", Currency: "USD"}) {
		t.Errorf("got %+v, %v", in, err)
	}
	if _, err := ReadInput(json.RawMessage(`[]`)); err == nil {
		t.Error("an array is no input")
	}
}

// ended is a transfer that ended at this status.
func ended(status saga.Status) saga.State {
	s := saga.State{
		SagaID: sagaID, SagaType: "transfer", Definition: 1, Status: status, Steps: transfer().StepNames(), CorrelationID: "corr-1",
		CausedBy: "5e0f2b64-0d7c-4a34-8a33-0c6f3d1f9a77", Metadata: map[string]any{"tenantId": "default", "actor": "ann"}, Revision: 4,
		CreatedAt: time.Date(2025, 12, 9, 12, 0, 0, 0, time.UTC), UpdatedAt: time.Date(2025, 12, 9, 12, 0, 1, 123e6, time.UTC),
	}
	debited := json.RawMessage(`{"sourceNewBalance":"50.00"}`)
	switch status {
	case saga.Completed:
		s.CurrentStep = 3
		s.Results = map[string]json.RawMessage{DebitSource: debited, CreditDestination: json.RawMessage(`{"destinationNewBalance":"150.00"}`)}
	case saga.Failed:
		s.ErrorReason, s.ErrorMessage = "INSUFFICIENT_FUNDS", "The account holds 0.00 USD, less than 50.00."
	case saga.Compensated:
		s.CurrentStep, s.Undone = 1, 1
		s.Results = map[string]json.RawMessage{DebitSource: debited}
		s.ErrorReason, s.ErrorMessage = "ACCOUNT_CLOSED", "The account is closed."
		s.Actions = []saga.Compensation{{
			Action: CreditSourceRollback, Result: json.RawMessage(`{"sourceNewBalance":"100.00"}`), Timestamp: s.UpdatedAt.In(time.FixedZone("", 7200)),
		}}
	}
	return s
}

func TestEndedEvent(t *testing.T) {
	stream := es.Stream{Type: "Saga", ID: sagaID}
	for status, want := range map[saga.Status]string{
		saga.Completed: "SagaCompleted", saga.Failed: "SagaFailed", saga.Compensated: "SagaCompensated",
	} {
		s := ended(status)
		e, err := EndedEvent(s)
		if err != nil {
			t.Fatal(err)
		}
		if e.Type != want || e.Stream != stream || e.Version != 1 || !e.At.Equal(s.UpdatedAt) || e.CorrelationID != "corr-1" || e.CausationID != s.CausedBy {
			t.Errorf("%s: %+v", status, e)
		}
		s.Revision, s.UpdatedAt = 9, s.UpdatedAt.Add(time.Hour)
		if again, _ := EndedEvent(s); again.ID != e.ID {
			t.Errorf("%s: a saga ends once, not as %s and %s", status, e.ID, again.ID)
		}
	}
	for _, status := range saga.Statuses() {
		if e, err := EndedEvent(ended(status)); !status.Ended() && err == nil {
			t.Errorf("%s: %+v", status, e)
		}
	}
}
