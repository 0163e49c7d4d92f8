package model

import "fmt"

// Answer is what the system said to a request, once it had come to its end.
type Answer struct {
	ID             string // UUID; of a repeat, the first one's
	Refused        string // why there is no transaction, account or change
	Replayed       bool
	Status, Reason string
	Amount         string
}

// Explain finds an order of the steps of transactions that were carried out at the same time in which each of them ends as the
// system says, and leaves the books as they are then. It says whether there is one.
func (b *Books) Explain(requests []Request, answers []Answer) bool {
	x := &explanation{requests: requests, answers: answers, first: b.room(len(requests)), seen: map[string]bool{}}
	found := x.from(b, make([]phase, len(requests)))
	if found == nil {
		return false
	}
	*b = *found
	return true
}

type explanation struct {
	requests []Request
	answers  []Answer
	first    int // place of the first transaction
	seen     map[string]bool
}

// from tries every order from here on. Where each transaction has got to says everything: what its steps did is known by its
// answer.
func (x *explanation) from(b *Books, at []phase) *Books {
	key := fmt.Sprint(at)
	if x.seen[key] {
		return nil
	}
	x.seen[key] = true
	ended := true
	for i, p := range at {
		if p == over {
			continue
		}
		ended = false
		next := b.clone()
		reached, ok := x.advance(next, i, p)
		if !ok {
			continue
		}
		then := append([]phase{}, at...)
		then[i] = reached
		if found := x.from(next, then); found != nil {
			return found
		}
	}
	if ended {
		return b
	}
	return nil
}

// advance takes one step of a transaction and reports whether it went as its answer says.
func (x *explanation) advance(b *Books, i int, p phase) (phase, bool) {
	want, id := x.answers[i], x.first+i
	if p == asked {
		first, reason := b.accept(id, x.requests[i])
		if reason != "" || first != id {
			return over, reason == want.Refused && want.Replayed == (reason == "")
		}
		t := b.Transactions[id]
		return t.phase, want.Refused == "" && !want.Replayed && want.Amount == Format(t.Amount)
	}
	b.step(id)
	t := b.Transactions[id]
	switch {
	case t.Reason != "" && t.Reason != want.Reason, t.phase == credited && want.Status != "completed":
		return t.phase, false
	case t.phase == over:
		return over, t.Status == want.Status
	}
	return t.phase, true
}
