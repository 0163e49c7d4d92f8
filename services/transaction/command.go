package transaction

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
)

// Command is what can be asked of a transaction, or of one together with the payment or hold that reserves for it.
type Command interface {
	decide(t Transaction) ([]es.Fact, error)
	decidePair(own, other Transaction) (ownFacts, otherFacts []es.Fact, err error)
}

// Request asks for a transaction. Its values are checked at the edge. A refund is asked for together with its payment, a
// capture and a release together with their hold.
type Request struct {
	ID                      string // the transaction's own, for the payment or hold to know it by
	Type                    Type
	SourceID, DestinationID string // of a refund: the payment's, the other way round
	Amount                  decimal.Decimal
	Whole                   bool // of a refund or capture: not this amount, but all that is left
	Scale                   int32
	Currency                string
	Reference               *string
	Metadata                map[string]any
	IdempotencyKey          string
	PaymentID               string    // of a refund
	HoldID                  string    // of a capture or release
	Reason                  *string   // of a refund or release
	ExpiresAt               time.Time // of a hold
	DefaultExpiry           bool      // of a hold: nobody asked for that time
	Cause                   Cause     // of a release
	At                      time.Time // of a capture: when it was asked for
	// Checked is what the accounts say: nil = they take part, a *es.Refusal = they do not, another error = not known. It
	// does not touch a transaction that was accepted before.
	Checked error
}

func (c Request) decide(t Transaction) ([]es.Fact, error) {
	switch {
	case t.Exists():
		return nil, c.repeats(t)
	case c.Checked != nil:
		return nil, c.Checked
	case c.PaymentID != "" || c.HoldID != "":
		return nil, defect("A %s is decided together with what it is reserved on.", c.Type)
	}
	return []es.Fact{c.fact(c.Amount)}, nil
}

func (c Request) decidePair(t, on Transaction) (own, other []es.Fact, err error) {
	if t.Exists() {
		return nil, nil, c.repeats(t)
	}
	rule := map[Type]func(Transaction) *es.Refusal{Refund: c.refundable, Payment: c.capturable, Release: c.releasable}[c.Type]
	if rule == nil {
		return nil, nil, defect("A %s is reserved on nothing.", c.Type)
	}
	if r := rule(on); r != nil {
		return nil, nil, r
	}
	if c.Checked != nil {
		return nil, nil, c.Checked
	}
	amount := c.Amount
	if c.Whole || c.Type == Release {
		amount = on.Left()
	}
	if c.Type == Release {
		return []es.Fact{c.fact(amount)}, []es.Fact{ReleaseStarted{TransactionID: c.ID, Cause: c.Cause}}, nil
	}
	if r := on.spares(amount); r != nil {
		return nil, nil, r
	}
	return []es.Fact{c.fact(amount)}, []es.Fact{
		Reservation{On: on.Type, Step: Taken, TransactionID: c.ID, Amount: amount.StringFixed(c.Scale)},
	}, nil
}

// refundable is the rule by which a payment cannot be refunded, or nil.
func (c Request) refundable(on Transaction) *es.Refusal {
	switch {
	case !on.Exists():
		return es.Refuse("TRANSACTION_NOT_FOUND", "There is no transaction %s.", c.PaymentID)
	case on.Type != Payment:
		return es.Refuse("NOT_REFUNDABLE", "The transaction %s is a %s; only a payment can be refunded.", c.PaymentID, on.Type)
	case on.Status != Completed:
		return es.Refuse("NOT_REFUNDABLE", "The payment %s is %s; only a completed one can be refunded.", c.PaymentID, on.Status)
	}
	return nil
}

// capturable is the rule by which a hold cannot be captured, or nil.
func (c Request) capturable(on Transaction) *es.Refusal {
	r := c.active(on)
	if r == nil && !c.At.Before(on.ExpiresAt) {
		r = es.Refuse("HOLD_NOT_ACTIVE", "The hold expired at %s.", on.ExpiresAt.Format(time.RFC3339))
	}
	return r
}

// releasable is the rule by which a hold cannot be released, or nil.
func (c Request) releasable(on Transaction) *es.Refusal {
	r := c.active(on)
	if r == nil && on.Reserved.IsPositive() {
		r = es.Refuse("CAPTURE_UNDER_WAY", "A capture of %s %s is under way.", on.Format(on.Reserved), on.Currency)
	}
	return r
}

// active is the rule by which there is no active hold, or nil.
func (c Request) active(on Transaction) *es.Refusal {
	switch {
	case !on.Exists() || on.Type != Hold:
		return es.Refuse("HOLD_NOT_FOUND", "There is no hold %s.", c.HoldID)
	case on.HoldStatus != HoldActive:
		return es.Refuse("HOLD_NOT_ACTIVE", "The hold is %s.", on.HoldStatus)
	}
	return nil
}

// spares is the rule by which a payment or hold cannot spare the amount, or nil.
func (t Transaction) spares(amount decimal.Decimal) *es.Refusal {
	left := t.Left()
	if amount.IsPositive() && !left.LessThan(amount) {
		return nil
	}
	switch {
	case t.Type == Hold && left.IsZero():
		return es.Refuse("CAPTURE_EXCEEDS_HOLD", "Nothing is left of the hold: captures under way have taken all of it.")
	case left.IsZero():
		return es.Refuse("REFUND_EXCEEDS_PAYMENT", "Nothing is left of the payment: it is refunded, or refunds under way have taken all of it.")
	case t.Type == Hold:
		return es.Refuse("CAPTURE_EXCEEDS_HOLD", "%s %s of the hold can still be captured, %s was asked for.", t.Format(left), t.Currency, t.Format(amount))
	}
	return es.Refuse("REFUND_EXCEEDS_PAYMENT", "%s %s of the payment can still be refunded, %s was asked for.", t.Format(left), t.Currency, t.Format(amount))
}

// fact is what the request leads to.
func (c Request) fact(amount decimal.Decimal) Requested {
	r := Requested{
		Type: c.Type, SourceID: c.SourceID, DestinationID: c.DestinationID, Amount: amount.StringFixed(c.Scale), Currency: c.Currency,
		Reference: c.Reference, Metadata: c.Metadata, IdempotencyKey: c.IdempotencyKey,
		PaymentID: c.PaymentID, HoldID: c.HoldID, Whole: c.Whole, Reason: c.Reason, DefaultExpiry: c.DefaultExpiry, Cause: c.Cause,
	}
	if c.Type == Hold {
		r.ExpiresAt = c.ExpiresAt.UTC().Format(es.TimeFormat)
	}
	return r
}

// repeats is nil if the request is the one that was accepted before, else the refusal that names the difference.
func (c Request) repeats(t Transaction) error {
	if c.Type == Release && t.Type == Release { // its id is the hold's own: there is no key to be used for something else
		if c.Cause != t.Cause {
			return es.Refuse("HOLD_NOT_ACTIVE", "The hold has been released by %s.", t.Cause)
		}
		return nil
	}
	if names := c.differences(t); len(names) > 0 {
		return es.Refuse("IDEMPOTENCY_CONFLICT", "The idempotency key was used for another request; it differs in %s.", strings.Join(names, ", "))
	}
	return nil
}

// differences names what a repeat asks for that the first request did not.
func (c Request) differences(t Transaction) []string {
	source, destination := "sourceAccountId", "destinationAccountId"
	switch {
	case c.Type == Hold:
		source = "accountId"
	case c.Type == Payment && c.HoldID == "":
		source, destination = "customerAccountId", "merchantAccountId"
	}
	var names []string
	for _, f := range []struct {
		name string
		same bool
	}{
		{"type", c.Type == t.Type},
		{"paymentId", c.PaymentID == t.PaymentID},
		{"holdId", c.HoldID == t.HoldID},
		{source, c.SourceID == t.SourceID},
		{destination, c.DestinationID == t.DestinationID},
		{"amount", c.Whole == t.Whole && (c.Whole || c.Amount.Equal(t.Amount))},
		{"currency", c.Currency == t.Currency},
		{"expiresAt", c.DefaultExpiry == t.DefaultExpiry && (c.DefaultExpiry || c.ExpiresAt.Equal(t.ExpiresAt))},
		{"reference", equal(c.Reference, t.Reference)},
		{"reason", equal(c.Reason, t.Reason)},
		{"metadata", equalJSON(c.Metadata, t.Metadata)},
	} {
		if !f.same {
			names = append(names, f.name)
		}
	}
	return names
}

func equal(a, b *string) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

func equalJSON(a, b map[string]any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && (string(x) == string(y) || len(a) == 0 && len(b) == 0)
}

// Settle ends a transaction, together with the payment or hold that reserved for it if there is one. The first end is final.
type Settle struct {
	Status       Status // Completed, Failed or Compensated
	SagaID       string
	ReservedOn   string // the payment or hold that reserved for it; empty = none
	ErrorReason  string
	ErrorMessage string
}

func (c Settle) decide(t Transaction) ([]es.Fact, error) {
	switch {
	case !t.Exists():
		return nil, es.Refuse("TRANSACTION_NOT_FOUND", "There is no such transaction.")
	case t.Status == c.Status:
		return nil, nil
	case t.Ended():
		return nil, es.Refuse("TRANSACTION_ENDED", "The transaction is %s; it cannot become %s.", t.Status, c.Status)
	case endedNames[t.Type][c.Status] == "":
		return nil, defect("A %s does not end as %q.", t.Type, c.Status)
	case t.ReservedOn() != c.ReservedOn:
		return nil, defect("The %s is reserved on %q, not on %q.", t.Type, t.ReservedOn(), c.ReservedOn)
	}
	return []es.Fact{c.fact(t)}, nil
}

func (c Settle) decidePair(t, on Transaction) (own, other []es.Fact, err error) {
	own, err = c.decide(t)
	if err != nil || len(own) == 0 || c.ReservedOn == "" {
		return own, nil, err
	}
	settled, err := on.settle(c.SagaID, t, c.Status)
	if err != nil {
		return nil, nil, err
	}
	return own, []es.Fact{settled}, nil
}

// defect refuses what only a mistake of ours asks for: asking again cannot help, and a person must look.
func defect(format string, args ...any) error { return es.Refuse("INTERNAL", format, args...) }

func (c Settle) fact(t Transaction) Ended {
	return Ended{Type: t.Type, Status: c.Status, SagaID: c.SagaID, ErrorReason: c.ErrorReason, ErrorMessage: c.ErrorMessage}
}
