package transaction

import (
	"fmt"

	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
)

// A payment caps its refunds, and a hold its captures: each takes its part of what is left in the same commit that accepts it,
// so that all of them together never exceed the whole, however many come at once.

// Reservation is the fact that a refund took its part of a payment, or a capture its part of a hold, or how that ended.
type Reservation struct {
	On            Type            `json:"-"` // Payment or Hold; in the event's name
	Step          ReservationStep `json:"-"` // in the event's name
	TransactionID string          `json:"transactionId"`
	Amount        string          `json:"amount"`          // at the currency's scale
	Final         bool            `json:"final,omitempty"` // of a hold: all of it has been captured now
}

// ReservationStep is what became of a reservation.
type ReservationStep string

// The steps: one taken, then one of the others.
const (
	Taken     ReservationStep = "taken"     // of what is left
	Paid      ReservationStep = "paid"      // the refund or capture completed
	Cancelled ReservationStep = "cancelled" // it did not; what it had taken is left again
)

// reservationNames name the events.
var reservationNames = map[Type]map[ReservationStep]string{
	Payment: {Taken: "PaymentRefundReserved", Paid: "PaymentRefunded", Cancelled: "PaymentRefundCancelled"},
	Hold:    {Taken: "HoldCaptureReserved", Paid: "HoldCaptured", Cancelled: "HoldCaptureCancelled"},
}

// EventType is HoldCaptureReserved and its like.
func (r Reservation) EventType() string { return reservationNames[r.On][r.Step] }

func (r Reservation) check() error {
	if _, err := decimal.NewFromString(r.Amount); err != nil {
		return fmt.Errorf("%s: amount %q: %w", r.EventType(), r.Amount, err)
	}
	return nil
}

// reserve is the payment or hold after a step of a reservation on it.
func (t Transaction) reserve(r Reservation) Transaction {
	amount, err := decimal.NewFromString(r.Amount)
	if err != nil {
		return t // decode has refused it already
	}
	switch r.Step {
	case Taken:
		t.Reserved = t.Reserved.Add(amount)
	case Paid:
		t.Reserved, t.Used = t.Reserved.Sub(amount), t.Used.Add(amount)
		if t.Type == Hold && t.Used.Equal(t.Amount) {
			t.HoldStatus = HoldCaptured
		}
	case Cancelled:
		t.Reserved = t.Reserved.Sub(amount)
	}
	return t
}

// settle is what the end of a refund, capture or release does to the payment or hold that reserved for it.
func (t Transaction) settle(id string, own Transaction, end Status) (es.Fact, error) {
	if own.Type == Release {
		if t.HoldStatus != HoldReleasing {
			return nil, defect("The hold %s is %s, and its release %s ends.", own.HoldID, t.HoldStatus, id)
		}
		return Released{TransactionID: id, Cause: own.Cause}, nil
	}
	if t.Reserved.LessThan(own.Amount) {
		return nil, defect("The %s %s has %s reserved, less than the %s of %s.", t.Type, own.ReservedOn(), t.Reserved, own.Amount, id)
	}
	r := Reservation{On: t.Type, Step: Cancelled, TransactionID: id, Amount: own.Format(own.Amount)}
	if end == Completed {
		r.Step = Paid
		r.Final = t.Type == Hold && t.Used.Add(own.Amount).Equal(t.Amount)
	}
	return r, nil
}
