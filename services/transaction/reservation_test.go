package transaction_test

import (
	"testing"
	"time"

	"github.com/shopspring/decimal"
	"pgregory.net/rapid"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/estest"
	"example.com/billing/services/transaction"
)

// The payment, the hold, and the transactions that are reserved on them.
const (
	paymentID = "44444444-4444-4444-8444-444444444444"
	holdID    = "55555555-5555-4555-8555-555555555555"
	otherID   = "66666666-6666-4666-8666-666666666666"
)

var (
	d       = decimal.RequireFromString
	expires = time.Date(2025, 12, 16, 12, 0, 0, 0, time.UTC)
	before  = expires.Add(-time.Hour)
)

func facts(f ...es.Fact) []es.Fact { return f }

// paid is a payment of 100.00 that completed.
func paid(more ...es.Fact) []es.Fact {
	f := requested(transaction.Payment)
	f.Amount = "100.00"
	return append(facts(f, ended(transaction.Payment, transaction.Completed)), more...)
}

// onHold is an active hold of 100.00.
func onHold(more ...es.Fact) []es.Fact {
	return append(facts(holdRequested(), ended(transaction.Hold, transaction.Completed)), more...)
}

func holdRequested() transaction.Requested {
	f := requested(transaction.Hold)
	f.Amount, f.ExpiresAt = "100.00", "2025-12-16T12:00:00.000Z"
	return f
}

func refund(amount string, change ...func(*transaction.Request)) transaction.Request {
	r := transaction.Request{
		ID: saga, Type: transaction.Refund, SourceID: dst, DestinationID: src, Scale: 2, Currency: "USD", PaymentID: paymentID,
		Reason: ref("damaged"), IdempotencyKey: "k-2", Whole: amount == "",
	}
	if amount != "" {
		r.Amount = d(amount)
	}
	for _, c := range change {
		c(&r)
	}
	return r
}

func refundRequested(amount string, whole bool) transaction.Requested {
	return transaction.Requested{
		Type: transaction.Refund, SourceID: dst, DestinationID: src, Amount: amount, Currency: "USD", IdempotencyKey: "k-2",
		PaymentID: paymentID, Whole: whole, Reason: ref("damaged"),
	}
}

func capture(amount string, change ...func(*transaction.Request)) transaction.Request {
	r := transaction.Request{
		ID: saga, Type: transaction.Payment, SourceID: src, DestinationID: dst, Scale: 2, Currency: "USD", HoldID: holdID,
		IdempotencyKey: "k-3", Whole: amount == "", At: before,
	}
	if amount != "" {
		r.Amount = d(amount)
	}
	for _, c := range change {
		c(&r)
	}
	return r
}

func captureRequested(amount string, whole bool) transaction.Requested {
	return transaction.Requested{
		Type: transaction.Payment, SourceID: src, DestinationID: dst, Amount: amount, Currency: "USD", IdempotencyKey: "k-3", HoldID: holdID, Whole: whole,
	}
}

func release(cause transaction.Cause) transaction.Request {
	return transaction.Request{ID: saga, Type: transaction.Release, SourceID: src, Scale: 2, Currency: "USD", HoldID: holdID, Cause: cause}
}

func releaseRequested(amount string, cause transaction.Cause) transaction.Requested {
	return transaction.Requested{Type: transaction.Release, SourceID: src, Amount: amount, Currency: "USD", HoldID: holdID, Cause: cause}
}

func reservation(on transaction.Type, step transaction.ReservationStep, amount string) transaction.Reservation {
	return transaction.Reservation{On: on, Step: step, TransactionID: saga, Amount: amount}
}

func TestRefund(t *testing.T) {
	taken := func(amount string) transaction.Reservation {
		return reservation(transaction.Payment, transaction.Taken, amount)
	}
	for _, tc := range []struct {
		name    string
		payment []es.Fact
		when    transaction.Request
		amount  string // accepted
		left    string // of the payment then
		refused string
	}{
		{"part", paid(), refund("40"), "40.00", "60", ""},
		{"all, by its amount", paid(), refund("100.00"), "100.00", "0", ""},
		{"all, by no amount", paid(), refund(""), "100.00", "0", ""},
		{"what is left beside a refund under way", paid(taken("70.00")), refund(""), "30.00", "0", ""},
		{"what is left after a refund", paid(taken("70.00"), reservation(transaction.Payment, transaction.Paid, "70.00")), refund("30.00"), "30.00", "0", ""},
		{"what a cancelled refund had taken", paid(taken("70.00"), reservation(transaction.Payment, transaction.Cancelled, "70.00")), refund("100.00"), "100.00", "0", ""},
		{"a captured hold", facts(captureRequested("100.00", false), ended(transaction.Payment, transaction.Completed)), refund("1.00"), "1.00", "99", ""},
		{"more than the payment", paid(), refund("100.01"), "", "", "REFUND_EXCEEDS_PAYMENT"},
		{"more than is left beside a refund under way", paid(taken("70.00")), refund("30.01"), "", "", "REFUND_EXCEEDS_PAYMENT"},
		{"all, when nothing is left", paid(taken("100.00")), refund(""), "", "", "REFUND_EXCEEDS_PAYMENT"},
		{"no such payment", nil, refund("1.00"), "", "", "TRANSACTION_NOT_FOUND"},
		{"a payment that has not ended", facts(requested(transaction.Payment)), refund("1.00"), "", "", "NOT_REFUNDABLE"},
		{"a payment that failed", facts(requested(transaction.Payment), ended(transaction.Payment, transaction.Failed)), refund("1.00"), "", "", "NOT_REFUNDABLE"},
		{"a payment that was undone", facts(requested(transaction.Payment), ended(transaction.Payment, transaction.Compensated)), refund("1.00"), "", "", "NOT_REFUNDABLE"},
		{"a refund", facts(refundRequested("5.00", false), ended(transaction.Refund, transaction.Completed)), refund("1.00"), "", "", "NOT_REFUNDABLE"},
		{"a transfer", facts(requested(transaction.Transfer), ended(transaction.Transfer, transaction.Completed)), refund("1.00"), "", "", "NOT_REFUNDABLE"},
		{"a hold", onHold(), refund("1.00"), "", "", "NOT_REFUNDABLE"},
		{"accounts that take no part", paid(), refund("1.00", func(r *transaction.Request) { r.Checked = es.Refuse("ACCOUNT_CLOSED", "closed") }), "", "", "ACCOUNT_CLOSED"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			then := estest.GivenPair(t, transaction.Decider(), nil, tc.payment).When(tc.when)
			if tc.refused != "" {
				then.ThenRefused(tc.refused)
				knownReason(t, tc.refused)
				return
			}
			own, on := then.Then(facts(refundRequested(tc.amount, tc.when.Whole)), facts(taken(tc.amount))).States()
			if own.ReservedOn() != paymentID || !on.Left().Equal(d(tc.left)) {
				t.Errorf("the payment is %+v", on)
			}
		})
	}
}

func TestRefundAgain(t *testing.T) {
	given := facts(refundRequested("40.00", false))
	on := paid(reservation(transaction.Payment, transaction.Taken, "40.00"))
	pair := func() *estest.PairScenario[transaction.Transaction, transaction.Command] {
		return estest.GivenPair(t, transaction.Decider(), given, on)
	}
	pair().When(refund("40.00")).ThenNothing()
	pair().When(refund("40.00", func(r *transaction.Request) { r.Checked = es.Refuse("ACCOUNT_CLOSED", "closed") })).ThenNothing()
	estest.GivenPair(t, transaction.Decider(), facts(refundRequested("40.00", true)), on).When(refund("")).ThenNothing()
	for name, c := range map[string]transaction.Request{
		"another amount":   refund("40.01"),
		"all that is left": refund(""),
		"another payment":  refund("40.00", func(r *transaction.Request) { r.PaymentID = otherID }),
		"another reason":   refund("40.00", func(r *transaction.Request) { r.Reason = nil }),
		"a capture":        capture("40.00"),
	} {
		t.Run(name, func(t *testing.T) { pair().When(c).ThenRefused("IDEMPOTENCY_CONFLICT") })
	}
}

func TestCapture(t *testing.T) {
	taken := func(amount string) transaction.Reservation {
		return reservation(transaction.Hold, transaction.Taken, amount)
	}
	late := func(r *transaction.Request) { r.At = expires }
	for _, tc := range []struct {
		name    string
		hold    []es.Fact
		when    transaction.Request
		amount  string
		refused string
	}{
		{"part", onHold(), capture("40"), "40.00", ""},
		{"all", onHold(), capture(""), "100.00", ""},
		{"the rest beside a capture under way", onHold(taken("70.00")), capture(""), "30.00", ""},
		{"once more", onHold(taken("70.00"), reservation(transaction.Hold, transaction.Paid, "70.00")), capture("30.00"), "30.00", ""},
		{"what a cancelled capture had taken", onHold(taken("70.00"), reservation(transaction.Hold, transaction.Cancelled, "70.00")), capture("100.00"), "100.00", ""},
		{"more than the hold", onHold(), capture("100.01"), "", "CAPTURE_EXCEEDS_HOLD"},
		{"more than is left beside a capture under way", onHold(taken("70.00")), capture("30.01"), "", "CAPTURE_EXCEEDS_HOLD"},
		{"the last moment", onHold(), capture("1.00", func(r *transaction.Request) { r.At = expires.Add(-time.Millisecond) }), "1.00", ""},
		{"too late", onHold(), capture("1.00", late), "", "HOLD_NOT_ACTIVE"},
		{"not placed yet", facts(holdRequested()), capture("1.00"), "", "HOLD_NOT_ACTIVE"},
		{"refused", facts(holdRequested(), ended(transaction.Hold, transaction.Failed)), capture("1.00"), "", "HOLD_NOT_ACTIVE"},
		{"being released", onHold(transaction.ReleaseStarted{TransactionID: otherID, Cause: transaction.Void}), capture("1.00"), "", "HOLD_NOT_ACTIVE"},
		{"all captured", onHold(taken("100.00"), reservation(transaction.Hold, transaction.Paid, "100.00")), capture(""), "", "HOLD_NOT_ACTIVE"},
		{"no hold", nil, capture("1.00"), "", "HOLD_NOT_FOUND"},
		{"a payment", paid(), capture("1.00"), "", "HOLD_NOT_FOUND"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			then := estest.GivenPair(t, transaction.Decider(), nil, tc.hold).When(tc.when)
			if tc.refused != "" {
				then.ThenRefused(tc.refused)
				knownReason(t, tc.refused)
				return
			}
			own, on := then.Then(facts(captureRequested(tc.amount, tc.when.Whole)), facts(taken(tc.amount))).States()
			if own.ReservedOn() != holdID || own.Type != transaction.Payment || on.HoldStatus != transaction.HoldActive || on.Left().IsNegative() {
				t.Errorf("%+v on %+v", own, on)
			}
		})
	}
}

func TestRelease(t *testing.T) {
	taken := reservation(transaction.Hold, transaction.Taken, "70.00")
	for _, tc := range []struct {
		name    string
		hold    []es.Fact
		amount  string
		refused string
	}{
		{"all of it", onHold(), "100.00", ""},
		{"what a capture left", onHold(taken, reservation(transaction.Hold, transaction.Paid, "70.00")), "30.00", ""},
		{"what a cancelled capture gave back", onHold(taken, reservation(transaction.Hold, transaction.Cancelled, "70.00")), "100.00", ""},
		{"while a capture is under way", onHold(taken), "", "CAPTURE_UNDER_WAY"},
		{"not placed yet", facts(holdRequested()), "", "HOLD_NOT_ACTIVE"},
		{"no hold", nil, "", "HOLD_NOT_FOUND"},
	} {
		for _, cause := range []transaction.Cause{transaction.Void, transaction.Expiry} {
			t.Run(tc.name+", "+string(cause), func(t *testing.T) {
				s := estest.GivenPair(t, transaction.Decider(), nil, tc.hold)
				then := s.When(release(cause))
				if tc.refused != "" {
					then.ThenRefused(tc.refused)
					knownReason(t, tc.refused)
					return
				}
				_, on := then.Then(facts(releaseRequested(tc.amount, cause)), facts(transaction.ReleaseStarted{TransactionID: saga, Cause: cause})).States()
				if on.HoldStatus != transaction.HoldReleasing {
					t.Errorf("the hold is %s", on.HoldStatus)
				}
				s.When(release(cause)).ThenNothing()
				other := map[transaction.Cause]transaction.Cause{transaction.Void: transaction.Expiry, transaction.Expiry: transaction.Void}[cause]
				s.When(release(other)).ThenRefused("HOLD_NOT_ACTIVE")
				_, on = s.When(transaction.Settle{Status: transaction.Completed, SagaID: saga, ReservedOn: holdID}).
					Then(facts(transaction.Ended{Type: transaction.Release, Status: transaction.Completed, SagaID: saga}), facts(transaction.Released{TransactionID: saga, Cause: cause})).States()
				want := map[transaction.Cause]transaction.HoldStatus{transaction.Void: transaction.HoldVoided, transaction.Expiry: transaction.HoldExpired}[cause]
				if on.HoldStatus != want || !on.Remaining().IsZero() {
					t.Errorf("the hold is %s, %s remain", on.HoldStatus, on.Remaining())
				}
			})
		}
	}
}

// The end of a refund or capture is the end of its reservation, in the same commit.
func TestSettleReserved(t *testing.T) {
	for _, tc := range []struct {
		name       string
		own        transaction.Requested
		on         []es.Fact
		status     transaction.Status
		step       transaction.ReservationStep
		used, left string
		final      bool
		holdStatus transaction.HoldStatus
	}{
		{"refund completed", refundRequested("40.00", false), paid(reservation(transaction.Payment, transaction.Taken, "40.00")), transaction.Completed, transaction.Paid, "40", "60", false, ""},
		{"refund failed", refundRequested("40.00", false), paid(reservation(transaction.Payment, transaction.Taken, "40.00")), transaction.Failed, transaction.Cancelled, "0", "100", false, ""},
		{"refund undone", refundRequested("40.00", false), paid(reservation(transaction.Payment, transaction.Taken, "40.00")), transaction.Compensated, transaction.Cancelled, "0", "100", false, ""},
		{"refund of all completed", refundRequested("100.00", true), paid(reservation(transaction.Payment, transaction.Taken, "100.00")), transaction.Completed, transaction.Paid, "100", "0", false, ""},
		{"capture completed", captureRequested("40.00", false), onHold(reservation(transaction.Hold, transaction.Taken, "40.00")), transaction.Completed, transaction.Paid, "40", "60", false, transaction.HoldActive},
		{"capture failed", captureRequested("40.00", false), onHold(reservation(transaction.Hold, transaction.Taken, "40.00")), transaction.Failed, transaction.Cancelled, "0", "100", false, transaction.HoldActive},
		{"capture undone", captureRequested("40.00", false), onHold(reservation(transaction.Hold, transaction.Taken, "40.00")), transaction.Compensated, transaction.Cancelled, "0", "100", false, transaction.HoldActive},
		{"capture of all completed", captureRequested("100.00", true), onHold(reservation(transaction.Hold, transaction.Taken, "100.00")), transaction.Completed, transaction.Paid, "100", "0", true, transaction.HoldCaptured},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := estest.GivenPair(t, transaction.Decider(), facts(tc.own), tc.on)
			end := transaction.Settle{Status: tc.status, SagaID: saga, ReservedOn: paymentID, ErrorReason: "R", ErrorMessage: "m"}
			kind := transaction.Payment
			if tc.holdStatus != "" {
				kind, end.ReservedOn = transaction.Hold, holdID
			}
			wrong := end
			wrong.ReservedOn = otherID
			s.When(wrong).ThenRefused("INTERNAL")
			r := reservation(kind, tc.step, tc.own.Amount)
			r.Final = tc.final
			own, on := s.When(end).Then(
				facts(transaction.Ended{Type: tc.own.Type, Status: tc.status, SagaID: saga, ErrorReason: "R", ErrorMessage: "m"}), facts(r)).States()
			if own.Status != tc.status || !on.Used.Equal(d(tc.used)) || !on.Left().Equal(d(tc.left)) || on.HoldStatus != tc.holdStatus {
				t.Errorf("%s: used %s, left %s, %s", own.Status, on.Used, on.Left(), on.HoldStatus)
			}
			s.When(end).ThenNothing()
		})
	}
	t.Run("not without what it is reserved on", func(t *testing.T) {
		for _, own := range []transaction.Requested{refundRequested("40.00", false), captureRequested("40.00", false), releaseRequested("40.00", transaction.Void)} {
			if f, err := transaction.Decider().Decide(stateAfter(t, facts(own)), transaction.Settle{Status: transaction.Completed, SagaID: saga}); err == nil {
				t.Errorf("%s settled alone: %v", own.Type, f)
			}
		}
		for _, c := range []transaction.Request{refund("1.00"), capture("1.00"), release(transaction.Void)} {
			if f, err := transaction.Decider().Decide(transaction.Transaction{}, c); err == nil {
				t.Errorf("%s asked for alone: %v", c.Type, f)
			}
		}
	})
	t.Run("not what was never reserved", func(t *testing.T) {
		then := estest.GivenPair(t, transaction.Decider(), facts(refundRequested("40.00", false)), paid()).When(transaction.Settle{Status: transaction.Completed, SagaID: saga, ReservedOn: paymentID})
		then.ThenRefused("INTERNAL")
	})
}

func TestHold(t *testing.T) {
	want := func(status transaction.HoldStatus, got transaction.Transaction, remaining string) {
		t.Helper()
		if got.HoldStatus != status || !got.Remaining().Equal(d(remaining)) || !got.ExpiresAt.Equal(expires) {
			t.Errorf("the hold is %s, %s remain until %s", got.HoldStatus, got.Remaining(), got.ExpiresAt)
		}
	}
	ask := request(func(r *transaction.Request) { r.Type, r.Amount, r.ExpiresAt = transaction.Hold, d("100"), expires })
	s := estest.Given(t, transaction.Decider())
	want(transaction.HoldPending, s.When(ask).Then(holdRequested()).State(), "0")
	s.When(ask).ThenNothing()
	later := ask
	later.ExpiresAt = expires.Add(time.Second)
	s.When(later).ThenRefused("IDEMPOTENCY_CONFLICT")
	want(transaction.HoldActive, s.When(transaction.Settle{Status: transaction.Completed, SagaID: saga}).Then(ended(transaction.Hold, transaction.Completed)).State(), "100")
	failed := estest.Given(t, transaction.Decider(), holdRequested()).When(transaction.Settle{Status: transaction.Failed, SagaID: saga, ErrorReason: "INSUFFICIENT_FUNDS", ErrorMessage: "The account holds 0.00 USD, less than 50.00."})
	want(transaction.HoldFailed, failed.Then(ended(transaction.Hold, transaction.Failed)).State(), "0")
	if f, err := transaction.Decider().Decide(stateAfter(t, facts(holdRequested())), transaction.Settle{Status: transaction.Compensated, SagaID: saga}); err == nil {
		t.Errorf("a hold was undone: %v", f)
	}
	t.Run("the default time is another one when it is asked for again", func(t *testing.T) {
		ask := ask
		ask.DefaultExpiry = true
		s := estest.Given(t, transaction.Decider())
		s.When(ask)
		ask.ExpiresAt = expires.Add(time.Minute)
		s.When(ask).ThenNothing()
		ask.DefaultExpiry = false
		s.When(ask).ThenRefused("IDEMPOTENCY_CONFLICT")
	})
}

// Whatever is asked for in whatever order, and however it ends: what is reserved and used of a payment or hold never exceeds
// it, and is the sum of what was accepted and has not been cancelled.
func TestReservationsNeverExceed(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dec := transaction.Decider()
		isHold := rapid.Bool().Draw(rt, "hold")
		on := dec.New()
		given := paid()
		if isHold {
			given = onHold()
		}
		for i, f := range given {
			on.State, on.Version = dec.Evolve(on.State, f, es.Occurred{Version: int64(i + 1)}), int64(i+1)
		}
		var open []es.Root[transaction.Transaction]
		reserved, used := decimal.Zero, decimal.Zero
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			if len(open) > 0 && rapid.Bool().Draw(rt, "settle") {
				i := rapid.IntRange(0, len(open)-1).Draw(rt, "which")
				end := rapid.SampledFrom([]transaction.Status{transaction.Completed, transaction.Failed, transaction.Compensated}).Draw(rt, "end")
				amount := open[i].State.Amount
				if _, err := dec.ApplyPair(&open[i], &on, es.Stream{ID: "r"}, es.Stream{ID: "p"}, es.Command[transaction.Command]{ID: "s", Body: transaction.Settle{Status: end, SagaID: saga, ReservedOn: open[i].State.ReservedOn()}}); err != nil {
					rt.Fatal(err)
				}
				reserved = reserved.Sub(amount)
				if end == transaction.Completed {
					used = used.Add(amount)
				}
				open = append(open[:i:i], open[i+1:]...)
			} else {
				amount := ""
				if !rapid.Bool().Draw(rt, "whole") {
					amount = decimal.New(rapid.Int64Range(1, 12000).Draw(rt, "cents"), -2).String()
				}
				c := refund(amount)
				if isHold {
					c = capture(amount)
				}
				own := dec.New()
				_, err := dec.ApplyPair(&own, &on, es.Stream{ID: "r"}, es.Stream{ID: "p"}, es.Command[transaction.Command]{ID: "r", Body: c})
				fits := amount == "" && used.Add(reserved).LessThan(d("100")) || amount != "" && used.Add(reserved).Add(d(amount)).LessThanOrEqual(d("100"))
				if (err == nil) != fits || err != nil && es.RefusalOf(err) == nil {
					rt.Fatalf("%s of what %s and %s are taken: %v", amount, used, reserved, err)
				}
				if err == nil {
					reserved = reserved.Add(own.State.Amount)
					open = append(open, own)
				}
			}
			if !on.State.Reserved.Equal(reserved) || !on.State.Used.Equal(used) || on.State.Left().IsNegative() {
				rt.Fatalf("reserved %s, used %s, want %s, %s", on.State.Reserved, on.State.Used, reserved, used)
			}
		}
	})
}
