// Package account is the account domain: what an account is, what can be asked of it, and what happened to it. It is pure:
// no clock, no random source, no network.
package account

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
)

// AggregateType is the type of account streams.
const AggregateType = "Account"

// Type says what rules an account follows.
type Type string

// The types.
const (
	User     Type = "USER"     // stays within its limits; the lower one is 0 unless given
	External Type = "EXTERNAL" // mirrors the outside world; no limits
	System   Type = "SYSTEM"   // the operator's own; limits only if given
)

// Types lists them.
func Types() []string { return []string{string(User), string(External), string(System)} }

// Status says what an account takes part in.
type Status string

// The statuses.
const (
	Active    Status = "active"
	Suspended Status = "suspended" // no new postings; active again later
	Closing   Status = "closing"   // no new postings; closed when the transactions under way have ended
	Closed    Status = "closed"    // for ever
)

// Statuses lists them.
func Statuses() []string {
	return []string{string(Active), string(Suspended), string(Closing), string(Closed)}
}

// Account is an account's state: bounded in size, however long its history.
type Account struct {
	OwnerID    string           `json:"ownerId"`
	OwnerType  string           `json:"ownerType"`
	Type       Type             `json:"accountType"`
	Currency   string           `json:"currency"`
	Scale      int32            `json:"scale"`                // digits that balances are printed with
	Balance    decimal.Decimal  `json:"balance"`              // posted
	Held       decimal.Decimal  `json:"held,omitzero"`        // what open holds reserve of it: the sum of Holds
	Holds      Holds            `json:"holds,omitzero"`       // at most HoldsMax
	MinBalance *decimal.Decimal `json:"minBalance,omitempty"` // nil = no limit
	MaxBalance *decimal.Decimal `json:"maxBalance,omitempty"`
	Status     Status           `json:"status"`           // empty = there is no such account
	Before     Status           `json:"before,omitempty"` // of a closing account: what it was before
	Metadata   map[string]any   `json:"metadata,omitempty"`
	Request    string           `json:"requestHash"`
	Version    int64            `json:"version"`
	CreatedAt  time.Time        `json:"createdAt"`
	UpdatedAt  time.Time        `json:"updatedAt"`
}

// Exists reports whether the account was ever opened.
func (a Account) Exists() bool { return a.Status != "" }

// Available is what debits may use, down to the minimum: posted minus held.
func (a Account) Available() decimal.Decimal { return a.Balance.Sub(a.Held) }

// Format prints an amount at the account's scale.
func (a Account) Format(d decimal.Decimal) string { return d.StringFixed(a.Scale) }

// Decider is the account aggregate.
func Decider() *es.Decider[Account, Command] {
	return &es.Decider[Account, Command]{
		Type:    AggregateType,
		Initial: func() Account { return Account{} },
		Decide:  func(a Account, c Command) ([]es.Fact, error) { return c.decide(a) },
		Evolve:  evolve,
		Schemas: schemas,
		Snapshots: &es.Snapshots[Account]{
			Take: func(a Account) ([]byte, error) { return json.Marshal(snapshot{Schema: snapshotSchema, Account: a}) },
			Restore: func(b []byte) (Account, error) {
				var s snapshot
				if err := json.Unmarshal(b, &s); err != nil {
					return Account{}, fmt.Errorf("account snapshot: %w", err)
				}
				if s.Schema < snapshotOldest || s.Schema > snapshotSchema {
					return Account{}, fmt.Errorf("account snapshot of schema %d, not %d to %d", s.Schema, snapshotOldest, snapshotSchema)
				}
				return s.Account, nil
			},
		},
	}
}

// snapshotSchema changes with the shape of Account, new fields included: code of before must not take a snapshot that says more
// than it reads; it folds the events. Snapshots from snapshotOldest on are read; what they lack is zero.
const (
	snapshotSchema = 2 // 2: holds
	snapshotOldest = 1
)

type snapshot struct {
	Schema int `json:"schema"`
	Account
}

func evolve(a Account, f es.Fact, o es.Occurred) Account {
	a.Version, a.UpdatedAt = o.Version, o.At
	switch f := f.(type) {
	case Created:
		a.OwnerID, a.OwnerType, a.Type, a.Currency = f.OwnerID, f.OwnerType, f.AccountType, f.Currency
		a.Scale, a.Metadata, a.Request = f.Scale, f.Metadata, f.RequestHash
		a.MinBalance, a.MaxBalance = f.MinBalance.ptr(), f.MaxBalance.ptr()
		a.Status, a.CreatedAt = Active, o.At
	case BalanceChanged:
		a.Balance = decimal.Decimal(f.NewBalance)
		if f.HeldChange != nil {
			a = a.hold(f.HoldID, decimal.Decimal(*f.HeldChange))
		}
	case FundsHeld:
		a = a.hold(f.HoldID, decimal.Decimal(f.Amount))
	case FundsReleased:
		a = a.hold(f.HoldID, decimal.Decimal(f.Amount).Neg())
	case LimitsChanged:
		a.MinBalance, a.MaxBalance = f.MinBalance.ptr(), f.MaxBalance.ptr()
	case StatusChanged:
		if f.NewStatus != Closing {
			a.Before = ""
		} else if f.PreviousStatus != Closing {
			a.Before = f.PreviousStatus
		}
		a.Status = f.NewStatus
	case PostingRefused, PostingCancelled: // registers: they change no balance
	}
	return a
}
