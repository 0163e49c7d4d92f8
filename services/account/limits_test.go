package account_test

import (
	"testing"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/estest"
	"example.com/billing/services/account"
)

func limits(lowest, highest string, reason string) account.ChangeLimits {
	set := func(s string) account.Limit {
		if s == "" {
			return account.Limit{Set: true}
		}
		v := d(s)
		return account.Limit{Set: true, Value: &v}
	}
	return account.ChangeLimits{Min: set(lowest), Max: set(highest), Reason: reason}
}

func TestChangeLimits(t *testing.T) {
	open := created(upTo("100.00"))
	t.Run("an overdraft and a higher maximum", func(t *testing.T) {
		s := estest.Given(t, account.Decider(), open)
		s.When(limits("-50.00", "500.00", "good customer")).Then(account.LimitsChanged{
			PreviousMinBalance: amtPtr("0.00"), PreviousMaxBalance: amtPtr("100.00"), MinBalance: amtPtr("-50.00"), MaxBalance: amtPtr("500.00"), Reason: "good customer",
		})
		s.When(post(account.Debit, "50.00")).Then(moved("step", account.Debit, "0.00", "50.00", "-50.00"))
		s.When(limits("-50.00", "500.00", "again")).ThenNothing()
	})
	t.Run("one limit stays when only the other is named", func(t *testing.T) {
		highest := d("7.00")
		s := estest.Given(t, account.Decider(), open).When(account.ChangeLimits{Max: account.Limit{Set: true, Value: &highest}, Reason: "r"}).
			Then(account.LimitsChanged{PreviousMinBalance: amtPtr("0.00"), PreviousMaxBalance: amtPtr("100.00"), MinBalance: amtPtr("0.00"), MaxBalance: amtPtr("7.00"), Reason: "r"}).State()
		if s.MinBalance == nil || !s.MinBalance.IsZero() {
			t.Errorf("minimum %v", s.MinBalance)
		}
	})
	t.Run("the maximum goes", func(t *testing.T) {
		if s := estest.Given(t, account.Decider(), open).When(limits("0.00", "", "r")).State(); s.MaxBalance != nil {
			t.Errorf("maximum %v", s.MaxBalance)
		}
	})
	t.Run("the balance may lie outside, but goes no further", func(t *testing.T) {
		s := estest.Given(t, account.Decider(), open, credited("60.00"))
		s.When(limits("0.00", "10.00", "r"))
		if got := s.When(post(account.Credit, "1.00")).State(); got.Format(got.Balance) != "60.00" {
			t.Errorf("balance %s", got.Balance)
		}
		s.When(post(account.Debit, "60.00")).Then(moved("step", account.Debit, "60.00", "60.00", "0.00"))
	})
	stale := int64(7)
	for name, tc := range map[string]struct {
		given  []es.Fact
		when   account.ChangeLimits
		reason string
	}{
		"no account":             {nil, limits("0.00", "1.00", "r"), "ACCOUNT_NOT_FOUND"},
		"stale":                  {[]es.Fact{open}, account.ChangeLimits{ExpectedVersion: &stale, Reason: "r"}, "VERSION_CONFLICT"},
		"closed":                 {[]es.Fact{open, status(account.Active, account.Closed)}, limits("0.00", "1.00", "r"), "ACCOUNT_CLOSED"},
		"external":               {[]es.Fact{created(func(c *account.Created) { c.AccountType, c.MinBalance, c.MaxBalance = account.External, nil, nil })}, limits("0.00", "1.00", "r"), "LIMITS_NOT_ALLOWED"},
		"a user without minimum": {[]es.Fact{open}, limits("", "1.00", "r"), "LIMITS_NOT_ALLOWED"},
		"crossed":                {[]es.Fact{open}, limits("2.00", "1.00", "r"), "LIMITS_NOT_ALLOWED"},
	} {
		t.Run(name, func(t *testing.T) {
			estest.Given(t, account.Decider(), tc.given...).When(tc.when).ThenRefused(tc.reason)
		})
	}
}
