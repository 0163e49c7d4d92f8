package account

import (
	"maps"

	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
)

// HoldsMax is how many holds an account can have open: they are part of its state.
const HoldsMax = 256

// Holds are an account's open holds: what is left of each, by its id.
type Holds map[string]decimal.Decimal

// IsZero leaves the encoded state of an account without holds as short as it can be.
func (h Holds) IsZero() bool { return len(h) == 0 }

// hold is the account after a change of what a hold reserves. A hold of which nothing is left is no longer open.
func (a Account) hold(id string, change decimal.Decimal) Account {
	left := a.Holds[id].Add(change)
	a.Holds = maps.Clone(a.Holds)
	if a.Holds == nil {
		a.Holds = Holds{}
	}
	if a.Holds[id] = left; left.IsZero() {
		delete(a.Holds, id)
	}
	a.Held = a.Held.Add(change)
	return a
}

// uncovered is the rule by which a hold does not cover an amount, or nil.
func (a Account) uncovered(holdID string, amount decimal.Decimal) *es.Refusal {
	left, open := a.Holds[holdID]
	switch {
	case !open:
		return es.Refuse("HOLD_NOT_ACTIVE", "The account has no open hold %s.", holdID)
	case left.LessThan(amount):
		return es.Refuse("CAPTURE_EXCEEDS_HOLD", "The hold has %s %s left, less than %s.", a.Format(left), a.Currency, a.Format(amount))
	}
	return nil
}

// capturing is the event of money that a hold reserved: a debit takes it from the reserve, its rollback puts it back there.
func (c BalanceChanged) capturing(a Account, holdID string) BalanceChanged {
	if holdID == "" {
		return c
	}
	change := c.ChangeType.signed(decimal.Decimal(c.ChangeAmount))
	by, held := amount(change, a.Scale), amount(a.Held.Add(change), a.Scale)
	c.HoldID, c.HeldChange, c.HeldBalance = holdID, &by, held
	return c
}

// PlaceHold reserves an amount for a saga's step. It always writes the step's register: done, or refused.
type PlaceHold struct {
	SagaID, Step string
	HoldID       string
	Amount       decimal.Decimal
	Currency     string
}

func (c PlaceHold) decide(a Account) ([]es.Fact, error) { //nolint:unparam // Command has the error
	if r := c.refusal(a); r != nil {
		return []es.Fact{PostingRefused{ //nolint:nilerr // the refusal of a money step is a fact
			ChangeAmount: amount(c.Amount, max(a.Scale, -c.Amount.Exponent())), ChangeType: Hold, Currency: c.Currency,
			SagaID: c.SagaID, Step: c.Step, ErrorReason: r.Reason, ErrorMessage: r.Message,
		}}, nil
	}
	return []es.Fact{FundsHeld{
		HoldID: c.HoldID, Amount: amount(c.Amount, a.Scale), Currency: a.Currency, Balance: amount(a.Balance, a.Scale),
		HeldBalance: amount(a.Held.Add(c.Amount), a.Scale), SagaID: c.SagaID, Step: c.Step,
	}}, nil
}

// refusal is the rule that says no, or nil.
func (c PlaceHold) refusal(a Account) *es.Refusal {
	if r := a.closedTo(c.Amount, c.Currency); r != nil {
		return r
	}
	if n := len(a.Holds); n >= HoldsMax {
		return es.Refuse("TOO_MANY_HOLDS", "The account has %d open holds, as many as it can have.", n)
	}
	return a.lacks(c.Amount)
}

// ReleaseHold gives back what is left of a hold. Nothing refuses it.
type ReleaseHold struct {
	SagaID, Step string
	HoldID       string
}

func (c ReleaseHold) decide(a Account) ([]es.Fact, error) { //nolint:unparam // Command has the error
	left := a.Holds[c.HoldID]
	return []es.Fact{FundsReleased{
		HoldID: c.HoldID, Amount: amount(left, a.Scale), Currency: a.Currency, Balance: amount(a.Balance, a.Scale),
		HeldBalance: amount(a.Held.Sub(left), a.Scale), SagaID: c.SagaID, Step: c.Step,
	}}, nil
}

// FundsHeld is a fact: an amount was reserved: the "done" of a step's register.
type FundsHeld struct {
	HoldID      string `json:"holdId"`
	Amount      Amount `json:"amount"` // above zero
	Currency    string `json:"currency"`
	Balance     Amount `json:"balance"` // posted; a hold does not change it
	HeldBalance Amount `json:"heldBalance"`
	SagaID      string `json:"sagaId"`
	Step        string `json:"step"`
}

// EventType is FundsHeld.
func (FundsHeld) EventType() string { return "FundsHeld" }

// FundsReleased is a fact: what was left of a hold was given back: the "done" of a step's register.
type FundsReleased struct {
	HoldID      string `json:"holdId"`
	Amount      Amount `json:"amount"` // zero if nothing was left
	Currency    string `json:"currency"`
	Balance     Amount `json:"balance"` // posted; a release does not change it
	HeldBalance Amount `json:"heldBalance"`
	SagaID      string `json:"sagaId"`
	Step        string `json:"step"`
}

// EventType is FundsReleased.
func (FundsReleased) EventType() string { return "FundsReleased" }
