package account_test

import (
	"fmt"
	"testing"

	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/estest"
	"example.com/billing/services/account"
)

const (
	hold1 = "44444444-4444-4444-8444-444444444444"
	hold2 = "55555555-5555-4555-8555-555555555555"
)

func held(id, by, balance, after string) account.FundsHeld {
	return account.FundsHeld{
		HoldID: id, Amount: amt(by), Currency: "USD", Balance: amt(balance), HeldBalance: amt(after), SagaID: saga, Step: "place_hold",
	}
}

func released(id, by, balance, after string) account.FundsReleased {
	return account.FundsReleased{
		HoldID: id, Amount: amt(by), Currency: "USD", Balance: amt(balance), HeldBalance: amt(after), SagaID: saga, Step: "release_hold",
	}
}

// captured is a posting that takes from a hold, or gives back to it.
func captured(step string, dir account.Direction, before, by, after, id, heldChange, heldAfter string) account.BalanceChanged {
	f := moved(step, dir, before, by, after)
	f.HoldID, f.HeldChange, f.HeldBalance = id, amtPtr(heldChange), amt(heldAfter)
	return f
}

// refusedHold fails the test unless the hold was refused by a rule, with this reason and sentence.
func refusedHold(t *testing.T, then *estest.Then[account.Account], c account.PlaceHold, reason, message string) {
	t.Helper()
	then.Then(account.PostingRefused{
		ChangeAmount: account.Amount(c.Amount), ChangeType: account.Hold, Currency: c.Currency, SagaID: saga, Step: "place_hold",
		ErrorReason: reason, ErrorMessage: message,
	})
	knownReason(t, reason)
}

func place(amount string) account.PlaceHold {
	return account.PlaceHold{SagaID: saga, Step: "place_hold", HoldID: hold1, Amount: d(amount), Currency: "USD"}
}

func TestPlaceHold(t *testing.T) {
	funded := []es.Fact{created(), credited("100.00")}
	with := func(facts ...es.Fact) []es.Fact { return append(append([]es.Fact{}, funded...), facts...) }
	for _, tc := range []struct {
		name  string
		given []es.Fact
		when  account.PlaceHold
		then  account.FundsHeld
	}{
		{"part of the balance", funded, place("30.00"), held(hold1, "30.00", "100.00", "30.00")},
		{"all of it", funded, place("100.00"), held(hold1, "100.00", "100.00", "100.00")},
		{"beside another", with(held(hold2, "60.00", "100.00", "60.00")), place("40.00"), held(hold1, "40.00", "100.00", "100.00")},
		{"into an overdraft", []es.Fact{created(from("-10.00"))}, place("10.00"), held(hold1, "10.00", "0.00", "10.00")},
		{"above the maximum", []es.Fact{created(upTo("5.00"), from("-10.00"))}, place("9.00"), held(hold1, "9.00", "0.00", "9.00")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := estest.Given(t, account.Decider(), tc.given...).When(tc.when).Then(tc.then).State()
			if !a.Available().Equal(a.Balance.Sub(decimal.Decimal(tc.then.HeldBalance))) {
				t.Errorf("available %s of %s", a.Available(), a.Balance)
			}
		})
	}
	wrong := place("1.00")
	wrong.Currency = "EUR"
	for _, tc := range []struct {
		name            string
		given           []es.Fact
		when            account.PlaceHold
		reason, message string
	}{
		{"more than the balance", funded, place("100.01"), "INSUFFICIENT_FUNDS", "The account holds 100.00 USD, less than 100.01."},
		{"more than what is available", with(held(hold2, "60.00", "100.00", "60.00")), place("40.01"), "INSUFFICIENT_FUNDS", "The account has 40.00 USD available, less than 40.01."},
		{"beyond the overdraft", []es.Fact{created(from("-10.00"))}, place("10.01"), "MIN_BALANCE", "The balance would be -10.01 USD, below the minimum of -10.00."},
		{"no account", nil, place("1.00"), "ACCOUNT_NOT_FOUND", "There is no such account."},
		{"suspended", with(status(account.Active, account.Suspended)), place("1.00"), "ACCOUNT_SUSPENDED", "The account is suspended."},
		{"closing", []es.Fact{created(), status(account.Active, account.Closing)}, place("1.00"), "ACCOUNT_CLOSING", "The account is closing."},
		{"closed", []es.Fact{created(), status(account.Closing, account.Closed)}, place("1.00"), "ACCOUNT_CLOSED", "The account is closed."},
		{"another currency", funded, wrong, "CURRENCY_MISMATCH", "The account is in USD, the posting in EUR."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			refusedHold(t, estest.Given(t, account.Decider(), tc.given...).When(tc.when), tc.when, tc.reason, tc.message)
		})
	}
	t.Run("one more than an account can have", func(t *testing.T) {
		facts := []es.Fact{created(), credited("1000.00")}
		for i := range account.HoldsMax {
			facts = append(facts, held(fmt.Sprint("h", i), "1.00", "1000.00", fmt.Sprintf("%d.00", i+1)))
		}
		s := estest.Given(t, account.Decider(), facts...)
		refusedHold(t, s.When(place("1.00")), place("1.00"), "TOO_MANY_HOLDS", "The account has 256 open holds, as many as it can have.")
		s.When(account.ReleaseHold{SagaID: saga, Step: "release_hold", HoldID: "h0"})
		s.When(place("1.00")).Then(held(hold1, "1.00", "1000.00", "256.00"))
	})
}

// What is held is not there for debits.
func TestDebitsLeaveWhatIsHeld(t *testing.T) {
	s := estest.Given(t, account.Decider(), created(), credited("100.00"), held(hold1, "60.00", "100.00", "60.00"))
	s.When(post(account.Debit, "40.01")).Then(account.PostingRefused{
		ChangeAmount: amt("40.01"), ChangeType: account.Debit, Currency: "USD", SagaID: saga, Step: "step",
		ErrorReason: "INSUFFICIENT_FUNDS", ErrorMessage: "The account has 40.00 USD available, less than 40.01.",
	})
	f := moved("step", account.Debit, "100.00", "40.00", "60.00")
	f.HeldBalance = amt("60.00")
	if a := s.When(post(account.Debit, "40.00")).Then(f).State(); !a.Available().IsZero() || !a.Held.Equal(d("60")) {
		t.Errorf("available %s, held %s", a.Available(), a.Held)
	}
}

func TestCapture(t *testing.T) {
	given := []es.Fact{created(), credited("100.00"), held(hold1, "60.00", "100.00", "60.00")}
	capture := func(amount string, id string) account.Post {
		return post(account.Debit, amount, func(p *account.Post) { p.HoldID = id })
	}
	t.Run("part of it, the rest, and nothing more", func(t *testing.T) {
		s := estest.Given(t, account.Decider(), given...)
		s.When(capture("20.00", hold1)).Then(captured("step", account.Debit, "100.00", "20.00", "80.00", hold1, "-20.00", "40.00"))
		a := s.When(capture("40.00", hold1)).Then(captured("step", account.Debit, "80.00", "40.00", "40.00", hold1, "-40.00", "0.00")).State()
		if len(a.Holds) != 0 || !a.Available().Equal(d("40")) {
			t.Errorf("left %+v", a)
		}
		refusedCapture(t, s.When(capture("0.01", hold1)), "0.01", "HOLD_NOT_ACTIVE", "The account has no open hold "+hold1+".")
	})
	t.Run("more than it has", func(t *testing.T) {
		refusedCapture(t, estest.Given(t, account.Decider(), given...).When(capture("60.01", hold1)), "60.01",
			"CAPTURE_EXCEEDS_HOLD", "The hold has 60.00 USD left, less than 60.01.")
	})
	t.Run("another hold", func(t *testing.T) {
		refusedCapture(t, estest.Given(t, account.Decider(), given...).When(capture("1.00", hold2)), "1.00",
			"HOLD_NOT_ACTIVE", "The account has no open hold "+hold2+".")
	})
	t.Run("limits raised meanwhile do not matter: it was reserved", func(t *testing.T) {
		raised := account.LimitsChanged{PreviousMinBalance: amtPtr("0.00"), MinBalance: amtPtr("90.00"), Reason: "asked"}
		estest.Given(t, account.Decider(), append(given[:3:3], raised)...).When(capture("60.00", hold1)).
			Then(captured("step", account.Debit, "100.00", "60.00", "40.00", hold1, "-60.00", "0.00"))
	})
	t.Run("status matters", func(t *testing.T) {
		refusedCapture(t, estest.Given(t, account.Decider(), append(given[:3:3], status(account.Active, account.Suspended))...).When(capture("1.00", hold1)), "1.00",
			"ACCOUNT_SUSPENDED", "The account is suspended.")
	})
	t.Run("rolled back: the hold has it again", func(t *testing.T) {
		s := estest.Given(t, account.Decider(), append(given[:3:3], captured("step", account.Debit, "100.00", "60.00", "40.00", hold1, "-60.00", "0.00"))...)
		rollback := account.Rollback{SagaID: saga, Step: "undo", Direction: account.Debit, Amount: d("60.00"), Reason: "transfer", HoldID: hold1}
		a := s.When(rollback).Then(captured("undo", account.Credit, "40.00", "60.00", "100.00", hold1, "60.00", "60.00")).State()
		if !a.Holds[hold1].Equal(d("60")) || !a.Available().Equal(d("40")) {
			t.Errorf("left %+v", a)
		}
	})
}

func refusedCapture(t *testing.T, then *estest.Then[account.Account], amount, reason, message string) {
	t.Helper()
	then.Then(account.PostingRefused{
		ChangeAmount: amt(amount), ChangeType: account.Debit, Currency: "USD", SagaID: saga, Step: "step", ErrorReason: reason, ErrorMessage: message,
	})
	knownReason(t, reason)
}

func TestReleaseHold(t *testing.T) {
	release := account.ReleaseHold{SagaID: saga, Step: "release_hold", HoldID: hold1}
	given := []es.Fact{created(), credited("100.00"), held(hold1, "60.00", "100.00", "60.00")}
	for _, tc := range []struct {
		name  string
		given []es.Fact
		then  account.FundsReleased
	}{
		{"all of it", given, released(hold1, "60.00", "100.00", "0.00")},
		{"what a capture left", append(given[:3:3], captured("c", account.Debit, "100.00", "20.00", "80.00", hold1, "-20.00", "40.00")), released(hold1, "40.00", "80.00", "0.00")},
		{"nothing is left", given[:2], released(hold1, "0.00", "100.00", "0.00")},
		{"suspended", append(given[:3:3], status(account.Active, account.Suspended)), released(hold1, "60.00", "100.00", "0.00")},
		{"not the other one", append(given[:3:3], held(hold2, "10.00", "100.00", "70.00")), released(hold1, "60.00", "100.00", "10.00")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := estest.Given(t, account.Decider(), tc.given...).When(release).Then(tc.then).State()
			if !a.Held.Equal(decimal.Decimal(tc.then.HeldBalance)) || !a.Holds[hold1].IsZero() {
				t.Errorf("left %+v", a)
			}
		})
	}
}

func TestFinishClosing(t *testing.T) {
	closing := []es.Fact{created(), status(account.Active, account.Closing)}
	back := moved("credit_source_rollback", account.Credit, "0.00", "5.00", "5.00")
	gone := status(account.Closing, account.Closed)
	gone.Reason = "no transaction is under way"
	kept := status(account.Closing, account.Active)
	kept.Reason = "the last transactions left money on the account"
	suspendedAgain := kept
	suspendedAgain.NewStatus = account.Suspended
	for _, tc := range []struct {
		name  string
		given []es.Fact
		then  []es.Fact
	}{
		{"nothing on it", closing, []es.Fact{gone}},
		{"money came back", append(closing[:2:2], back), []es.Fact{kept}},
		{"money came back to what was suspended before", []es.Fact{created(), status(account.Active, account.Suspended), status(account.Suspended, account.Closing), status(account.Closing, account.Closing), back}, []es.Fact{suspendedAgain}},
		{"active", []es.Fact{created()}, nil},
		{"active again", append(closing[:2:2], status(account.Closing, account.Active)), nil},
		{"closed", append(closing[:2:2], gone), nil},
		{"no account", nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			finish := account.FinishClosing{Version: int64(len(tc.given))}
			estest.Given(t, account.Decider(), tc.given...).When(finish).Then(tc.then...)
			finish.Version-- // something has happened since: whether a transaction is under way was asked for another account
			estest.Given(t, account.Decider(), tc.given...).When(finish).ThenNothing()
		})
	}
}

// A closing account takes no first leg, and money that comes back all the same.
func TestPostWhileClosing(t *testing.T) {
	s := estest.Given(t, account.Decider(), created(), status(account.Active, account.Closing))
	s.When(post(account.Credit, "1.00")).Then(account.PostingRefused{
		ChangeAmount: amt("1.00"), ChangeType: account.Credit, Currency: "USD", SagaID: saga, Step: "step",
		ErrorReason: "ACCOUNT_CLOSING", ErrorMessage: "The account is closing.",
	})
	knownReason(t, "ACCOUNT_CLOSING")
	s.When(account.Rollback{SagaID: saga, Step: "undo", Direction: account.Debit, Amount: d("1.00"), Reason: "transfer"}).
		Then(moved("undo", account.Credit, "0.00", "1.00", "1.00"))
}
