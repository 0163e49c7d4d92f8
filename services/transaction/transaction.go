// Package transaction is the transaction domain: what was asked for, and how it ended. It is pure: no clock, no random
// source, no network.
package transaction

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
)

// AggregateType is the type of transaction streams.
const AggregateType = "Transaction"

// Type is a kind of transaction.
type Type string

// The types.
const (
	Topup      Type = "topup"      // EXTERNAL to USER
	Withdrawal Type = "withdrawal" // USER to EXTERNAL
	Transfer   Type = "transfer"   // neither side EXTERNAL
	Payment    Type = "payment"    // USER to USER or SYSTEM; can be refunded; may capture a hold
	Refund     Type = "refund"     // a payment's money back, in part or whole
	Hold       Type = "hold"       // reserves on a USER account
	Release    Type = "release"    // gives back what is left of a hold
)

// Types lists them.
func Types() []Type { return []Type{Topup, Withdrawal, Transfer, Payment, Refund, Hold, Release} }

// Status is where a transaction stands.
type Status string

// The statuses.
const (
	Pending     Status = "pending"
	Completed   Status = "completed"   // of a hold: it is placed
	Failed      Status = "failed"      // refused before any effect
	Compensated Status = "compensated" // undone
)

// Statuses lists them.
func Statuses() []Status { return []Status{Pending, Completed, Failed, Compensated} }

// Transaction is a transaction's state.
type Transaction struct {
	Type           Type            `json:"type"`
	Status         Status          `json:"status"` // empty = there is no such transaction
	SourceID       string          `json:"sourceAccountId"`
	DestinationID  string          `json:"destinationAccountId"` // empty: of a release, and of a hold that names none
	Amount         decimal.Decimal `json:"amount"`
	Scale          int32           `json:"scale"` // digits the amount is printed with
	Currency       string          `json:"currency"`
	Reference      *string         `json:"reference,omitempty"`
	Metadata       map[string]any  `json:"metadata,omitempty"`
	IdempotencyKey string          `json:"idempotencyKey"`
	ErrorReason    string          `json:"errorReason,omitempty"`
	ErrorMessage   string          `json:"errorMessage,omitempty"`
	Version        int64           `json:"version"`
	CreatedAt      time.Time       `json:"createdAt"`
	UpdatedAt      time.Time       `json:"updatedAt"`

	PaymentID string  `json:"paymentId,omitempty"` // of a refund: the payment
	HoldID    string  `json:"holdId,omitempty"`    // of a payment that captures, and of a release: the hold
	Reason    *string `json:"reason,omitempty"`    // of a refund or release: why, as the caller said
	Whole     bool    `json:"whole,omitempty"`     // asked for all that was left, not for an amount

	// Of a payment, for its refunds, and of a hold, for its captures: what those under way have taken, and what has been paid.
	Reserved decimal.Decimal `json:"reserved,omitzero"`
	Used     decimal.Decimal `json:"used,omitzero"`

	HoldStatus    HoldStatus `json:"holdStatus,omitempty"` // of a hold
	ExpiresAt     time.Time  `json:"expiresAt,omitzero"`
	DefaultExpiry bool       `json:"defaultExpiry,omitempty"` // nobody asked for that time
	Cause         Cause      `json:"cause,omitempty"`         // of a release
}

// Exists reports whether the transaction was ever accepted.
func (t Transaction) Exists() bool { return t.Status != "" }

// Ended reports whether its saga has ended.
func (t Transaction) Ended() bool { return t.Exists() && t.Status != Pending }

// Left is what refunds of a payment, or captures of a hold, can still take.
func (t Transaction) Left() decimal.Decimal { return t.Amount.Sub(t.Reserved).Sub(t.Used) }

// Remaining is what a hold still reserves and captures can take.
func (t Transaction) Remaining() decimal.Decimal {
	if t.HoldStatus != HoldActive {
		return decimal.Zero
	}
	return t.Left()
}

// ReservedOn is the transaction that reserved for this one: the payment of a refund, the hold of a capture or release. Empty =
// none.
func (t Transaction) ReservedOn() string {
	if t.Type == Refund {
		return t.PaymentID
	}
	return t.HoldID
}

// Format prints an amount at the transaction's scale.
func (t Transaction) Format(d decimal.Decimal) string { return d.StringFixed(t.Scale) }

// Decider is the transaction aggregate.
func Decider() *es.Decider[Transaction, Command] {
	return &es.Decider[Transaction, Command]{
		Type:       AggregateType,
		Initial:    func() Transaction { return Transaction{} },
		Decide:     func(t Transaction, c Command) ([]es.Fact, error) { return c.decide(t) },
		DecidePair: func(own, other Transaction, c Command) (o, p []es.Fact, err error) { return c.decidePair(own, other) },
		Evolve:     evolve,
		Schemas:    schemas,
		Snapshots: &es.Snapshots[Transaction]{
			Every: 2, // most transactions end there: a pending one is quickly folded
			Take: func(t Transaction) ([]byte, error) {
				return json.Marshal(snapshot{Schema: snapshotSchema, Transaction: t})
			},
			Restore: func(b []byte) (Transaction, error) {
				var s snapshot
				if err := json.Unmarshal(b, &s); err != nil {
					return Transaction{}, fmt.Errorf("transaction snapshot: %w", err)
				}
				if s.Schema < snapshotOldest || s.Schema > snapshotSchema {
					return Transaction{}, fmt.Errorf("transaction snapshot of schema %d, not %d to %d", s.Schema, snapshotOldest, snapshotSchema)
				}
				return s.Transaction, nil
			},
		},
	}
}

// snapshotSchema changes with the shape of Transaction, new fields included: code of before must not take a snapshot that says more
// than it reads; it folds the events. Snapshots from snapshotOldest on are read; what they lack is zero.
const (
	snapshotSchema = 2 // 2: payments, refunds, holds
	snapshotOldest = 1
)

type snapshot struct {
	Schema int `json:"schema"`
	Transaction
}

func evolve(t Transaction, f es.Fact, o es.Occurred) Transaction {
	switch f := f.(type) {
	case Requested:
		amount, scale := f.amount()
		t = Transaction{
			Type: f.Type, Status: Pending, SourceID: f.SourceID, DestinationID: f.DestinationID, Amount: amount, Scale: scale,
			Currency: f.Currency, Reference: f.Reference, Metadata: f.Metadata, IdempotencyKey: f.IdempotencyKey,
			PaymentID: f.PaymentID, HoldID: f.HoldID, Reason: f.Reason, Whole: f.Whole, ExpiresAt: f.expiresAt(), DefaultExpiry: f.DefaultExpiry,
			Cause: f.Cause, CreatedAt: o.At,
		}
		if t.Type == Hold {
			t.HoldStatus = HoldPending
		}
	case Ended:
		t.Status, t.ErrorReason, t.ErrorMessage = f.Status, f.ErrorReason, f.ErrorMessage
		if t.Type == Hold {
			t.HoldStatus = placed[f.Status]
		}
	case Reservation:
		t = t.reserve(f)
	case ReleaseStarted:
		t.HoldStatus = HoldReleasing
	case Released:
		t.HoldStatus = released[f.Cause]
	}
	t.Version, t.UpdatedAt = o.Version, o.At
	return t
}
