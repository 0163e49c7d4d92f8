package reconcile

import (
	"fmt"
	"maps"
	"slices"

	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
	"example.com/billing/services/account"
	"example.com/billing/services/account/books"
)

// numbers checks what an event says of itself, before it is folded: here belongs each kind of event that has figures.
func (c *checked) numbers(version int64, f es.Fact) {
	switch f := f.(type) {
	case account.BalanceChanged:
		c.moved(version, f)
	case account.FundsHeld:
		c.reserved(version, f.SagaID, f.Step, f.Balance, decimal.Decimal(f.Amount), decimal.Decimal(f.HeldBalance))
		if by := decimal.Decimal(f.Amount); !by.IsPositive() {
			c.wrong(version, f.SagaID, f.Step, "above zero", by.String(), "The amount held")
		}
	case account.FundsReleased:
		by := decimal.Decimal(f.Amount)
		if left := c.state.Holds[f.HoldID]; !c.lost && !by.Equal(left) {
			c.wrong(version, f.SagaID, f.Step, left.String(), by.String(), "The amount released")
		}
		c.reserved(version, f.SagaID, f.Step, f.Balance, by.Neg(), decimal.Decimal(f.HeldBalance))
	}
}

// wrong is a figure of an event that does not fit.
func (c *checked) wrong(version int64, sagaID, step, expected, actual, what string) {
	c.find(Arithmetic, sagaID, expected, actual, "%s of version %d (%s) does not fit.", what, version, step)
}

// reserved checks what an event says of the posted and the held balance.
func (c *checked) reserved(version int64, sagaID, step string, balance account.Amount, change, held decimal.Decimal) {
	if c.lost {
		return
	}
	if posted := decimal.Decimal(balance); !posted.Equal(c.state.Balance) {
		c.wrong(version, sagaID, step, c.state.Balance.String(), posted.String(), "The posted balance")
	}
	if want := c.state.Held.Add(change); !held.Equal(want) {
		c.wrong(version, sagaID, step, want.String(), held.String(), "The held balance")
	}
}

// moved checks a posting.
func (c *checked) moved(version int64, f account.BalanceChanged) {
	before, after := decimal.Decimal(f.PreviousBalance), decimal.Decimal(f.NewBalance)
	change, by := after.Sub(before), decimal.Decimal(f.ChangeAmount)
	wrong := func(expected, actual fmt.Stringer, what string) {
		c.wrong(version, f.SagaID, f.Step, expected.String(), actual.String(), what)
	}
	held, heldChange := decimal.Decimal(f.HeldBalance), decimal.Zero
	if f.HeldChange != nil {
		if heldChange = decimal.Decimal(*f.HeldChange); !heldChange.Equal(change) {
			wrong(change, heldChange, "What a hold loses or gets back")
		}
	}
	if want := c.state.Held.Add(heldChange); !c.lost && !held.Equal(want) {
		wrong(want, held, "The held balance")
	}
	if !c.lost && !before.Equal(c.state.Balance) {
		wrong(c.state.Balance, before, "The previous balance")
	}
	c.lost = false
	signed := by
	if f.ChangeType == account.Debit {
		signed = by.Neg()
	}
	if !signed.Equal(change) || !by.IsPositive() {
		wrong(change.Abs(), by, "The amount")
	}
	if transit := decimal.Decimal(f.TransitChange); !transit.Equal(change.Neg()) {
		wrong(change.Neg(), transit, "What transit gains")
	}
	if c.state.Exists() && (f.Currency != c.state.Currency || f.AccountType != c.state.Type) {
		c.find(Arithmetic, f.SagaID, c.state.Currency+" "+string(c.state.Type), f.Currency+" "+string(f.AccountType),
			"Currency and account type of version %d (%s) are not the account's.", version, f.Step)
	}
}

// sums are the folded balances, by currency.
type sums map[string]*books.Totals

func (s sums) add(a account.Account) {
	t := s[a.Currency]
	if t == nil {
		t = &books.Totals{Currency: a.Currency}
		s[a.Currency] = t
	}
	switch a.Type {
	case account.User:
		t.User = t.User.Add(a.Balance)
	case account.External:
		t.External = t.External.Add(a.Balance)
	case account.System:
		t.System = t.System.Add(a.Balance)
	}
	t.InTransit = t.InTransit.Sub(a.Balance)
}

// compare compares with the books of the same position. A currency that was never moved has no row there.
func (s sums) compare(totals []books.Totals, report *Report) {
	stored := map[string]books.Totals{}
	for _, t := range totals {
		stored[t.Currency] = t
		if s[t.Currency] == nil {
			s[t.Currency] = &books.Totals{Currency: t.Currency}
		}
	}
	for _, currency := range slices.Sorted(maps.Keys(s)) {
		want, have := s[currency], stored[currency]
		for _, sum := range []struct {
			name       string
			want, have decimal.Decimal
		}{
			{"USER accounts", want.User, have.User}, {"EXTERNAL accounts", want.External, have.External},
			{"SYSTEM accounts", want.System, have.System}, {"money in transit", want.InTransit, have.InTransit},
			{"everything, which is zero", decimal.Zero, have.Difference()},
		} {
			if !sum.want.Equal(sum.have) {
				report.add(Finding{Kind: Books, Expected: sum.want.String() + " " + currency, Actual: sum.have.String() + " " + currency,
					Detail: fmt.Sprintf("The books' sum of %s in %s is not that of the events.", sum.name, currency)})
			}
		}
	}
}
