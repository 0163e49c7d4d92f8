package model

import (
	"fmt"

	"pgregory.net/rapid"
)

// What walks do at random. Most of it is what careful callers ask; some of it never works.

func pick[V any](w *walk, what string, from ...V) V { return rapid.SampledFrom(from).Draw(w.T, what) }

// rarely is true one time in eight.
func (w *walk) rarely(what string) bool { return rapid.IntRange(0, 7).Draw(w.T, what) == 7 }

func (w *walk) drawAmount() int64 {
	return pick[int64](w, "amount", 1, 1_00, 5_00, 10_00, 25_00, 33_33, 50_00, 50_00, 100_00, 120_00)
}

func (w *walk) drawLimit(what string) *int64 {
	return pick(w, what, nil, nil, new(int64), ptr(-20_00), ptr(-100_00), ptr(10_00), ptr(60_00), ptr(150_00), ptr(1000_00))
}

func ptr(n int64) *int64 { return &n }

func (w *walk) drawOpen() {
	if len(w.accounts) >= 9 {
		w.Skip("accounts enough")
	}
	o := Opening{Type: pick(w, "type", "USER", "USER", "SYSTEM", "EXTERNAL"), Currency: pick(w, "currency", "USD", "USD", "USD", "EUR")}
	if o.Type != "EXTERNAL" || w.rarely("limits of external") {
		o.Min, o.Max = w.drawLimit("minimum"), w.drawLimit("maximum")
	}
	w.open(o)
}

// drawAccount picks an account that may stand on this side and is not the other side's, or any.
func (w *walk) drawAccount(what, currency string, types []string, other int) int {
	if w.rarely("any " + what) {
		return rapid.IntRange(Unknown, len(w.accounts)-1).Filter(func(n int) bool { return n != None }).Draw(w.T, what)
	}
	var fit []int
	for i, a := range w.books.Accounts {
		for _, t := range types {
			if a.Type == t && a.Currency == currency && a.Status == "active" && i != other {
				fit = append(fit, i)
			}
		}
	}
	switch {
	case len(fit) > 0:
		return pick(w, what, fit...)
	case other == 0:
		return 1
	}
	return 0
}

// drawTransaction picks a transaction of which this holds, or any.
func (w *walk) drawTransaction(what string, fits func(Transaction) bool) int {
	if w.rarely("any " + what) {
		return rapid.IntRange(Unknown, len(w.transactions)-1).Filter(func(n int) bool { return n != None }).Draw(w.T, what)
	}
	var fit []int
	for i, t := range w.books.Transactions {
		if fits(t) {
			fit = append(fit, i)
		}
	}
	if len(fit) == 0 {
		w.Skip("there is none")
	}
	return pick(w, what, fit...)
}

func (w *walk) drawRequest(kind string) Request {
	r := Request{Kind: kind, Key: w.key(), Source: None, Destination: None, Amount: w.drawAmount(), On: None}
	rule := sides[kind]
	switch kind {
	case "refund":
		r.On = w.drawTransaction("payment", func(t Transaction) bool { return t.isPayment() && t.Status == "completed" })
	case "capture":
		if r.On = w.drawTransaction("hold", func(t Transaction) bool { return t.Hold == "active" }); w.books.at(r.On).Destination == None || w.rarely("named") {
			r.Destination = w.drawAccount("destination", "USD", rule.destination, w.books.at(r.On).Source)
		}
	default:
		r.Currency = pick(w, "currency", "USD", "USD", "USD", "USD", "USD", "EUR")
		r.Source = w.drawAccount("source", r.Currency, rule.source, None)
		if kind != "hold" || rapid.Bool().Draw(w.T, "destination named") {
			r.Destination = w.drawAccount("destination", r.Currency, rule.destination, r.Source)
		}
		return r
	}
	if rapid.IntRange(0, 3).Draw(w.T, "whole") == 0 {
		r.Amount = 0
	}
	return r
}

// drawAgain repeats a request: as it was, or with another amount.
func (w *walk) drawAgain() {
	if len(w.requests) == 0 {
		w.Skip("nothing was asked for")
	}
	r := pick(w, "request", w.requests...)
	if w.rarely("changed") {
		r.Amount += 1_00
	}
	w.ask(r)
}

// drawBatch asks for some transactions at once. Whatever order their steps took, there must be one.
func (w *walk) drawBatch() {
	var requests []Request
	var orders []Order
	for range rapid.IntRange(1, 4).Draw(w.T, "items") {
		kind := pick(w, "kind", "topup", "withdrawal", "transfer", "transfer", "payment", "refund", "again")
		switch {
		case kind != "again":
			requests = append(requests, w.drawRequest(kind))
		case len(w.requests) > 0:
			if r := pick(w, "request", w.requests...); r.Kind != "hold" && r.Kind != "capture" {
				requests = append(requests, r)
			}
		}
	}
	if len(requests) == 0 {
		w.Skip("an empty batch")
	}
	for _, r := range requests {
		orders = append(orders, w.order(r))
	}
	got := w.system.Batch(orders)
	first := len(w.books.Transactions)
	if !w.books.Explain(requests, got) {
		w.Fatalf("no order of the steps explains the batch\n%+v\n%+v", orders, got)
	}
	for i, a := range got {
		w.transactions = append(w.transactions, UnknownID)
		w.tally.step("batch "+requests[i].Kind, or(a.Refused, a.Status+" "+a.Reason))
		if w.books.Transactions[first+i].Status == "" {
			continue
		}
		w.transactions[first+i] = a.ID
		w.requests = append(w.requests, requests[i])
		w.compareTransaction(first + i)
	}
}

func (w *walk) drawVoid() {
	w.release("void", "voided", w.system.Void, w.drawTransaction("hold", func(t Transaction) bool { return t.Hold != "" }))
}

func (w *walk) drawExpire() {
	hold := w.drawTransaction("hold", func(t Transaction) bool { return t.Hold == "active" })
	if w.books.at(hold).Hold != "active" {
		w.Skip("only an active hold expires")
	}
	w.release("expire", "expired", w.system.Expire, hold)
}

func (w *walk) release(name, to string, release func(string) Answer, hold int) {
	id := UnknownID
	if hold >= 0 {
		id = w.transactions[hold]
	}
	replayed, reason := w.books.Release(hold, to)
	want := Answer{Refused: reason}
	if reason == "" {
		want = Answer{ID: id, Replayed: replayed, Status: to, Amount: Format(w.books.at(hold).Amount)}
	}
	same(w, name+" of "+id, release(id), want)
	w.tally.step(name, or(reason, to))
	if reason == "" {
		w.compareTransaction(hold)
	}
}

func (w *walk) drawStatus() {
	account := rapid.IntRange(0, len(w.accounts)-1).Draw(w.T, "account")
	status := pick(w, "status", "active", "active", "suspended", "closed")
	w.change("status", "to "+status, account, func(key string) (Answer, Answer) {
		reason := w.books.SetStatus(account, status)
		return w.system.SetStatus(w.accounts[account], key, status), Answer{Refused: reason}
	}, func(key string) Answer {
		other := map[string]string{"active": "suspended", "suspended": "active", "closed": "active"}[status]
		return w.system.SetStatus(w.accounts[account], key, other)
	})
}

func (w *walk) drawLimits() {
	account := rapid.IntRange(0, len(w.accounts)-1).Draw(w.T, "account")
	lowest := Limit{Set: rapid.Bool().Draw(w.T, "change the minimum"), To: w.drawLimit("minimum")}
	highest := Limit{Set: rapid.Bool().Draw(w.T, "change the maximum"), To: w.drawLimit("maximum")}
	w.change("limits", "changed", account, func(key string) (Answer, Answer) {
		reason := w.books.SetLimits(account, lowest, highest)
		return w.system.SetLimits(w.accounts[account], key, lowest, highest), Answer{Refused: reason}
	}, func(key string) Answer {
		return w.system.SetLimits(w.accounts[account], key, Limit{Set: true, To: ptr(-77_77)}, highest)
	})
}

// change lets both change an account. With a key it is asked for again, as it was and as something else.
func (w *walk) change(name, to string, account int, change func(key string) (got, want Answer), otherwise func(key string) Answer) {
	key := ""
	if rapid.Bool().Draw(w.T, "keyed") {
		key = w.key()
	}
	what := fmt.Sprintf("change of the %s of account %d", name, account)
	got, want := change(key)
	if want.Refused == "" {
		want.ID, want.Status = w.accounts[account], w.books.Accounts[account].Status
	}
	same(w, what, got, want)
	w.tally.step(name, or(want.Refused, to))
	if key == "" || want.Refused != "" {
		return
	}
	want.Replayed = true
	again, _ := change(key)
	same(w, what+" again", again, want)
	same(w, what+" otherwise, with the same key", otherwise(key), Answer{Refused: "IDEMPOTENCY_CONFLICT"})
}
