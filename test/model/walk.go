package model

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"pgregory.net/rapid"
)

// Order is a Request in the system's terms: accounts and transactions by their ids, empty = none.
type Order struct{ Kind, Key, Source, Destination, Amount, Currency, On string }

// AccountView is what the system shows of an account; amounts as it prints them, "" = no limit.
type AccountView struct{ Status, Balance, Held, Available, Min, Max string }

// TransactionView is what the system shows of a transaction; the last two are a payment's.
type TransactionView struct{ Status, Reason, Amount, Refunded, Refunding string }

// HoldView is what the system shows of a hold.
type HoldView struct{ Status, Reason, Amount, Captured, Capturing, Remaining string }

// System is the system, asked as its callers ask it. A request that is accepted is answered when it has come to its end.
type System interface {
	Open(key string, o Opening) Answer
	Ask(o Order) Answer
	Batch(orders []Order) []Answer // all at once
	Void(hold string) Answer
	Expire(hold string) Answer // its time is over
	SetStatus(account, key, status string) Answer
	SetLimits(account, key string, lowest, highest Limit) Answer
	Account(id string) AccountView
	Transaction(id string) TransactionView
	Hold(id string) HoldView
	Books() map[string]Sums // of all accounts; that they balance is the system's to check
}

// Tally counts what walks came across. Safe for concurrent use.
type Tally struct {
	mu     sync.Mutex
	Walks  int
	Steps  int
	counts map[string]int
}

func (y *Tally) step(kind, end string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.counts == nil {
		y.counts = map[string]int{}
	}
	y.Steps++
	y.counts[kind+" "+end]++
}

func (y *Tally) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d sequences, %d steps:", y.Walks, y.Steps)
	for _, k := range slices.Sorted(maps.Keys(y.counts)) {
		fmt.Fprintf(&b, "\n%6d %s", y.counts[k], k)
	}
	return b.String()
}

// walk is one random walk: the system and the books, and what the accounts and transactions of the books are called.
type walk struct {
	*rapid.T
	system                 System
	books                  *Books
	accounts, transactions []string // ids
	before                 map[string]Sums
	requests               []Request // accepted ones
	keys                   string    // begins every key
	n                      int
	tally                  *Tally
}

// Walk lets the system and the books do the same, at random, and compares after every step what they say. Keys begins the walk's
// idempotency keys; no other walk may use it.
func Walk(t *rapid.T, s System, keys string, tally *Tally) {
	w := &walk{T: t, system: s, books: &Books{}, before: s.Books(), keys: keys, tally: tally}
	tally.mu.Lock()
	tally.Walks++
	tally.mu.Unlock()
	for _, kind := range []string{"EXTERNAL", "USER", "USER", "SYSTEM"} {
		w.open(Opening{Type: kind, Currency: "USD"})
	}
	for _, user := range []int{1, 2} {
		w.ask(Request{Kind: "topup", Key: w.key(), Source: 0, Destination: user, Amount: 100_00, Currency: "USD", On: None})
	}
	actions := map[string]func(*rapid.T){"": w.compare}
	for name, action := range map[string]func(){
		"open": w.drawOpen, "status": w.drawStatus, "limits": w.drawLimits, "batch": w.drawBatch, "again": w.drawAgain, "void": w.drawVoid, "expire": w.drawExpire,
	} {
		actions[name] = func(t *rapid.T) { w.T = t; action() }
	}
	for kind := range sides {
		actions[kind] = func(t *rapid.T) { w.T = t; w.ask(w.drawRequest(kind)) }
	}
	t.Repeat(actions)
	w.T = t
	w.compareAll()
}

func (w *walk) key() string {
	w.n++
	return fmt.Sprintf("%s-%d", w.keys, w.n)
}

// same fails the walk unless the system says what the books say.
func same[V comparable](w *walk, what string, got, want V) {
	if got != want {
		w.Fatalf("%s\n  the system: %+v\n   the model: %+v", what, got, want)
	}
}

func (w *walk) open(o Opening) {
	key := w.key()
	reason := w.books.Open(o)
	got := w.system.Open(key, o)
	w.tally.step("open", or(reason, o.Type))
	if reason != "" {
		same(w, fmt.Sprintf("open %+v", o), Answer{Refused: got.Refused}, Answer{Refused: reason})
		return
	}
	same(w, "open", got, Answer{ID: got.ID, Status: "active"})
	if w.accounts = append(w.accounts, got.ID); len(w.accounts)%3 == 0 {
		same(w, "open again", w.system.Open(key, o), Answer{ID: got.ID, Status: "active", Replayed: true})
	}
}

// order is a request in the system's terms.
func (w *walk) order(r Request) Order {
	name := func(i int, ids []string) string {
		switch i {
		case None:
			return ""
		case Unknown:
			return UnknownID
		}
		return ids[i]
	}
	o := Order{
		Kind: r.Kind, Key: r.Key, Currency: r.Currency, Source: name(r.Source, w.accounts), Destination: name(r.Destination, w.accounts),
		On: name(r.On, w.transactions),
	}
	if r.Amount > 0 {
		o.Amount = Format(r.Amount)
	}
	return o
}

// UnknownID is nobody's.
const UnknownID = "00000000-0000-4000-8000-000000000000"

// ask lets both carry out a request.
func (w *walk) ask(r Request) {
	order := w.order(r)
	place := len(w.books.Transactions)
	id, replayed, reason := w.books.Ask(r)
	w.transactions = append(w.transactions, UnknownID)
	got := w.system.Ask(order)
	if want := w.answer(id, replayed, reason); id == place && reason == "" {
		w.transactions[id], want.ID = got.ID, got.ID
		w.requests = append(w.requests, r)
		same(w, fmt.Sprintf("%+v", order), got, want)
	} else {
		same(w, fmt.Sprintf("%+v", order), got, want)
	}
	t := w.books.at(id)
	w.tally.step(r.Kind, or(reason, t.Status+" "+t.Reason))
	if reason == "" {
		w.compareTransaction(id)
	}
}

// answer is what the books answer.
func (w *walk) answer(id int, replayed bool, reason string) Answer {
	if reason != "" {
		return Answer{Refused: reason}
	}
	t := w.books.Transactions[id]
	return Answer{ID: w.transactions[id], Replayed: replayed, Status: t.Status, Reason: t.Reason, Amount: Format(t.Amount)}
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// compare holds all accounts against the books.
func (w *walk) compare(t *rapid.T) {
	w.T = t
	for i, id := range w.accounts {
		a := w.books.Accounts[i]
		want := AccountView{
			Status: a.Status, Balance: Format(a.Balance), Held: Format(a.Held), Available: Format(a.Balance - a.Held), Min: limit(a.Min), Max: limit(a.Max),
		}
		same(w, fmt.Sprintf("account %d, %s", i, id), w.system.Account(id), want)
	}
}

func limit(l *int64) string {
	if l == nil {
		return ""
	}
	return Format(*l)
}

func (w *walk) compareTransaction(id int) {
	t := w.books.Transactions[id]
	want := TransactionView{Status: t.Status, Reason: t.Reason, Amount: Format(t.Amount)}
	if t.isPayment() {
		want.Refunded, want.Refunding = Format(t.Used), Format(t.Reserved)
	}
	what := fmt.Sprintf("%s %s", t.Kind, w.transactions[id])
	same(w, what, w.system.Transaction(w.transactions[id]), want)
	if t.Hold != "" {
		hold := HoldView{
			Status: t.Hold, Reason: t.Reason, Amount: Format(t.Amount), Captured: Format(t.Used), Capturing: Format(t.Reserved), Remaining: "0.00",
		}
		if t.Hold == "active" {
			hold.Remaining = Format(t.Amount - t.Used - t.Reserved)
		}
		same(w, "hold "+w.transactions[id], w.system.Hold(w.transactions[id]), hold)
	}
	if t.On >= 0 {
		w.compareTransaction(t.On)
	}
}

// compareAll holds everything against the books: what the walk added to the sums of the system, too.
func (w *walk) compareAll() {
	w.compare(w.T)
	for id, t := range w.books.Transactions {
		if t.Status != "" {
			w.compareTransaction(id)
		}
	}
	added := w.system.Books()
	for currency, s := range w.before {
		a := added[currency]
		added[currency] = Sums{a.User - s.User, a.External - s.External, a.System - s.System}
	}
	for currency, want := range w.books.Sums() {
		same(w, "the books in "+currency, added[currency], want)
	}
}
