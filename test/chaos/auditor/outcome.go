package auditor

import (
	"maps"
	"slices"

	"github.com/shopspring/decimal"
)

// ends checks every transaction's end: that there is one, that its saga has the same, and that exactly the money moved that should.
func (x *audit) ends() {
	for id, t := range x.txs {
		x.checked("transactions", 1)
		x.checked(t.kind+" "+t.status, 1)
		if t.status == "pending" {
			x.wrong("outcome", "transaction "+id, "has not ended")
			continue
		}
		x.saga(t)
		x.moved(t)
		if len(t.under) > 0 {
			x.wrong("money", "transaction "+id, "has reservations of transactions that have ended: %v", slices.Collect(maps.Keys(t.under)))
		}
		if on := t.payment + t.hold; on != "" && t.kind != "release" && x.txs[on] == nil {
			x.wrong("outcome", "transaction "+id, "is on %s, which is not there", on)
		}
	}
	for id, moves := range x.moves {
		if x.txs[id] == nil {
			x.wrong("money", "saga "+id, "moved money on %d accounts, and there is no such transaction", len(moves))
		}
	}
	for id := range x.sagas {
		if x.txs[id] == nil {
			x.wrong("outcome", "saga "+id, "there is no such transaction")
		}
	}
	x.reservations()
}

// moved: what completed has moved its amount once from one side to the other, what was compensated has moved it and back, what
// failed has moved nothing.
func (x *audit) moved(t *transaction) {
	x.checked("movements of money", len(x.moves[t.id]))
	type side struct {
		account string
		change  string
		held    string
	}
	count := func(of []side) map[side]int {
		n := map[side]int{}
		for _, s := range of {
			n[s]++
		}
		return n
	}
	amount, back := t.amount.String(), t.amount.Neg().String()
	captured, restored := "0", "0"
	if t.kind == "payment" && t.hold != "" {
		captured, restored = back, amount
	}
	var want []side
	switch {
	case t.status == "failed":
	case t.kind == "hold":
		want = []side{{t.source, "0", amount}}
	case t.kind == "release":
		want = []side{{t.source, "0", back}}
	case t.status == "completed":
		want = []side{{t.source, back, captured}, {t.destination, amount, "0"}}
	default: // compensated
		want = []side{{t.source, back, captured}, {t.source, amount, restored}}
	}
	var got []side
	for _, m := range x.moves[t.id] {
		got = append(got, side{m.account, m.change.String(), m.held.String()})
		if m.currency != t.currency {
			x.wrong("money", "transaction "+t.id, "is in %s, and moved %s", t.currency, m.currency)
		}
		if on := m.hold; on != "" && on != t.hold && on != t.id {
			x.wrong("money", "transaction "+t.id, "changed hold %s", on)
		}
	}
	if !maps.Equal(count(got), count(want)) {
		x.wrong("money", "transaction "+t.id, "is a %s of %s that %s; it moved %v, want %v", t.kind, t.amount, t.status, got, want)
	}
}

// reservations: what payments and holds have given out is what their refunds and captures have taken, and what accounts hold is
// what is left of their holds.
func (x *audit) reservations() {
	taken, held := map[string]decimal.Decimal{}, map[string]map[string]decimal.Decimal{}
	for _, t := range x.txs {
		if on := t.payment + t.hold; t.status == "completed" && t.kind != "release" && on != "" {
			taken[on] = taken[on].Add(t.amount)
		}
		if t.holdStatus == "active" || t.holdStatus == "releasing" {
			if held[t.source] == nil {
				held[t.source] = map[string]decimal.Decimal{}
			}
			held[t.source][t.id] = t.amount.Sub(t.used)
		}
	}
	for id, t := range x.txs {
		if !t.used.Equal(taken[id]) {
			x.wrong("money", "transaction "+id, "%s of it are used, its refunds and captures took %s", t.used, taken[id])
		}
	}
	for id, a := range x.accounts {
		if !maps.EqualFunc(a.holds, held[id], decimal.Decimal.Equal) {
			x.wrong("money", "account "+id, "holds %v, its open holds come to %v", a.holds, held[id])
		}
	}
}

// answers holds the journal against the transactions and accounts: what was accepted is there, once and as asked, and came to the
// end that was told; what was refused is not there; and nothing is there that was not asked for.
func (x *audit) answers(requests []Request) {
	byKey := map[string]*transaction{}
	for id, t := range x.txs {
		if t.key == "" {
			continue // a release
		}
		if other := byKey[t.key]; other != nil {
			x.wrong("outcome", "key "+t.key, "is of two transactions: %s and %s", other.id, id)
		}
		byKey[t.key] = t
	}
	asked, voided, opened := map[string]bool{}, map[string]bool{}, opening{keys: map[string]string{}, accounts: map[string]string{}}
	for _, r := range requests {
		asked[r.Key] = true
		switch {
		case r.Answer == Unanswered:
			voided[r.On] = true
			x.report.WithoutOutcome++
			x.wrong("outcome", r.Op+" "+r.Key, "was asked %d times and never answered", r.Attempts)
		case r.Op == "open":
			x.opened(r, opened)
		case r.Op == "void":
			voided[r.On] = voided[r.On] || r.Answer == Accepted || r.Attempts > 1
			x.voided(r)
		case r.Answer == Accepted:
			x.accepted(r)
		case byKey[r.Key] != nil && r.Attempts == 1:
			x.wrong("outcome", r.Op+" "+r.Key, "was refused (%s), and there is the transaction %s", r.Reason, byKey[r.Key].id)
		}
		x.checked("requests "+string(r.Answer), 1)
	}
	for id, t := range x.txs {
		if t.key != "" && !asked[t.key] {
			x.wrong("outcome", "transaction "+id, "nobody asked for it (key %s)", t.key)
		}
		if t.kind == "release" && t.cause == "void" && !voided[t.hold] {
			x.wrong("outcome", "transaction "+id, "nobody asked for the release of %s", t.hold)
		}
	}
	for id, a := range x.accounts {
		if a.kind != "" && opened.keys[id] == "" {
			x.wrong("outcome", "account "+id, "nobody opened it")
		}
	}
}

// accepted: the transaction of an accepted request.
func (x *audit) accepted(r Request) {
	t := x.txs[r.ID]
	if t == nil {
		x.report.WithoutOutcome++
		x.wrong("outcome", r.Op+" "+r.Key, "was accepted as %s, which is not there", r.ID)
		return
	}
	kind := r.Op
	if kind == "capture" {
		kind = "payment"
	}
	amount, err := decimal.NewFromString(r.Amount)
	switch {
	case t.key != r.Key || t.kind != kind:
		x.wrong("outcome", r.Op+" "+r.Key, "was accepted as %s, which is a %s with key %s", r.ID, t.kind, t.key)
	case err != nil || !amount.Equal(t.amount):
		x.wrong("outcome", r.Op+" "+r.Key, "asked for %s, got %s", r.Amount, t.amount)
	case r.Source != "" && r.Source != t.source, r.Destination != "" && r.Destination != t.destination, r.Currency != "" && r.Currency != t.currency:
		x.wrong("outcome", r.Op+" "+r.Key, "asked for %+v, got %+v", r, *t)
	case r.On != "" && r.On != t.payment+t.hold:
		x.wrong("outcome", r.Op+" "+r.Key, "was on %s, got %s%s", r.On, t.payment, t.hold)
	}
	if t.status == "pending" {
		x.report.WithoutOutcome++ // ends says it
	}
	if r.Status != "pending" && r.Status != t.status {
		x.wrong("outcome", r.Op+" "+r.Key, "the caller was told %q, and it is %q", r.Status, t.status)
	}
}

// voided: the hold of an accepted void is not active any more.
func (x *audit) voided(r Request) {
	if r.Answer != Accepted {
		return
	}
	t := x.txs[r.On]
	if t == nil || t.kind != "hold" {
		x.report.WithoutOutcome++
		x.wrong("outcome", "void "+r.Key, "there is no hold %s", r.On)
		return
	}
	if t.holdStatus != "voided" {
		x.wrong("outcome", "void "+r.Key, "was accepted, and the hold %s is %s", r.On, t.holdStatus)
	}
}

// opening is which key opened which account.
type opening struct {
	keys     map[string]string // by account
	accounts map[string]string // by key
}

// opened: the account of an accepted request, one for each key.
func (x *audit) opened(r Request, seen opening) {
	if r.Answer != Accepted {
		return
	}
	if key := seen.keys[r.ID]; key != "" && key != r.Key {
		x.wrong("outcome", "account "+r.ID, "was opened by two keys: %s and %s", key, r.Key)
	}
	if id := seen.accounts[r.Key]; id != "" && id != r.ID {
		x.wrong("outcome", "open "+r.Key, "opened two accounts: %s and %s", id, r.ID)
	}
	seen.keys[r.ID], seen.accounts[r.Key] = r.Key, r.ID
	a := x.accounts[r.ID]
	if a == nil || a.kind != r.Type || a.currency != r.Currency {
		x.report.WithoutOutcome++
		x.wrong("outcome", "open "+r.Key, "was accepted as account %s, which is %+v", r.ID, a)
	}
}
