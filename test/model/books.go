// Package model is the books kept a second time, written from what the API promises and from none of the system's code: amounts
// are whole cents, and everything fits into a few maps. Random walks compare the system with it.
package model

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Accounts and transactions are known by their place in the lists of Books; some places are nobody's.
const (
	None    = -1 // names none
	Unknown = -2 // names one that was never there
)

// Account is an account.
type Account struct {
	Type, Currency, Status string
	Balance, Held          int64
	Min, Max               *int64 // nil = no limit
}

// Transaction is a transaction, a hold included. One that was refused at once has no status.
type Transaction struct {
	Request
	Source, Destination int
	Amount              int64
	Currency            string
	Status, Reason      string
	Reserved, Used      int64  // of a payment, for its refunds; of a hold, for its captures
	Hold                string // status of a hold
	phase               phase
}

// Books are accounts and transactions.
type Books struct {
	Accounts     []Account
	Transactions []Transaction
	keys         map[string]int // of accepted transactions
}

func (b *Books) clone() *Books {
	return &Books{slices.Clone(b.Accounts), slices.Clone(b.Transactions), maps.Clone(b.keys)}
}

// Opening asks for an account.
type Opening struct {
	Type, Currency string
	Min, Max       *int64
}

// Open opens an account and returns why not, if so.
func (b *Books) Open(o Opening) string {
	if o.Type == "EXTERNAL" && (o.Min != nil || o.Max != nil) {
		return "INVALID_ARGUMENT"
	}
	if o.Type == "USER" && o.Min == nil {
		o.Min = new(int64)
	}
	if crossed(o.Min, o.Max) {
		return "INVALID_ARGUMENT"
	}
	b.Accounts = append(b.Accounts, Account{Type: o.Type, Currency: o.Currency, Status: "active", Min: o.Min, Max: o.Max})
	return ""
}

func crossed(lowest, highest *int64) bool {
	return lowest != nil && highest != nil && *highest < *lowest
}

// SetStatus changes an account's status and returns why not, if so. No transaction is under way.
func (b *Books) SetStatus(account int, status string) string {
	a := &b.Accounts[account]
	switch {
	case a.Status == "closed" && status != "closed":
		return "STATUS_NOT_ALLOWED"
	case a.Status != status && status == "closed" && a.Balance != 0:
		return "BALANCE_NOT_ZERO"
	case a.Status != status && status == "closed" && a.Held != 0:
		return "HOLDS_OPEN"
	}
	a.Status = status
	return ""
}

// Limit is a change of a limit: not at all, to none, or to an amount.
type Limit struct {
	Set bool
	To  *int64
}

// SetLimits changes an account's limits and returns why not, if so.
func (b *Books) SetLimits(account int, lowest, highest Limit) string {
	a := &b.Accounts[account]
	low, high := a.Min, a.Max
	if lowest.Set {
		low = lowest.To
	}
	if highest.Set {
		high = highest.To
	}
	switch {
	case !lowest.Set && !highest.Set:
		return "INVALID_ARGUMENT"
	case a.Status == "closed":
		return "ACCOUNT_CLOSED"
	case a.Type == "EXTERNAL", a.Type == "USER" && low == nil, crossed(low, high):
		return "LIMITS_NOT_ALLOWED"
	}
	a.Min, a.Max = low, high
	return ""
}

// Sums are the balances of one currency by the accounts' type.
type Sums struct{ User, External, System int64 }

// Sums adds up the balances of all accounts, by currency.
func (b *Books) Sums() map[string]Sums {
	out := map[string]Sums{}
	for _, a := range b.Accounts {
		s := out[a.Currency]
		switch a.Type {
		case "USER":
			s.User += a.Balance
		case "EXTERNAL":
			s.External += a.Balance
		case "SYSTEM":
			s.System += a.Balance
		}
		out[a.Currency] = s
	}
	return out
}

// Format writes cents as the API does.
func Format(cents int64) string {
	sign := ""
	if cents < 0 {
		sign, cents = "-", -cents
	}
	return fmt.Sprintf("%s%d.%02d", sign, cents/100, cents%100)
}

// Cents reads what Format writes.
func Cents(s string) (int64, error) {
	whole, fraction, ok := strings.Cut(s, ".")
	if !ok || len(fraction) != 2 {
		return 0, fmt.Errorf("%q is no amount of cents", s)
	}
	return strconv.ParseInt(whole+fraction, 10, 64)
}
