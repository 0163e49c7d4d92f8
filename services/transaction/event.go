package transaction

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
)

// Requested is the fact that a transaction was accepted; it starts the saga.
type Requested struct {
	Type           Type           `json:"-"` // in the event's name
	SourceID       string         `json:"sourceAccountId"`
	DestinationID  string         `json:"destinationAccountId"`
	Amount         string         `json:"amount"` // at the currency's scale: "50.00"
	Currency       string         `json:"currency"`
	Reference      *string        `json:"reference,omitempty"`
	Metadata       map[string]any `json:"metadata,omitempty"`
	IdempotencyKey string         `json:"idempotencyKey"`
}

// EventType is TransferRequested and its like.
func (r Requested) EventType() string { return prefixes[r.Type] + suffixRequested }

// amount reads the amount and the digits it is written with.
func (r Requested) amount() (decimal.Decimal, int32) {
	d, err := decimal.NewFromString(r.Amount)
	if err != nil {
		return decimal.Zero, 0 // decode has refused it already
	}
	return d, max(-d.Exponent(), 0)
}

// Ended is the fact that a transaction completed, failed or was compensated.
type Ended struct {
	Type         Type   `json:"-"` // in the event's name
	Status       Status `json:"-"` // in the event's name
	SagaID       string `json:"sagaId"`
	ErrorReason  string `json:"errorReason,omitempty"`
	ErrorMessage string `json:"errorMessage,omitempty"`
}

// EventType is TransferCompleted and its like.
func (e Ended) EventType() string { return prefixes[e.Type] + suffixes[e.Status] }

const suffixRequested = "Requested"

var suffixes = map[Status]string{Completed: "Completed", Failed: "Failed", Compensated: "Compensated"}

// RequestedTypes lists the event types that ask for a transaction.
func RequestedTypes() []string {
	var names []string
	for _, t := range []Type{Topup, Withdrawal, Transfer} {
		names = append(names, Requested{Type: t}.EventType())
	}
	return names
}

func decode(eventType string, data json.RawMessage) (es.Fact, error) {
	for t, prefix := range prefixes {
		suffix, ok := strings.CutPrefix(eventType, prefix)
		if !ok {
			continue
		}
		if suffix == suffixRequested {
			r := Requested{Type: t}
			if err := json.Unmarshal(data, &r); err != nil {
				return nil, err
			}
			if _, err := decimal.NewFromString(r.Amount); err != nil {
				return nil, fmt.Errorf("%s: amount %q: %w", eventType, r.Amount, err)
			}
			return r, nil
		}
		for status, name := range suffixes {
			if suffix == name {
				e := Ended{Type: t, Status: status}
				err := json.Unmarshal(data, &e)
				return e, err
			}
		}
	}
	return nil, fmt.Errorf("unknown event type %q", eventType)
}

// Decode reads an event's payload.
func Decode(e es.Event) (es.Fact, error) { return decode(e.Type, e.Data) }
