package api

import (
	"fmt"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/shopspring/decimal"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
)

// atOnce posts all of these at the same time, in turn on each of the instances.
func atOnce(t *testing.T, instances []*Server, postings []*accountv1.Posting) []*accountv1.PostingResult {
	t.Helper()
	results := make([]*accountv1.PostingResult, len(postings))
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i, p := range postings {
		wg.Go(func() {
			<-start
			results[i] = postOn(t, instances[i%len(instances)], p)
		})
	}
	close(start)
	wg.Wait()
	return results
}

func repeated(p *accountv1.Posting, n int) []*accountv1.Posting {
	ps := make([]*accountv1.Posting, n)
	for i := range ps {
		ps[i] = proto.Clone(p).(*accountv1.Posting)
	}
	return ps
}

func TestSamePostingAtOnceIsOneEvent(t *testing.T) {
	const times = 64
	check := func(t *testing.T, h *harness, id string, results []*accountv1.PostingResult) {
		t.Helper()
		first := 0
		for _, r := range results {
			if !r.GetReplayed() {
				first++
			}
			if r.GetOutcome() != done || r.GetNewBalance() != "40.00" || r.GetVersion() != 3 {
				t.Errorf("got %v", r)
			}
		}
		if first != 1 {
			t.Errorf("%d answers are not marked as repeats", first)
		}
		if n := len(h.events(id)); n != 3 { // opened, funded, debited
			t.Errorf("%d events", n)
		}
		h.holds(id, "40.00")
	}
	for _, instances := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d requests on %d instances", times, instances), func(t *testing.T) {
			h := newHarness(t)
			id := h.funded("100.00")
			servers := []*Server{h.Server}
			for len(servers) < instances {
				servers = append(servers, newServer(t, h.store))
			}
			check(t, h, id, atOnce(t, servers, repeated(ask(debit, uuid.NewString(), step, id, "60.00"), times)))
		})
	}
	t.Run("one request", func(t *testing.T) {
		h := newHarness(t)
		id := h.funded("100.00")
		res, err := h.Post(t.Context(), &accountv1.PostRequest{Postings: repeated(ask(debit, uuid.NewString(), step, id, "60.00"), times)})
		if err != nil {
			t.Fatal(err)
		}
		check(t, h, id, res.GetResults())
	})
}

// Whoever writes the register first wins, and everybody gets that answer.
func TestCancelRacesTheAction(t *testing.T) {
	h := newHarness(t)
	servers := []*Server{h.Server, newServer(t, h.store)}
	for range 50 {
		saga, id := uuid.NewString(), h.open(account.User)
		action, tombstone := ask(credit, saga, step, id, "60.00"), ask(cancel, saga, step, id, "")
		got := atOnce(t, servers, []*accountv1.Posting{action, tombstone, action, tombstone})
		for _, r := range got {
			if r.GetOutcome() != got[0].GetOutcome() || r.GetVersion() != 2 {
				t.Fatalf("got %v", got)
			}
		}
		want := map[accountv1.PostingOutcome]string{done: "60.00", cancelled: "0.00"}[got[0].GetOutcome()]
		h.holds(id, want)
	}
}

// A rollback and the debit it undoes may come in any order: afterwards the money is back.
func TestRollbackRacesTheDebit(t *testing.T) {
	h := newHarness(t)
	servers := []*Server{h.Server, newServer(t, h.store)}
	for range 50 {
		saga, id := uuid.NewString(), h.funded("100.00")
		action, undo := ask(debit, saga, step, id, "60.00"), undoing(saga, step, id)
		got := atOnce(t, servers, []*accountv1.Posting{action, undo, action, undo})
		for _, r := range got {
			if r.GetOutcome() != got[0].GetOutcome() {
				t.Fatalf("got %v", got)
			}
		}
		want := map[accountv1.PostingOutcome]int{done: 3, cancelled: 1}[got[0].GetOutcome()] // with the funding
		if n := h.count(id, "BalanceChanged"); n != want {
			t.Fatalf("%d movements, want %d", n, want)
		}
		h.holds(id, "100.00")
	}
}

// Many sagas take from one account what it does not hold for all of them.
func TestDebitsAtOnceDoNotOverdraw(t *testing.T) {
	h := newHarness(t)
	servers := []*Server{h.Server, newServer(t, h.store)}
	id := h.funded("10.00")
	var debits []*accountv1.Posting
	for range 64 {
		debits = append(debits, ask(debit, uuid.NewString(), step, id, "1.00"))
	}
	n := map[accountv1.PostingOutcome]int{}
	for _, r := range atOnce(t, servers, debits) {
		n[r.GetOutcome()]++
	}
	if n[done] != 10 || n[refused] != 54 {
		t.Errorf("outcomes %v", n)
	}
	h.holds(id, "0.00")
}

// Whatever is asked in whatever order: a register never changes, and between accounts and transit no money is made.
func TestRegistersProperties(t *testing.T) {
	h := newHarness(t)
	rapid.Check(t, func(rt *rapid.T) {
		accounts := []string{h.funded("5.00"), h.open(account.User, upTo("8.00")), h.open(account.External)}
		sagas := []string{uuid.NewString(), uuid.NewString(), uuid.NewString()}
		registers := map[string]accountv1.PostingOutcome{}
		for range rapid.IntRange(1, 25).Draw(rt, "requests") {
			req := &accountv1.PostRequest{}
			for range rapid.IntRange(1, 4).Draw(rt, "postings") {
				i := rapid.IntRange(0, len(sagas)-1).Draw(rt, "saga")
				req.Postings = append(req.Postings, drawPosting(rt, sagas[i], accounts[i], accounts[(i+1)%len(accounts)]))
			}
			res, err := h.Post(t.Context(), req)
			if err != nil {
				rt.Fatal(err)
			}
			for j, r := range res.GetResults() {
				p := req.GetPostings()[j]
				key := p.GetSagaId() + p.GetStep()
				if before, ok := registers[key]; ok && before != r.GetOutcome() {
					rt.Fatalf("%v was %v and is %v", p, before, r)
				}
				if registers[key] = r.GetOutcome(); r.GetOutcome() == undecidedOutcome {
					rt.Fatalf("%v came to %v", p, r)
				}
			}
		}
		sum, perSaga := decimal.RequireFromString("-5.00"), map[string]decimal.Decimal{} // the funding came from outside
		for _, id := range accounts {
			for _, e := range h.events(id) {
				f, err := account.Decode(e)
				if err != nil {
					rt.Fatal(err)
				}
				if c, ok := f.(account.BalanceChanged); ok {
					perSaga[c.SagaID] = perSaga[c.SagaID].Add(decimal.Decimal(c.TransitChange))
				}
			}
			out, err := h.Executor.Get(t.Context(), id)
			if err != nil {
				rt.Fatal(err)
			}
			sum = sum.Add(out.State.Balance)
		}
		for _, id := range sagas {
			if got, want := perSaga[id], inTransit(registers, id); !got.Equal(decimal.NewFromInt(want)) {
				rt.Fatalf("saga %s has %s in transit, its registers say %d: %v", id, got, want, registers)
			}
			sum = sum.Add(perSaga[id])
		}
		if !sum.IsZero() {
			rt.Fatalf("balances and transit sum to %s", sum)
		}
	})
}

// drawPosting draws something that a saga may ask, in an order that no saga asks in.
func drawPosting(rt *rapid.T, saga, source, destination string) *accountv1.Posting {
	switch rapid.SampledFrom([]string{"debit", "credit", "undo", "cancel debit", "cancel credit"}).Draw(rt, "what") {
	case "debit":
		return ask(debit, saga, "debit", source, "3")
	case "credit":
		return ask(credit, saga, "credit", destination, "3")
	case "undo":
		return undoing(saga, "debit", source)
	case "cancel debit":
		return ask(cancel, saga, "debit", source, "")
	default:
		return ask(cancel, saga, "credit", destination, "")
	}
}

// inTransit is what a saga's registers say that it has taken and not given.
func inTransit(registers map[string]accountv1.PostingOutcome, saga string) (n int64) {
	if registers[saga+"debit"] == done || registers[saga+"debit_rollback"] == done {
		n += 3
	}
	if registers[saga+"debit_rollback"] == done {
		n -= 3
	}
	if registers[saga+"credit"] == done {
		n -= 3
	}
	return n
}
