package account

import (
	"strings"

	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
)

// Direction is which way money moves on an account.
type Direction string

// The directions.
const (
	Debit  Direction = "DEBIT"
	Credit Direction = "CREDIT"
	Hold   Direction = "HOLD" // it does not move: it is reserved, or given back
)

// Opposite is the other direction; what does not move has none.
func (d Direction) Opposite() Direction {
	switch d {
	case Debit:
		return Credit
	case Credit:
		return Debit
	}
	return d
}

// signed is the amount as a change of the balance.
func (d Direction) signed(amount decimal.Decimal) decimal.Decimal {
	if d == Debit {
		return amount.Neg()
	}
	return amount
}

// Amount is a decimal that keeps the digits it is written with: "50.00".
type Amount decimal.Decimal

// MarshalJSON writes the digits.
func (a Amount) MarshalJSON() ([]byte, error) {
	d := decimal.Decimal(a)
	return []byte(`"` + d.StringFixed(max(-d.Exponent(), 0)) + `"`), nil
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (a *Amount) UnmarshalJSON(b []byte) error { return (*decimal.Decimal)(a).UnmarshalJSON(b) }

// ptr is the amount as an optional decimal.
func (a *Amount) ptr() *decimal.Decimal { return (*decimal.Decimal)(a) }

// amount gives d exactly scale digits.
func amount(d decimal.Decimal, scale int32) Amount {
	return Amount(decimal.NewFromBigInt(d.Shift(scale).BigInt(), -scale))
}

// Created is a fact: the account was opened.
type Created struct {
	OwnerID     string         `json:"ownerId"`
	OwnerType   string         `json:"ownerType"`
	AccountType Type           `json:"accountType"`
	Currency    string         `json:"currency"`
	Scale       int32          `json:"scale"`
	MinBalance  *Amount        `json:"minBalance,omitempty"`
	MaxBalance  *Amount        `json:"maxBalance,omitempty"`
	Metadata    map[string]any `json:"metadata,omitempty"`
	RequestHash string         `json:"requestHash"`
}

// EventType is AccountCreated.
func (Created) EventType() string { return "AccountCreated" }

// BalanceChanged is a fact: money moved on the account: the "done" of a step's register. Every one is balanced: what the account
// gains, transit loses.
type BalanceChanged struct {
	PreviousBalance Amount    `json:"previousBalance"`
	NewBalance      Amount    `json:"newBalance"`
	ChangeAmount    Amount    `json:"changeAmount"` // above zero
	ChangeType      Direction `json:"changeType"`
	Reason          string    `json:"reason"`
	Currency        string    `json:"currency"`
	AccountType     Type      `json:"accountType"`
	TransitChange   Amount    `json:"transitChange"`
	SagaID          string    `json:"sagaId"`
	Step            string    `json:"step"`
	HoldID          string    `json:"holdId,omitempty"`     // the hold that a debit captures, or its rollback restores
	HeldChange      *Amount   `json:"heldChange,omitempty"` // what that did to the held balance
	HeldBalance     Amount    `json:"heldBalance"`          // what open holds reserve after it
}

// EventType is BalanceChanged.
func (BalanceChanged) EventType() string { return "BalanceChanged" }

// PostingRefused is a fact: a rule said no to a step: the "refused" of its register.
type PostingRefused struct {
	ChangeAmount Amount    `json:"changeAmount"`
	ChangeType   Direction `json:"changeType"`
	Currency     string    `json:"currency"`
	SagaID       string    `json:"sagaId"`
	Step         string    `json:"step"`
	ErrorReason  string    `json:"errorReason"`
	ErrorMessage string    `json:"errorMessage"`
}

// EventType is PostingRefused.
func (PostingRefused) EventType() string { return "PostingRefused" }

// PostingCancelled is a fact: a step will never be done: the "cancelled" of its register.
type PostingCancelled struct {
	SagaID string `json:"sagaId"`
	Step   string `json:"step"`
}

// EventType is PostingCancelled.
func (PostingCancelled) EventType() string { return "PostingCancelled" }

// LimitsChanged is a fact: the account got other limits. nil = no limit.
type LimitsChanged struct {
	PreviousMinBalance *Amount `json:"previousMinBalance,omitempty"`
	PreviousMaxBalance *Amount `json:"previousMaxBalance,omitempty"`
	MinBalance         *Amount `json:"minBalance,omitempty"`
	MaxBalance         *Amount `json:"maxBalance,omitempty"`
	Reason             string  `json:"reason"`
}

// EventType is AccountLimitsChanged.
func (LimitsChanged) EventType() string { return "AccountLimitsChanged" }

// StatusChanged is a fact: the account was suspended, re-activated or closed.
type StatusChanged struct {
	PreviousStatus Status `json:"previousStatus"`
	NewStatus      Status `json:"newStatus"`
	Reason         string `json:"reason"`
}

// EventType is AccountStatusChanged.
func (StatusChanged) EventType() string { return "AccountStatusChanged" }

// schemas are the account's events.
var schemas = es.Schemas{
	Created{}.EventType():          es.SchemaOf[Created](),
	BalanceChanged{}.EventType():   es.SchemaOf[BalanceChanged](balanceChanged2),
	FundsHeld{}.EventType():        es.SchemaOf[FundsHeld](),
	FundsReleased{}.EventType():    es.SchemaOf[FundsReleased](),
	PostingRefused{}.EventType():   es.SchemaOf[PostingRefused](),
	PostingCancelled{}.EventType(): es.SchemaOf[PostingCancelled](),
	LimitsChanged{}.EventType():    es.SchemaOf[LimitsChanged](),
	StatusChanged{}.EventType():    es.SchemaOf[StatusChanged](),
}

// balanceChanged2 gives a posting its held balance. Version 1 had it only where it was not zero, or a hold was captured or restored.
func balanceChanged2(f es.Fields) error {
	if f.Has("heldBalance") {
		return nil
	}
	var balance string
	if err := f.Get("newBalance", &balance); err != nil {
		return err
	}
	zero := "0"
	if _, digits, ok := strings.Cut(balance, "."); ok {
		zero += "." + strings.Repeat("0", len(digits))
	}
	return f.Set("heldBalance", zero)
}

// Decode reads an event's fact.
func Decode(e es.Event) (es.Fact, error) { return schemas.Decode(e) }
