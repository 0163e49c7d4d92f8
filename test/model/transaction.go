package model

import "slices"

// Request asks for a transaction.
type Request struct {
	Kind                string // topup, withdrawal, transfer, payment, refund, hold or capture
	Key                 string
	Source, Destination int   // accounts; a refund names none, a capture no source, a hold a destination or none
	Amount              int64 // 0 = all that is left, of a refund or capture
	Currency            string
	On                  int // of a refund the payment, of a capture the hold
}

// phase is how far a transaction is.
type phase int

const (
	asked phase = iota
	accepted
	debited
	credited
	refused // by the first account
	undoing // refused by the second account
	undone
	over
)

// sides are the account types that may stand on either side.
var sides = map[string]struct{ source, destination []string }{
	"topup":      {[]string{"EXTERNAL"}, []string{"USER"}},
	"withdrawal": {[]string{"USER"}, []string{"EXTERNAL"}},
	"transfer":   {[]string{"USER", "SYSTEM"}, []string{"USER", "SYSTEM"}},
	"payment":    {[]string{"USER"}, []string{"USER", "SYSTEM"}},
	"capture":    {[]string{"USER"}, []string{"USER", "SYSTEM"}},
	"refund":     {[]string{"USER", "SYSTEM"}, []string{"USER"}},
	"hold":       {[]string{"USER"}, []string{"USER", "SYSTEM"}},
}

// room adds places for transactions that are asked for, and returns the first.
func (b *Books) room(n int) int {
	b.Transactions = append(b.Transactions, make([]Transaction, n)...)
	return len(b.Transactions) - n
}

// accept accepts the transaction in its place, finds the one that its key asked for before, or returns why it is refused.
func (b *Books) accept(id int, r Request) (first int, reason string) {
	t := Transaction{Request: r, Source: r.Source, Destination: r.Destination, Amount: r.Amount, Currency: r.Currency, phase: accepted}
	if reason := b.shape(&t); reason != "" {
		return id, reason
	}
	if first, taken := b.keys[r.Key]; taken {
		was := b.Transactions[first].Request
		if t.Kind == "capture" && was.Kind == "capture" { // the hold's destination may be named or not
			was.Destination, r.Destination = b.Transactions[first].Destination, t.Destination
		}
		if was != r {
			return id, "IDEMPOTENCY_CONFLICT"
		}
		return first, ""
	}
	if reason := b.rule(&t); reason != "" {
		return id, reason
	}
	if t.On >= 0 && (r.Kind == "refund" || r.Kind == "capture") {
		b.Transactions[t.On].Reserved += t.Amount
	}
	if t.Status = "pending"; t.Kind == "hold" {
		t.Hold = "pending"
	}
	if b.keys == nil {
		b.keys = map[string]int{}
	}
	b.Transactions[id], b.keys[r.Key] = t, id
	return id, ""
}

// shape fills in what a capture takes over from its hold.
func (b *Books) shape(t *Transaction) string {
	if t.Kind != "capture" {
		return ""
	}
	on := b.at(t.On)
	switch {
	case on.Hold == "":
		return "HOLD_NOT_FOUND"
	case on.Destination == None && t.Destination == None:
		return "INVALID_ARGUMENT"
	case on.Destination != None && t.Destination != None && on.Destination != t.Destination:
		return "INVALID_ARGUMENT"
	case t.Destination == None:
		t.Destination = on.Destination
	}
	t.Source = on.Source
	return ""
}

// rule is why a transaction is not accepted.
func (b *Books) rule(t *Transaction) string {
	on := b.at(t.On)
	left, exceeds := on.Amount-on.Reserved-on.Used, "CAPTURE_EXCEEDS_HOLD"
	switch t.Kind {
	case "refund":
		if on.Status == "" {
			return "TRANSACTION_NOT_FOUND"
		}
		if !on.isPayment() || on.Status != "completed" {
			return "NOT_REFUNDABLE"
		}
		t.Source, t.Destination, t.Currency, exceeds = on.Destination, on.Source, on.Currency, "REFUND_EXCEEDS_PAYMENT"
	case "capture":
		if on.Hold != "active" {
			return "HOLD_NOT_ACTIVE"
		}
		t.Currency = on.Currency
	default:
		return b.parties(t)
	}
	if reason := b.parties(t); reason != "" {
		return reason
	}
	if t.Amount == 0 {
		t.Amount = left
	}
	if t.Amount == 0 || t.Amount > left {
		return exceeds
	}
	return ""
}

func (t Transaction) isPayment() bool { return t.Kind == "payment" || t.Kind == "capture" }

// at is a transaction, the zero one where there is none.
func (b *Books) at(id int) Transaction {
	if id < 0 {
		return Transaction{}
	}
	return b.Transactions[id]
}

// parties is why the accounts take no part.
func (b *Books) parties(t *Transaction) string {
	if t.Source == t.Destination {
		return "SAME_ACCOUNT"
	}
	party := func(account int, types []string) string {
		if account == Unknown {
			return "ACCOUNT_NOT_FOUND"
		}
		a := b.Accounts[account]
		switch {
		case !slices.Contains(types, a.Type):
			return "ACCOUNT_TYPE_NOT_ALLOWED"
		case a.Currency != t.Currency:
			return "CURRENCY_MISMATCH"
		}
		return closedTo[a.Status]
	}
	rule := sides[t.Kind]
	if reason := party(t.Source, rule.source); reason != "" || t.Destination == None {
		return reason
	}
	return party(t.Destination, rule.destination)
}

var closedTo = map[string]string{"suspended": "ACCOUNT_SUSPENDED", "closed": "ACCOUNT_CLOSED"}

// step carries out what comes next of a transaction.
func (b *Books) step(id int) {
	t := &b.Transactions[id]
	switch t.phase {
	case accepted:
		if t.Reason = b.takeFrom(t); t.Reason != "" {
			t.phase = refused
		} else if t.phase = debited; t.Kind == "hold" {
			t.phase = credited
		}
	case debited:
		to := &b.Accounts[t.Destination]
		switch t.Reason = closedTo[to.Status]; {
		case t.Reason != "":
		case to.Max != nil && to.Balance+t.Amount > *to.Max:
			t.Reason = "MAX_BALANCE"
		default:
			to.Balance += t.Amount
		}
		if t.phase = credited; t.Reason != "" {
			t.phase = undoing
		}
	case undoing:
		from := &b.Accounts[t.Source]
		if from.Balance += t.Amount; t.Kind == "capture" {
			from.Held += t.Amount
		}
		t.phase = undone
	case credited, refused, undone:
		b.settle(t)
	}
}

// takeFrom takes the amount from the source, or reserves it there; or says why not.
func (b *Books) takeFrom(t *Transaction) string {
	from := &b.Accounts[t.Source]
	if reason := closedTo[from.Status]; reason != "" {
		return reason
	}
	lacks := from.Min != nil && from.Balance-from.Held-t.Amount < *from.Min
	switch {
	case t.Kind == "capture":
		from.Held -= t.Amount
		from.Balance -= t.Amount
	case lacks && *from.Min == 0:
		return "INSUFFICIENT_FUNDS"
	case lacks:
		return "MIN_BALANCE"
	case t.Kind == "hold":
		from.Held += t.Amount
	default:
		from.Balance -= t.Amount
	}
	return ""
}

// settle ends a transaction.
func (b *Books) settle(t *Transaction) {
	t.Status = map[phase]string{credited: "completed", refused: "failed", undone: "compensated"}[t.phase]
	t.phase = over
	if t.Kind == "hold" {
		t.Hold = map[string]string{"completed": "active", "failed": "failed"}[t.Status]
	}
	if t.Kind != "refund" && t.Kind != "capture" {
		return
	}
	on := &b.Transactions[t.On]
	on.Reserved -= t.Amount
	if t.Status == "completed" {
		on.Used += t.Amount
	}
	if on.Hold == "active" && on.Used == on.Amount {
		on.Hold = "captured"
	}
}

// Ask carries a request out, with nothing else under way. It returns the transaction that it led to, or why there is none.
func (b *Books) Ask(r Request) (id int, replayed bool, reason string) {
	place := b.room(1)
	id, reason = b.accept(place, r)
	for reason == "" && b.Transactions[id].phase != over {
		b.step(id)
	}
	return id, reason == "" && id != place, reason
}

// Release gives back what is left of a hold: voided, or expired. It returns whether that was so already, or why not.
func (b *Books) Release(hold int, to string) (replayed bool, reason string) {
	t := b.at(hold)
	switch {
	case t.Hold == "":
		return false, "HOLD_NOT_FOUND"
	case t.Hold == to:
		return true, ""
	case t.Hold != "active":
		return false, "HOLD_NOT_ACTIVE"
	}
	b.Accounts[t.Source].Held -= t.Amount - t.Used
	b.Transactions[hold].Hold = to
	return false, ""
}
