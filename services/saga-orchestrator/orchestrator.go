// Package orchestrator is the saga orchestrator's domain: which sagas there are, one a file, and the event that tells of a
// saga's end. It is pure: no clock, no random source, no network.
package orchestrator

import (
	"cmp"
	"encoding/json"
	"fmt"
	"time"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/saga"
)

// AggregateType is the type of saga streams; TransactionType the one whose events start sagas.
const (
	AggregateType   = "Saga"
	TransactionType = "Transaction"
)

// The actions that sagas are made of.
const (
	DebitSource            = "debit_source"
	CreditDestination      = "credit_destination"
	CreditSourceRollback   = "credit_source_rollback"
	DebitCustomer          = "debit_customer"
	CreditMerchant         = "credit_merchant"
	CreditCustomerRollback = "credit_customer_rollback"
	DebitMerchant          = "debit_merchant"
	CreditCustomer         = "credit_customer"
	CreditMerchantRollback = "credit_merchant_rollback"
	PlaceHold              = "place_hold"
	ReleaseHold            = "release_hold"
	CompleteTransaction    = "complete_transaction"
	FailTransaction        = "fail_transaction"
	CompensateTransaction  = "compensate_transaction"
)

// Definitions lists every saga, in every version that may still be running.
func Definitions() []saga.Definition {
	return []saga.Definition{transfer(), topup(), withdrawal(), payment(), refund(), hold(), release()}
}

// deadline is how long a transaction may take before it is given up and its money goes back. It is as long as an outage may last
// without one transaction being undone for it.
const deadline = 24 * time.Hour

// moneySteps move money from one account to another: the debit can be undone; the credit is the point of no return; after
// it there is only forward.
func moneySteps(debit, rollback, credit string) []saga.Step {
	return []saga.Step{
		{Name: debit, Kind: saga.Compensatable, Compensation: rollback},
		{Name: credit, Kind: saga.Pivot},
		{Name: CompleteTransaction, Kind: saga.Retriable},
	}
}

// Input is what the sagas need of their trigger: the data of TransferRequested and its like.
type Input struct {
	SourceID      string `json:"sourceAccountId"`
	DestinationID string `json:"destinationAccountId"`
	Amount        string `json:"amount"`
	Currency      string `json:"currency"`
	PaymentID     string `json:"paymentId"` // of a refund: the payment that reserved for it
	HoldID        string `json:"holdId"`    // of a payment that captures, and of a release: the hold
}

// ReservedOn is the payment or hold that reserved for the transaction; empty = none.
func (in Input) ReservedOn() string { return cmp.Or(in.PaymentID, in.HoldID) }

// ReadInput reads a trigger's data.
func ReadInput(data json.RawMessage) (Input, error) {
	var in Input
	if err := json.Unmarshal(data, &in); err != nil {
		return in, fmt.Errorf("read saga input: %w", err)
	}
	return in, nil
}

// Accounts are the accounts that a trigger's data names.
func Accounts(data json.RawMessage) (ids []string) {
	in, err := ReadInput(data)
	if err != nil {
		return nil // the first step says what is wrong
	}
	for _, id := range []string{in.SourceID, in.DestinationID} {
		if id != "" {
			ids = append(ids, id)
		}
	}
	return ids
}

// endedTypes name the events of ended sagas.
var endedTypes = map[saga.Status]string{
	saga.Completed: "SagaCompleted", saga.Failed: "SagaFailed", saga.Compensated: "SagaCompensated",
}

// sagaEnded is the fact that a saga ended.
type sagaEnded struct {
	Status       saga.Status                `json:"-"` // in the event's name
	SagaType     string                     `json:"sagaType"`
	Steps        []string                   `json:"steps"`
	CurrentStep  int                        `json:"currentStep"`
	Results      map[string]json.RawMessage `json:"results"`
	ErrorReason  string                     `json:"errorReason,omitempty"`
	ErrorMessage string                     `json:"errorMessage,omitempty"`
	Actions      []action                   `json:"compensationActions,omitempty"`
}

// EventType is SagaCompleted and its like.
func (e sagaEnded) EventType() string { return endedTypes[e.Status] }

// schemas are the sagas' events.
var schemas = func() es.Schemas {
	all := es.Schemas{}
	for status, name := range endedTypes {
		all[name] = es.Schema{Decode: func(data json.RawMessage) (es.Fact, error) {
			e := sagaEnded{Status: status}
			err := json.Unmarshal(data, &e)
			return e, err
		}}
	}
	return all
}()

type action struct {
	Action    string          `json:"action"`
	Result    json.RawMessage `json:"result,omitempty"`
	Timestamp string          `json:"timestamp"`
}

// EndedEvent is the one event of a saga's stream: how it ended.
func EndedEvent(s saga.State) (es.Event, error) {
	if endedTypes[s.Status] == "" {
		return es.Event{}, fmt.Errorf("a saga in status %s has not ended", s.Status)
	}
	f := sagaEnded{
		Status: s.Status, SagaType: s.SagaType, Steps: s.Steps, CurrentStep: s.CurrentStep, Results: s.Results,
		ErrorReason: s.ErrorReason, ErrorMessage: s.ErrorMessage,
	}
	if f.Results == nil {
		f.Results = map[string]json.RawMessage{}
	}
	for _, a := range s.Actions {
		f.Actions = append(f.Actions, action{Action: a.Action, Result: a.Result, Timestamp: a.Timestamp.UTC().Format(es.TimeFormat)})
	}
	stream := es.Stream{Type: AggregateType, ID: s.SagaID}
	return schemas.Record(es.Event{
		ID: es.EventID(stream, "ended", 0), Stream: stream, Version: 1, At: s.UpdatedAt,
		CorrelationID: s.CorrelationID, CausationID: s.CausedBy, Metadata: s.Metadata,
	}, f)
}
