package account

import (
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
	}
	return []es.Fact{StatusChanged{PreviousStatus: a.Status, NewStatus: c.Status, Reason: c.Reason}}, nil
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
}

func (c Post) decide(a Account) ([]es.Fact, error) { //nolint:unparam // Command has the error
	after := a.Balance.Add(c.Direction.signed(c.Amount))
	if r := c.refusal(a, after); r != nil {
		return []es.Fact{PostingRefused{ //nolint:nilerr // the refusal of a money step is a fact
			ChangeAmount: amount(c.Amount, max(a.Scale, -c.Amount.Exponent())), ChangeType: c.Direction, Currency: c.Currency,
			SagaID: c.SagaID, Step: c.Step, ErrorReason: r.Reason, ErrorMessage: r.Message,
		}}, nil
	}
	return []es.Fact{a.moved(c.SagaID, c.Step, c.Reason, c.Direction, c.Amount)}, nil
}

// refusal is the rule that says no, or nil.
func (c Post) refusal(a Account, after decimal.Decimal) *es.Refusal {
	switch {
	case !a.Exists():
		return es.Refuse("ACCOUNT_NOT_FOUND", "There is no such account.")
	case a.Status == Suspended:
		return es.Refuse("ACCOUNT_SUSPENDED", "The account is suspended.")
	case a.Status == Closed:
		return es.Refuse("ACCOUNT_CLOSED", "The account is closed.")
	case c.Currency != a.Currency:
		return es.Refuse("CURRENCY_MISMATCH", "The account is in %s, the posting in %s.", a.Currency, c.Currency)
	case !c.Amount.IsPositive() || -c.Amount.Exponent() > a.Scale:
		return es.Refuse("INVALID_ARGUMENT", "The amount %s is no positive amount of %s.", c.Amount, a.Currency)
	case c.Direction == Debit && a.MinBalance != nil && after.LessThan(*a.MinBalance):
		if a.MinBalance.IsZero() {
			return es.Refuse("INSUFFICIENT_FUNDS", "The account holds %s %s, less than %s.", a.Format(a.Balance), a.Currency, a.Format(c.Amount))
		}
		return es.Refuse("MIN_BALANCE", "The balance would be %s %s, below the minimum of %s.", a.Format(after), a.Currency, a.Format(*a.MinBalance))
	case c.Direction == Credit && a.MaxBalance != nil && after.GreaterThan(*a.MaxBalance):
		return es.Refuse("MAX_BALANCE", "The balance would be %s %s, above the maximum of %s.", a.Format(after), a.Currency, a.Format(*a.MaxBalance))
	}
	return nil
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
}

func (c Rollback) decide(a Account) ([]es.Fact, error) { //nolint:unparam // Command has the error
	facts := []es.Fact{a.moved(c.SagaID, c.Step, c.Reason, c.Direction.Opposite(), c.Amount)}
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
		TransitChange: amount(d.Opposite().signed(by), a.Scale), SagaID: sagaID, Step: step,
	}
}

// Register is what a step's register says.
type Register struct {
	Outcome    Outcome
	NewBalance string // done
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
		d := decimal.Decimal(f.NewBalance)
		return Register{
			Outcome: Done, NewBalance: d.StringFixed(max(-d.Exponent(), 0)), Direction: f.ChangeType,
			Amount: decimal.Decimal(f.ChangeAmount), Currency: f.Currency,
		}, true
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
