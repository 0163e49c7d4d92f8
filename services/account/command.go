package account

import (
	"fmt"

	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
)

// Command is what can be asked of an account.
type Command interface {
	decide(a Account) ([]es.Fact, error)
}

// Open opens an account. Its values are checked at the edge.
type Open struct {
	OwnerID, OwnerType     string
	Type                   Type
	Currency               string
	Scale                  int32
	MinBalance, MaxBalance *decimal.Decimal // nil = not given
	Metadata               map[string]any
	RequestHash            string
}

func (c Open) decide(a Account) ([]es.Fact, error) {
	if a.Exists() {
		if a.Request == c.RequestHash {
			return nil, nil
		}
		return nil, es.Refuse("IDEMPOTENCY_CONFLICT", "The idempotency key opened an account of owner %s in %s with other content.", a.OwnerID, a.Currency)
	}
	return []es.Fact{c.Fact()}, nil
}

// Fact is what opening leads to.
func (c Open) Fact() Created {
	if c.Type == User && c.MinBalance == nil {
		c.MinBalance = &decimal.Zero
	}
	return Created{
		OwnerID: c.OwnerID, OwnerType: c.OwnerType, AccountType: c.Type, Currency: c.Currency, Scale: c.Scale,
		MinBalance: limit(c.MinBalance, c.Scale), MaxBalance: limit(c.MaxBalance, c.Scale), Metadata: c.Metadata, RequestHash: c.RequestHash,
	}
}

func limit(d *decimal.Decimal, scale int32) *Amount {
	if d == nil {
		return nil
	}
	a := amount(*d, scale)
	return &a
}

// ChangeStatus suspends, re-activates or closes.
type ChangeStatus struct {
	Status          Status
	Reason          string
	ExpectedVersion *int64 // nil = whatever it is
	Keyed           bool   // came with an idempotency key: even a change to the present status leaves its event, for repeats to find
}

func (c ChangeStatus) decide(a Account) ([]es.Fact, error) {
	switch {
	case !a.Exists():
		return nil, es.Refuse("ACCOUNT_NOT_FOUND", "There is no such account.")
	case c.ExpectedVersion != nil && *c.ExpectedVersion != a.Version:
		return nil, es.Refuse("VERSION_CONFLICT", "Expected version %d, the account is at version %d.", *c.ExpectedVersion, a.Version)
	case c.Status == a.Status && !c.Keyed:
		return nil, nil
	case a.Status == Closed && c.Status != Closed:
		return nil, es.Refuse("STATUS_NOT_ALLOWED", "The account is closed; it stays so.")
	case c.Status == Closed && !a.Balance.IsZero():
		return nil, es.Refuse("BALANCE_NOT_ZERO", "The balance is %s %s; an account closes at zero.", a.Format(a.Balance), a.Currency)
	case c.Status == Closed && len(a.Holds) > 0:
		return nil, es.Refuse("HOLDS_OPEN", "%d holds are open; an account closes without.", len(a.Holds))
	case c.Status == Closed && a.Status == Closing && !c.Keyed:
		return nil, nil
	}
	return []es.Fact{StatusChanged{PreviousStatus: a.Status, NewStatus: c.next(a), Reason: c.Reason}}, nil
}

// next is the status that the change leads to: an account that shall close is closing first.
func (c ChangeStatus) next(a Account) Status {
	if c.Status == Closed && a.Status != Closed {
		return Closing
	}
	return c.Status
}

// SameAs reports whether f is what this change, or one with the same content, led to.
func (c ChangeStatus) SameAs(f StatusChanged) bool {
	return f.Reason == c.Reason && (f.NewStatus == c.Status || f.NewStatus == Closing && c.Status == Closed)
}

// FinishClosing ends the closing of an account that no transaction under way names: closed, or, where the last of them left
// money on it, what it was before. It is for the account as it was before that was asked: at any other version it does nothing.
type FinishClosing struct{ Version int64 }

func (c FinishClosing) decide(a Account) ([]es.Fact, error) { //nolint:unparam // Command has the error
	switch {
	case a.Status != Closing || a.Version != c.Version:
		return nil, nil
	case !a.Balance.IsZero() || len(a.Holds) > 0:
		return []es.Fact{StatusChanged{PreviousStatus: Closing, NewStatus: a.Before, Reason: "the last transactions left money on the account"}}, nil
	}
	return []es.Fact{StatusChanged{PreviousStatus: Closing, NewStatus: Closed, Reason: "no transaction is under way"}}, nil
}

// Limit is an optional change of a limit.
type Limit struct {
	Set   bool             // false = it stays as it is
	Value *decimal.Decimal // nil = no limit
}

// or is the limit after the change.
func (l Limit) or(present *decimal.Decimal) *decimal.Decimal {
	if l.Set {
		return l.Value
	}
	return present
}

// ChangeLimits sets the lowest and highest balance. The present balance may lie outside: what is refused is to go further.
type ChangeLimits struct {
	Min, Max        Limit
	Reason          string
	ExpectedVersion *int64 // nil = whatever it is
	Keyed           bool   // came with an idempotency key: even limits that stay leave their event, for repeats to find
}

func (c ChangeLimits) decide(a Account) ([]es.Fact, error) {
	lowest, highest := c.Min.or(a.MinBalance), c.Max.or(a.MaxBalance)
	switch {
	case !a.Exists():
		return nil, es.Refuse("ACCOUNT_NOT_FOUND", "There is no such account.")
	case c.ExpectedVersion != nil && *c.ExpectedVersion != a.Version:
		return nil, es.Refuse("VERSION_CONFLICT", "Expected version %d, the account is at version %d.", *c.ExpectedVersion, a.Version)
	case a.Status == Closed:
		return nil, es.Refuse("ACCOUNT_CLOSED", "The account is closed.")
	case a.Type == External:
		return nil, es.Refuse("LIMITS_NOT_ALLOWED", "An EXTERNAL account mirrors the outside world; it has no limits.")
	case a.Type == User && lowest == nil:
		return nil, es.Refuse("LIMITS_NOT_ALLOWED", "A USER account has a minimum.")
	case lowest != nil && highest != nil && highest.LessThan(*lowest):
		return nil, es.Refuse("LIMITS_NOT_ALLOWED", "The maximum %s would be below the minimum %s.", a.Format(*highest), a.Format(*lowest))
	case sameLimit(lowest, a.MinBalance) && sameLimit(highest, a.MaxBalance) && !c.Keyed:
		return nil, nil
	}
	return []es.Fact{c.fact(a)}, nil
}

// fact is what the change leads to.
func (c ChangeLimits) fact(a Account) LimitsChanged {
	return LimitsChanged{
		PreviousMinBalance: limit(a.MinBalance, a.Scale), PreviousMaxBalance: limit(a.MaxBalance, a.Scale),
		MinBalance: limit(c.Min.or(a.MinBalance), a.Scale), MaxBalance: limit(c.Max.or(a.MaxBalance), a.Scale), Reason: c.Reason,
	}
}

// SameAs reports whether f is what this change, or one with the same content, led to.
func (c ChangeLimits) SameAs(f LimitsChanged) bool {
	return f.Reason == c.Reason && (!c.Min.Set || sameLimit(c.Min.Value, f.MinBalance.ptr())) && (!c.Max.Set || sameLimit(c.Max.Value, f.MaxBalance.ptr()))
}

func sameLimit(a, b *decimal.Decimal) bool {
	return a == nil && b == nil || a != nil && b != nil && a.Equal(*b)
}

// Post moves money for a saga's step. It always writes the step's register: done, or refused.
type Post struct {
	SagaID, Step string
	Direction    Direction
	Amount       decimal.Decimal
	Currency     string
	Reason       string
	HoldID       string // of a debit that captures: the hold; its reserve is what the debit takes
}

func (c Post) decide(a Account) ([]es.Fact, error) { //nolint:unparam // Command has the error
	after := a.Balance.Add(c.Direction.signed(c.Amount))
	if r := c.refusal(a, after); r != nil {
		return []es.Fact{PostingRefused{ //nolint:nilerr // the refusal of a money step is a fact
			ChangeAmount: amount(c.Amount, max(a.Scale, -c.Amount.Exponent())), ChangeType: c.Direction, Currency: c.Currency,
			SagaID: c.SagaID, Step: c.Step, ErrorReason: r.Reason, ErrorMessage: r.Message,
		}}, nil
	}
	return []es.Fact{a.moved(c.SagaID, c.Step, c.Reason, c.Direction, c.Amount).capturing(a, c.HoldID)}, nil
}

// refusal is the rule that says no, or nil.
func (c Post) refusal(a Account, after decimal.Decimal) *es.Refusal {
	if r := a.closedTo(c.Amount, c.Currency); r != nil {
		return r
	}
	switch {
	case c.HoldID != "":
		return a.uncovered(c.HoldID, c.Amount)
	case c.Direction == Debit:
		return a.lacks(c.Amount)
	case c.Direction == Credit && a.MaxBalance != nil && after.GreaterThan(*a.MaxBalance):
		return es.Refuse("MAX_BALANCE", "The balance would be %s %s, above the maximum of %s.", a.Format(after), a.Currency, a.Format(*a.MaxBalance))
	}
	return nil
}

// closedTo is the rule by which the account takes no part in a first leg of this amount, or nil.
func (a Account) closedTo(amount decimal.Decimal, currency string) *es.Refusal {
	switch {
	case !a.Exists():
		return es.Refuse("ACCOUNT_NOT_FOUND", "There is no such account.")
	case a.Status == Suspended:
		return es.Refuse("ACCOUNT_SUSPENDED", "The account is suspended.")
	case a.Status == Closing:
		return es.Refuse("ACCOUNT_CLOSING", "The account is closing.")
	case a.Status == Closed:
		return es.Refuse("ACCOUNT_CLOSED", "The account is closed.")
	case currency != a.Currency:
		return es.Refuse("CURRENCY_MISMATCH", "The account is in %s, the posting in %s.", a.Currency, currency)
	case !amount.IsPositive() || -amount.Exponent() > a.Scale:
		return es.Refuse("INVALID_ARGUMENT", "The amount %s is no positive amount of %s.", amount, a.Currency)
	}
	return nil
}

// lacks is the rule by which the account cannot spare the amount, or nil.
func (a Account) lacks(amount decimal.Decimal) *es.Refusal {
	after := a.Available().Sub(amount)
	switch {
	case a.MinBalance == nil || !after.LessThan(*a.MinBalance):
		return nil
	case a.MinBalance.IsZero() && a.Held.IsZero():
		return es.Refuse("INSUFFICIENT_FUNDS", "The account holds %s %s, less than %s.", a.Format(a.Balance), a.Currency, a.Format(amount))
	case a.MinBalance.IsZero():
		return es.Refuse("INSUFFICIENT_FUNDS", "The account has %s %s available, less than %s.", a.Format(a.Available()), a.Currency, a.Format(amount))
	case a.Held.IsZero():
		return es.Refuse("MIN_BALANCE", "The balance would be %s %s, below the minimum of %s.", a.Format(after), a.Currency, a.Format(*a.MinBalance))
	}
	return es.Refuse("MIN_BALANCE", "The available balance would be %s %s, below the minimum of %s.", a.Format(after), a.Currency, a.Format(*a.MinBalance))
}

// Cancel closes a step's register that nobody has written: the step will never be done. Sent with the step's own key, so
// that a register that was written before is the answer instead.
type Cancel struct{ SagaID, Step string }

func (c Cancel) decide(Account) ([]es.Fact, error) {
	return []es.Fact{PostingCancelled(c)}, nil
}

// Rollback undoes a posting that was done: Direction and Amount are the posting's own. Neither limits nor status refuse it:
// the money has nowhere else to go. An account that was closed meanwhile is not empty any more: it is suspended, so that
// somebody can let the money out and close it again.
type Rollback struct {
	SagaID, Step string // Step is the rollback's own
	Direction    Direction
	Amount       decimal.Decimal
	Reason       string
	HoldID       string // of a posting that captured: the hold, which holds the amount again
}

func (c Rollback) decide(a Account) ([]es.Fact, error) {
	if c.Direction != Debit && c.Direction != Credit {
		return nil, fmt.Errorf("step %s of saga %s moved no money: nothing to roll back", c.Step, c.SagaID)
	}
	facts := []es.Fact{a.moved(c.SagaID, c.Step, c.Reason, c.Direction.Opposite(), c.Amount).capturing(a, c.HoldID)}
	if a.Status == Closed {
		facts = append(facts, StatusChanged{PreviousStatus: Closed, NewStatus: Suspended, Reason: "money came back by " + c.Step})
	}
	return facts, nil
}

// moved is the event of money that moves.
func (a Account) moved(sagaID, step, reason string, d Direction, by decimal.Decimal) BalanceChanged {
	return BalanceChanged{
		PreviousBalance: amount(a.Balance, a.Scale), NewBalance: amount(a.Balance.Add(d.signed(by)), a.Scale),
		ChangeAmount: amount(by, a.Scale), ChangeType: d, Reason: reason, Currency: a.Currency, AccountType: a.Type,
		TransitChange: amount(d.Opposite().signed(by), a.Scale), SagaID: sagaID, Step: step, HeldBalance: amount(a.Held, a.Scale),
	}
}

// Register is what a step's register says.
type Register struct {
	Outcome    Outcome
	NewBalance string // done
	Available  string // done: posted minus held
	HoldID     string // done: the hold that was placed, captured or released; empty = none
	Direction  Direction
	Amount     decimal.Decimal // done, refused
	Currency   string          // done, refused
	Reason     string          // refused
	Message    string          // refused
}

// Outcome is the content of a register.
type Outcome string

// The outcomes.
const (
	Done      Outcome = "done"
	Refused   Outcome = "refused"
	Cancelled Outcome = "cancelled"
)

// ReadRegister reads a register from its event. ok is false for an event that is none.
func ReadRegister(f es.Fact) (r Register, ok bool) {
	switch f := f.(type) {
	case BalanceChanged:
		return done(f.NewBalance, f.HeldBalance, f.HoldID, f.ChangeType, f.ChangeAmount, f.Currency), true
	case FundsHeld:
		return done(f.Balance, f.HeldBalance, f.HoldID, Hold, f.Amount, f.Currency), true
	case FundsReleased:
		return done(f.Balance, f.HeldBalance, f.HoldID, Hold, f.Amount, f.Currency), true
	case PostingRefused:
		return Register{
			Outcome: Refused, Direction: f.ChangeType, Amount: decimal.Decimal(f.ChangeAmount), Currency: f.Currency,
			Reason: f.ErrorReason, Message: f.ErrorMessage,
		}, true
	case PostingCancelled:
		return Register{Outcome: Cancelled}, true
	}
	return Register{}, false
}

// done is the register of what was done.
func done(balance, held Amount, holdID string, d Direction, by Amount, currency string) Register {
	posted := decimal.Decimal(balance)
	scale := max(-posted.Exponent(), 0)
	return Register{
		Outcome: Done, NewBalance: posted.StringFixed(scale), Available: posted.Sub(decimal.Decimal(held)).StringFixed(scale),
		HoldID: holdID, Direction: d, Amount: decimal.Decimal(by), Currency: currency,
	}
}
