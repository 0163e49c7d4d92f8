package transaction

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
)

// Requested is the fact that a transaction was accepted; it starts the saga.
type Requested struct {
	Type           Type           `json:"-"` // in the event's name
	SourceID       string         `json:"sourceAccountId"`
	DestinationID  string         `json:"destinationAccountId,omitempty"` // absent: of a release, and of a hold that names none
	Amount         string         `json:"amount"`                         // at the currency's scale: "50.00"
	Currency       string         `json:"currency"`
	Reference      *string        `json:"reference,omitempty"`
	Metadata       map[string]any `json:"metadata,omitempty"`
	IdempotencyKey string         `json:"idempotencyKey,omitempty"` // a release has none: there is one for each hold
	PaymentID      string         `json:"paymentId,omitempty"`
	HoldID         string         `json:"holdId,omitempty"`
	Whole          bool           `json:"whole,omitempty"`
	Reason         *string        `json:"reason,omitempty"`
	ExpiresAt      string         `json:"expiresAt,omitempty"` // of a hold: RFC 3339, UTC, milliseconds
	DefaultExpiry  bool           `json:"defaultExpiry,omitempty"`
	Cause          Cause          `json:"cause,omitempty"`
}

// EventType is TransferRequested and its like.
func (r Requested) EventType() string { return prefixes[r.Type] + "Requested" }

// amount reads the amount and the digits it is written with.
func (r Requested) amount() (decimal.Decimal, int32) {
	d, err := decimal.NewFromString(r.Amount)
	if err != nil {
		return decimal.Zero, 0 // decode has refused it already
	}
	return d, max(-d.Exponent(), 0)
}

// expiresAt reads the time; zero = none.
func (r Requested) expiresAt() time.Time {
	at, err := time.Parse(es.TimeFormat, r.ExpiresAt)
	if err != nil {
		return time.Time{} // decode has refused it already, unless there is none
	}
	return at
}

// check reads what evolve relies on.
func (r Requested) check() error {
	if _, err := decimal.NewFromString(r.Amount); err != nil {
		return fmt.Errorf("%s: amount %q: %w", r.EventType(), r.Amount, err)
	}
	if r.ExpiresAt == "" && r.Type != Hold {
		return nil
	}
	if _, err := time.Parse(es.TimeFormat, r.ExpiresAt); err != nil {
		return fmt.Errorf("%s: %w", r.EventType(), err)
	}
	return nil
}

// Ended is the fact that a transaction completed, failed or was compensated; of a hold, that it was placed.
type Ended struct {
	Type         Type   `json:"-"` // in the event's name
	Status       Status `json:"-"` // in the event's name
	SagaID       string `json:"sagaId"`
	ErrorReason  string `json:"errorReason,omitempty"`
	ErrorMessage string `json:"errorMessage,omitempty"`
}

// EventType is TransferCompleted and its like.
func (e Ended) EventType() string { return endedNames[e.Type][e.Status] }

// prefixes name each type's events: TransferRequested.
var prefixes = map[Type]string{
	Topup: "Topup", Withdrawal: "Withdrawal", Transfer: "Transfer", Payment: "Payment", Refund: "Refund", Hold: "Hold", Release: "Release",
}

// endedNames name the events of each type's ends; ends that a type does not have are not there.
var endedNames = func() map[Type]map[Status]string {
	names := map[Type]map[Status]string{
		Hold:    {Completed: "HoldPlaced", Failed: "HoldFailed"},
		Release: {Completed: "ReleaseCompleted"},
	}
	for t, prefix := range prefixes {
		if names[t] == nil {
			names[t] = map[Status]string{Completed: prefix + "Completed", Failed: prefix + "Failed", Compensated: prefix + "Compensated"}
		}
	}
	return names
}()

// RequestedTypes lists the event types that ask for a transaction.
func RequestedTypes() []string {
	var names []string
	for _, t := range Types() {
		names = append(names, Requested{Type: t}.EventType())
	}
	return names
}

// schemas are the transactions' events.
var schemas = func() es.Schemas {
	all := es.Schemas{
		ReleaseStarted{}.EventType(): es.SchemaOf[ReleaseStarted](),
		Released{}.EventType():       es.SchemaOf[Released](),
	}
	for _, t := range Types() {
		all[Requested{Type: t}.EventType()] = es.Schema{Decode: func(data json.RawMessage) (es.Fact, error) {
			r := Requested{Type: t}
			if err := json.Unmarshal(data, &r); err != nil {
				return nil, err
			}
			return r, r.check()
		}}
		for status, name := range endedNames[t] {
			all[name] = es.Schema{Decode: func(data json.RawMessage) (es.Fact, error) {
				e := Ended{Type: t, Status: status}
				err := json.Unmarshal(data, &e)
				return e, err
			}}
		}
	}
	for on, names := range reservationNames {
		for step, name := range names {
			all[name] = es.Schema{Decode: func(data json.RawMessage) (es.Fact, error) {
				r := Reservation{On: on, Step: step}
				if err := json.Unmarshal(data, &r); err != nil {
					return nil, err
				}
				return r, r.check()
			}}
		}
	}
	return all
}()

// Decode reads an event's fact.
func Decode(e es.Event) (es.Fact, error) { return schemas.Decode(e) }
