package api

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
	"example.com/billing/services/edge"
)

const step = "debit_source"

func TestRepeatedPostingGetsTheFirstAnswer(t *testing.T) {
	for name, tc := range map[string]struct {
		kind    accountv1.PostingKind
		amount  string
		outcome accountv1.PostingOutcome
		reason  string
		balance string
	}{
		"debit done":    {debit, "60.00", done, "", "40.00"},
		"credit done":   {credit, "60.00", done, "", "160.00"},
		"debit refused": {debit, "100.01", refused, "INSUFFICIENT_FUNDS", ""},
		"cancelled":     {cancel, "", cancelled, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			h, saga := newHarness(t), uuid.NewString()
			id := h.funded("100.00")
			p := ask(tc.kind, saga, step, id, tc.amount)
			first := h.post(p)
			h.want(first, tc.outcome, tc.reason)
			if first.GetReplayed() || first.GetNewBalance() != tc.balance || first.GetVersion() != 3 || (first.GetErrorMessage() != "") != (tc.reason != "") {
				t.Errorf("first answer %v", first)
			}
			h.want(h.post(ask(credit, uuid.NewString(), step, id, "1000.00")), done, "") // it would be decided otherwise now
			again := h.post(p)
			if !again.GetReplayed() {
				t.Error("the repeat is not marked")
			}
			if again.Replayed = false; !proto.Equal(first, again) {
				t.Errorf("first %v\nagain %v", first, again)
			}
			if n := len(h.events(id)); n != 4 {
				t.Errorf("%d events", n)
			}
		})
	}
}

// A refusal is a register: what was refused once is not done later.
func TestRefusedStaysRefused(t *testing.T) {
	h, saga := newHarness(t), uuid.NewString()
	id := h.funded("10.00")
	p := ask(debit, saga, step, id, "50.00")
	h.want(h.post(p), refused, "INSUFFICIENT_FUNDS")
	h.want(h.post(ask(credit, uuid.NewString(), step, id, "90.00")), done, "")
	h.want(h.post(p), refused, "INSUFFICIENT_FUNDS")
	h.want(h.post(ask(cancel, saga, step, id, "")), refused, "INSUFFICIENT_FUNDS")
	h.want(h.post(undoing(saga, step, id)), cancelled, "")
	h.holds(id, "100.00")
}

func TestCancelled(t *testing.T) {
	t.Run("before the action: the action never happens", func(t *testing.T) {
		h, saga := newHarness(t), uuid.NewString()
		id := h.funded("100.00")
		h.want(h.post(ask(cancel, saga, step, id, "")), cancelled, "")
		h.want(h.post(ask(debit, saga, step, id, "60.00")), cancelled, "")
		h.holds(id, "100.00")
	})
	t.Run("a late duplicate of a credit stays cancelled", func(t *testing.T) {
		h, saga := newHarness(t), uuid.NewString()
		id := h.funded("100.00")
		p := ask(credit, saga, "credit_destination", id, "60.00")
		h.suspend(id)
		h.want(h.post(ask(cancel, saga, "credit_destination", id, "")), cancelled, "")
		h.activate(id)
		for range 3 {
			h.want(h.post(p), cancelled, "")
		}
		h.holds(id, "100.00")
	})
	t.Run("a late duplicate of a refused credit stays refused", func(t *testing.T) {
		h, saga := newHarness(t), uuid.NewString()
		id := h.funded("100.00")
		p := ask(credit, saga, "credit_destination", id, "60.00")
		h.suspend(id)
		h.want(h.post(p), refused, "ACCOUNT_SUSPENDED")
		h.activate(id)
		h.want(h.post(p), refused, "ACCOUNT_SUSPENDED")
		h.holds(id, "100.00")
	})
	t.Run("after the action: done", func(t *testing.T) {
		h, saga := newHarness(t), uuid.NewString()
		id := h.funded("100.00")
		h.want(h.post(ask(debit, saga, step, id, "60.00")), done, "")
		got := h.post(ask(cancel, saga, step, id, ""))
		h.want(got, done, "")
		if got.GetNewBalance() != "40.00" || !got.GetReplayed() {
			t.Errorf("got %v", got)
		}
		h.holds(id, "40.00")
	})
	t.Run("on an account that does not exist", func(t *testing.T) {
		h, saga, id := newHarness(t), uuid.NewString(), uuid.NewString()
		h.want(h.post(ask(cancel, saga, step, id, "")), cancelled, "")
		h.want(h.post(ask(debit, saga, step, id, "1.00")), cancelled, "")
		if _, err := h.GetAccount(t.Context(), &accountv1.GetAccountRequest{AccountId: id}); rpc.ErrorOf(err).Reason != "ACCOUNT_NOT_FOUND" {
			t.Errorf("got %v", err)
		}
	})
}

func (h *harness) setStatus(id string, s account.Status) {
	h.t.Helper()
	_, err := h.ChangeAccountStatus(h.t.Context(), &accountv1.ChangeAccountStatusRequest{AccountId: id, Status: string(s), Reason: "asked"})
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *harness) suspend(id string)  { h.t.Helper(); h.setStatus(id, account.Suspended) }
func (h *harness) activate(id string) { h.t.Helper(); h.setStatus(id, account.Active) }

func TestRollback(t *testing.T) {
	t.Run("without the debit nothing moves, and a late debit is cancelled", func(t *testing.T) {
		h, saga := newHarness(t), uuid.NewString()
		id := h.funded("100.00")
		h.want(h.post(undoing(saga, step, id)), cancelled, "")
		h.want(h.post(ask(debit, saga, step, id, "60.00")), cancelled, "")
		h.want(h.post(undoing(saga, step, id)), cancelled, "")
		h.holds(id, "100.00")
	})
	t.Run("twice has its effect once", func(t *testing.T) {
		h, saga := newHarness(t), uuid.NewString()
		id := h.funded("100.00")
		h.want(h.post(ask(debit, saga, step, id, "60.00")), done, "")
		first := h.post(undoing(saga, step, id))
		h.want(first, done, "")
		h.want(h.post(ask(debit, uuid.NewString(), step, id, "5.00")), done, "")
		again := h.post(undoing(saga, step, id))
		h.want(again, done, "")
		if first.GetNewBalance() != "100.00" || again.GetNewBalance() != "100.00" || first.GetReplayed() || !again.GetReplayed() || first.GetVersion() != again.GetVersion() {
			t.Errorf("first %v\nagain %v", first, again)
		}
		h.holds(id, "95.00")
	})
	t.Run("of a credit", func(t *testing.T) {
		h, saga := newHarness(t), uuid.NewString()
		id := h.funded("100.00")
		h.want(h.post(ask(credit, saga, step, id, "60.00")), done, "")
		h.want(h.post(undoing(saga, step, id)), done, "")
		h.holds(id, "100.00")
	})
	t.Run("over the maximum", func(t *testing.T) {
		h, saga := newHarness(t), uuid.NewString()
		id := h.funded("100.00", upTo("100.00"))
		h.want(h.post(ask(debit, saga, step, id, "60.00")), done, "")
		h.want(h.post(ask(credit, uuid.NewString(), step, id, "60.00")), done, "")
		h.want(h.post(undoing(saga, step, id)), done, "")
		h.holds(id, "160.00")
		h.want(h.post(ask(credit, uuid.NewString(), step, id, "0.01")), refused, "MAX_BALANCE")
	})
	t.Run("on a suspended account", func(t *testing.T) {
		h, saga := newHarness(t), uuid.NewString()
		id := h.funded("100.00")
		h.want(h.post(ask(debit, saga, step, id, "60.00")), done, "")
		h.suspend(id)
		h.want(h.post(undoing(saga, step, id)), done, "")
		h.holds(id, "100.00")
	})
	t.Run("on a closed account", func(t *testing.T) {
		h, saga := newHarness(t), uuid.NewString()
		id := h.funded("60.00")
		h.want(h.post(ask(debit, saga, step, id, "60.00")), done, "")
		h.setStatus(id, account.Closed)
		h.want(h.post(undoing(saga, step, id)), done, "")
		h.holds(id, "60.00")
	})
	t.Run("named in upper case it finds account and step", func(t *testing.T) {
		h, saga := newHarness(t), uuid.NewString()
		id := h.funded("100.00")
		h.want(h.post(ask(debit, strings.ToUpper(saga), step, strings.ToUpper(id), "60.00")), done, "")
		h.want(h.post(ask(debit, saga, step, id, "60.00")), done, "")
		h.want(h.post(undoing(strings.ToUpper(saga), step, strings.ToUpper(id))), done, "")
		h.want(h.post(undoing(saga, step, id)), done, "")
		h.holds(id, "100.00")
	})
	t.Run("many in one request", func(t *testing.T) {
		h := newHarness(t)
		id, req := h.funded("100.00"), &accountv1.PostRequest{}
		for range 50 {
			saga := uuid.NewString()
			h.want(h.post(ask(debit, saga, step, id, "1.00")), done, "")
			req.Postings = append(req.Postings, undoing(saga, step, id), undoing(saga, step, id))
		}
		h.holds(id, "50.00")
		res, err := h.Post(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range res.GetResults() {
			h.want(r, done, "")
		}
		h.holds(id, "100.00")
	})
}

// A step's key names one posting: asked with other content it moves nothing.
func TestSameStepWithOtherContentIsAConflict(t *testing.T) {
	for name, change := range map[string]func(*accountv1.Posting){
		"another amount":   func(p *accountv1.Posting) { p.Amount = "60.01" },
		"another kind":     func(p *accountv1.Posting) { p.Kind = credit },
		"another currency": func(p *accountv1.Posting) { p.Currency = "EUR" },
	} {
		t.Run(name, func(t *testing.T) {
			h, saga := newHarness(t), uuid.NewString()
			id := h.funded("100.00")
			h.want(h.post(ask(debit, saga, step, id, "60.00")), done, "")
			p := ask(debit, saga, step, id, "60.00")
			change(p)
			h.want(h.post(p), undecidedOutcome, "IDEMPOTENCY_CONFLICT")
			h.holds(id, "40.00")
			if n := len(h.events(id)); n != 3 {
				t.Errorf("%d events", n)
			}
		})
	}
	t.Run("the same amount written otherwise is no conflict", func(t *testing.T) {
		h, saga := newHarness(t), uuid.NewString()
		id := h.funded("100.00")
		h.want(h.post(ask(debit, saga, step, id, "60.00")), done, "")
		h.want(h.post(ask(debit, saga, step, id, "60")), done, "")
		h.holds(id, "40.00")
	})
}

func TestPostIsBounded(t *testing.T) {
	h := newHarness(t)
	for _, n := range []int{0, edge.BatchMax + 1} {
		if _, err := h.Post(t.Context(), &accountv1.PostRequest{Postings: make([]*accountv1.Posting, n)}); rpc.ErrorOf(err).Reason != "INVALID_ARGUMENT" {
			t.Errorf("%d postings: %v", n, err)
		}
	}
	if _, err := h.InspectAccounts(t.Context(), &accountv1.InspectAccountsRequest{AccountIds: make([]string, edge.BatchMax+1)}); rpc.ErrorOf(err).Reason != "INVALID_ARGUMENT" {
		t.Errorf("got %v", err)
	}
}

// Each posting of a batch stands alone.
func TestBatchWithMalformedPostings(t *testing.T) {
	h := newHarness(t)
	id := h.funded("100.00")
	good := func() *accountv1.Posting { return ask(debit, uuid.NewString(), step, id, "1.00") }
	bad := map[string]func(*accountv1.Posting){
		"sagaId":    func(p *accountv1.Posting) { p.SagaId = "x" },
		"accountId": func(p *accountv1.Posting) { p.AccountId = "" },
		"step":      func(p *accountv1.Posting) { p.Step = "" },
		"kind":      func(p *accountv1.Posting) { p.Kind = 0 },
		"amount":    func(p *accountv1.Posting) { p.Amount = "one" },
		"amount 0":  func(p *accountv1.Posting) { p.Amount = "0" },
		"amount -1": func(p *accountv1.Posting) { p.Amount = "-1" },
		"currency":  func(p *accountv1.Posting) { p.Currency = "" },
		"undoStep":  func(p *accountv1.Posting) { p.Kind = rollback },
		"undoStep is step": func(p *accountv1.Posting) {
			p.Kind, p.UndoStep = rollback, p.Step
		},
	}
	req, names := &accountv1.PostRequest{Postings: []*accountv1.Posting{good()}}, []string{""}
	for name, change := range bad {
		p := good()
		change(p)
		req.Postings, names = append(req.Postings, p, good()), append(names, name, "")
	}
	res, err := h.Post(t.Context(), req)
	if err != nil || len(res.GetResults()) != len(names) {
		t.Fatalf("%v, %v", res, err)
	}
	for i, r := range res.GetResults() {
		field, _, _ := strings.Cut(names[i], " ")
		switch {
		case field == "":
			h.want(r, done, "")
		case r.GetOutcome() != undecidedOutcome || r.GetErrorReason() != "INVALID_ARGUMENT" || !strings.Contains(r.GetErrorMessage(), field):
			t.Errorf("%s: got %v", names[i], r)
		}
	}
	h.holds(id, fmt.Sprintf("%d.00", 100-len(bad)-1))
}

// What the saga knows of its origin stands in the events.
func TestPostingKeepsItsOrigin(t *testing.T) {
	h, saga := newHarness(t), uuid.NewString()
	id := h.funded("100.00")
	h.want(h.post(ask(debit, saga, step, id, "60.00")), done, "")
	e := h.events(id)[2]
	for key, want := range map[string]string{"tenantId": "default", "actor": "ann", "sagaId": saga, "step": step, "causedBy": "event-1"} {
		if e.Metadata[key] != want {
			t.Errorf("metadata %s is %v, want %s", key, e.Metadata[key], want)
		}
	}
	if e.CorrelationID != "corr-1" || e.CausationID == "" {
		t.Errorf("event %+v", e)
	}
}

func TestInspectAccounts(t *testing.T) {
	h := newHarness(t)
	user, outside, none := h.open(account.User), h.open(account.External), uuid.NewString()
	h.suspend(user)
	res, err := h.InspectAccounts(context.Background(), &accountv1.InspectAccountsRequest{AccountIds: []string{outside, none, user}})
	want := &accountv1.InspectAccountsResponse{Accounts: []*accountv1.InspectedAccount{
		{AccountId: outside, Found: true, AccountType: "EXTERNAL", Currency: "USD", Status: "active"},
		{AccountId: none},
		{AccountId: user, Found: true, AccountType: "USER", Currency: "USD", Status: "suspended"},
	}}
	if err != nil || !proto.Equal(res, want) {
		t.Errorf("got %v, %v\nwant %v", res, err, want)
	}
}
