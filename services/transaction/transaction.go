// Package transaction is the transaction domain: what was asked for, and how it ended. It is pure: no clock, no random
// source, no network.
package transaction

import (
	"encoding/json"
	"fmt"
	"slices"
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
)

// prefixes name each type's events: TransferRequested.
var prefixes = map[Type]string{Topup: "Topup", Withdrawal: "Withdrawal", Transfer: "Transfer"}

// Side is what a transaction must know of one of its accounts.
type Side struct {
	Found       bool
	AccountType string // USER, EXTERNAL or SYSTEM
	Currency    string
	Status      string // active, suspended or closed
}

// allowed lists the account types that may stand on each side.
var allowed = map[Type]struct{ source, destination []string }{
	Topup:      {[]string{"EXTERNAL"}, []string{"USER"}},
	Withdrawal: {[]string{"USER"}, []string{"EXTERNAL"}},
	Transfer:   {[]string{"USER", "SYSTEM"}, []string{"USER", "SYSTEM"}},
}

// Status is where a transaction stands.
type Status string

// The statuses.
const (
	Pending     Status = "pending"
	Completed   Status = "completed"
	Failed      Status = "failed"      // refused before any effect
	Compensated Status = "compensated" // undone
)

// Transaction is a transaction's state.
type Transaction struct {
	Type           Type            `json:"type"`
	Status         Status          `json:"status"` // empty = there is no such transaction
	SourceID       string          `json:"sourceAccountId"`
	DestinationID  string          `json:"destinationAccountId"`
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
}

// Exists reports whether the transaction was ever accepted.
func (t Transaction) Exists() bool { return t.Status != "" }

// Ended reports whether nothing more will happen to it.
func (t Transaction) Ended() bool { return t.Exists() && t.Status != Pending }

// Check refuses a transaction that its accounts rule out, source first.
func Check(t Type, currency string, source, destination Side, sourceID, destinationID string) *es.Refusal {
	if sourceID == destinationID {
		return es.Refuse("SAME_ACCOUNT", "Source and destination are both account %s.", sourceID)
	}
	rule := allowed[t]
	for _, s := range []struct {
		name, id string
		Side
		types []string
	}{{"source", sourceID, source, rule.source}, {"destination", destinationID, destination, rule.destination}} {
		switch {
		case !s.Found:
			return es.Refuse("ACCOUNT_NOT_FOUND", "The %s account %s does not exist.", s.name, s.id)
		case !slices.Contains(s.types, s.AccountType):
			return es.Refuse("ACCOUNT_TYPE_NOT_ALLOWED", "The %s account %s is %s; the %s of a %s is %s.", s.name, s.id, s.AccountType, s.name, t, join(s.types))
		case s.Currency != currency:
			return es.Refuse("CURRENCY_MISMATCH", "The %s account %s is in %s, the transaction in %s.", s.name, s.id, s.Currency, currency)
		case s.Status == "suspended":
			return es.Refuse("ACCOUNT_SUSPENDED", "The %s account %s is suspended.", s.name, s.id)
		case s.Status == "closed":
			return es.Refuse("ACCOUNT_CLOSED", "The %s account %s is closed.", s.name, s.id)
		}
	}
	return nil
}

func join(types []string) string {
	out := types[0]
	for _, t := range types[1:] {
		out += " or " + t
	}
	return out
}

// Decider is the transaction aggregate.
func Decider() *es.Decider[Transaction, Command] {
	return &es.Decider[Transaction, Command]{
		Type:    AggregateType,
		Initial: func() Transaction { return Transaction{} },
		Decide:  func(t Transaction, c Command) ([]es.Fact, error) { return c.decide(t) },
		Evolve:  evolve,
		Decode:  decode,
		Final:   Transaction.Ended,
		Snapshots: &es.Snapshots[Transaction]{
			Take: func(t Transaction) ([]byte, error) {
				return json.Marshal(snapshot{Schema: snapshotSchema, Transaction: t})
			},
			Restore: func(b []byte) (Transaction, error) {
				var s snapshot
				if err := json.Unmarshal(b, &s); err != nil {
					return Transaction{}, fmt.Errorf("transaction snapshot: %w", err)
				}
				if s.Schema != snapshotSchema {
					return Transaction{}, fmt.Errorf("transaction snapshot of schema %d, not %d", s.Schema, snapshotSchema)
				}
				return s.Transaction, nil
			},
		},
	}
}

// snapshotSchema changes with the shape of Transaction: snapshots of another schema are thrown away.
const snapshotSchema = 1

type snapshot struct {
	Schema int `json:"schema"`
	Transaction
}

func evolve(t Transaction, f es.Fact, o es.Occurred) Transaction {
	t.Version, t.UpdatedAt = o.Version, o.At
	switch f := f.(type) {
	case Requested:
		amount, scale := f.amount()
		t = Transaction{
			Type: f.Type, Status: Pending, SourceID: f.SourceID, DestinationID: f.DestinationID, Amount: amount, Scale: scale,
			Currency: f.Currency, Reference: f.Reference, Metadata: f.Metadata, IdempotencyKey: f.IdempotencyKey,
			Version: o.Version, CreatedAt: o.At, UpdatedAt: o.At,
		}
	case Ended:
		t.Status, t.ErrorReason, t.ErrorMessage = f.Status, f.ErrorReason, f.ErrorMessage
	}
	return t
}
