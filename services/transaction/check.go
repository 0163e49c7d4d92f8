package transaction

import (
	"slices"
	"strings"

	"example.com/billing/pkg/es"
)

// Side is what a transaction must know of one of its accounts.
type Side struct {
	Found       bool
	AccountType string // USER, EXTERNAL or SYSTEM
	Currency    string
	Status      string // active, suspended, closing or closed
}

// allowed lists the account types that may stand on each side.
var allowed = map[Type]struct{ source, destination []string }{
	Topup:      {[]string{"EXTERNAL"}, []string{"USER"}},
	Withdrawal: {[]string{"USER"}, []string{"EXTERNAL"}},
	Transfer:   {[]string{"USER", "SYSTEM"}, []string{"USER", "SYSTEM"}},
	Payment:    {[]string{"USER"}, []string{"USER", "SYSTEM"}},
	Refund:     {[]string{"USER", "SYSTEM"}, []string{"USER"}},
	Hold:       {[]string{"USER"}, []string{"USER", "SYSTEM"}},
}

// closedTo names the statuses in which an account takes no part.
var closedTo = map[string]struct{ reason, sentence string }{
	"suspended": {"ACCOUNT_SUSPENDED", "is suspended"},
	"closing":   {"ACCOUNT_CLOSING", "is closing"},
	"closed":    {"ACCOUNT_CLOSED", "is closed"},
}

// Check refuses a transaction that its accounts rule out, source first. A transaction without a destination has only its source
// looked at.
func Check(t Type, currency string, source, destination Side, sourceID, destinationID string) *es.Refusal {
	if sourceID == destinationID {
		return es.Refuse("SAME_ACCOUNT", "Source and destination are both account %s.", sourceID)
	}
	rule := allowed[t]
	if r := source.check(t, "source", sourceID, currency, rule.source); r != nil || destinationID == "" {
		return r
	}
	return destination.check(t, "destination", destinationID, currency, rule.destination)
}

func (s Side) check(t Type, name, id, currency string, types []string) *es.Refusal {
	switch {
	case !s.Found:
		return es.Refuse("ACCOUNT_NOT_FOUND", "The %s account %s does not exist.", name, id)
	case !slices.Contains(types, s.AccountType):
		return es.Refuse("ACCOUNT_TYPE_NOT_ALLOWED", "The %s account %s is %s; the %s of a %s is %s.", name, id, s.AccountType, name, t, strings.Join(types, " or "))
	case s.Currency != currency:
		return es.Refuse("CURRENCY_MISMATCH", "The %s account %s is in %s, the transaction in %s.", name, id, s.Currency, currency)
	}
	if c, ok := closedTo[s.Status]; ok {
		return es.Refuse(c.reason, "The %s account %s %s.", name, id, c.sentence)
	}
	return nil
}
