package api

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
	"example.com/billing/services/account/readmodel"
)

const (
	placing   = accountv1.PostingKind_POSTING_KIND_HOLD
	releasing = accountv1.PostingKind_POSTING_KIND_RELEASE
)

func onHold(p *accountv1.Posting, hold string) *accountv1.Posting {
	p.HoldId = hold
	return p
}

// has fails the test unless the account has this much posted, held and available.
func (h *harness) has(accountID, posted, held, available string) {
	h.t.Helper()
	res, err := h.GetAccount(h.t.Context(), &accountv1.GetAccountRequest{AccountId: accountID})
	if a := res.GetAccount(); err != nil || a.GetBalance() != posted || a.GetHeldBalance() != held || a.GetAvailableBalance() != available {
		h.t.Fatalf("the account has %v (%v), want %s, %s, %s", a, err, posted, held, available)
	}
}

// A hold's life by its postings; each of them sent twice has the effect and the answer of once.
func TestHoldPostings(t *testing.T) {
	h, hold := newHarness(t), uuid.NewString()
	id := h.funded("100.00")
	twice := func(p *accountv1.Posting, outcome accountv1.PostingOutcome, reason, available string) {
		t.Helper()
		first := h.post(p)
		h.want(first, outcome, reason)
		again := h.post(p)
		if first.GetAvailableBalance() != available || !again.GetReplayed() {
			t.Fatalf("%v, then %v", first, again)
		}
		if again.Replayed = false; !proto.Equal(first, again) {
			t.Fatalf("%v, then %v", first, again)
		}
	}
	twice(onHold(ask(placing, hold, "place_hold", id, "60.00"), hold), done, "", "40.00")
	h.has(id, "100.00", "60.00", "40.00")
	twice(ask(debit, uuid.NewString(), step, id, "40.01"), refused, "INSUFFICIENT_FUNDS", "")
	first, second := uuid.NewString(), uuid.NewString()
	twice(onHold(ask(debit, first, "debit_customer", id, "45.00"), hold), done, "", "40.00")
	h.has(id, "55.00", "15.00", "40.00")
	twice(onHold(ask(debit, second, "debit_customer", id, "15.01"), hold), refused, "CAPTURE_EXCEEDS_HOLD", "")
	h.want(h.post(undoing(first, "debit_customer", id)), done, "")
	h.want(h.post(undoing(first, "debit_customer", id)), done, "")
	h.has(id, "100.00", "60.00", "40.00")
	h.want(h.post(onHold(ask(debit, first, "debit_customer", id, "45.00"), hold)), done, "") // its register says so, for ever
	h.has(id, "100.00", "60.00", "40.00")
	twice(onHold(ask(releasing, uuid.NewString(), "release_hold", id, ""), hold), done, "", "100.00")
	h.has(id, "100.00", "0.00", "100.00")
	twice(onHold(ask(debit, uuid.NewString(), "debit_customer", id, "1.00"), hold), refused, "HOLD_NOT_ACTIVE", "")
}

// A step's key belongs to what it was first asked for.
func TestHoldPostingsWithOtherContent(t *testing.T) {
	h, hold := newHarness(t), uuid.NewString()
	id := h.funded("100.00")
	h.want(h.post(onHold(ask(placing, hold, "place_hold", id, "60.00"), hold)), done, "")
	for name, p := range map[string]*accountv1.Posting{
		"another amount":    onHold(ask(placing, hold, "place_hold", id, "60.01"), hold),
		"another hold":      onHold(ask(placing, hold, "place_hold", id, "60.00"), uuid.NewString()),
		"another direction": ask(debit, hold, "place_hold", id, "60.00"),
	} {
		t.Run(name, func(t *testing.T) { h.want(h.post(p), undecidedOutcome, "IDEMPOTENCY_CONFLICT") })
	}
	for name, p := range map[string]*accountv1.Posting{
		"hold without an id":    ask(placing, uuid.NewString(), "place_hold", id, "1.00"),
		"release without an id": ask(releasing, uuid.NewString(), "release_hold", id, ""),
		"hold of nothing":       onHold(ask(placing, uuid.NewString(), "place_hold", id, "0.00"), hold),
		"capture of no hold":    onHold(ask(debit, uuid.NewString(), "debit_customer", id, "1.00"), "no-id"),
	} {
		t.Run(name, func(t *testing.T) { h.want(h.post(p), undecidedOutcome, "INVALID_ARGUMENT") })
	}
	h.has(id, "100.00", "60.00", "40.00")
}

func (h *harness) close(accountID string) *accountv1.Account {
	h.t.Helper()
	res, err := h.ChangeAccountStatus(h.t.Context(), &accountv1.ChangeAccountStatusRequest{AccountId: accountID, Status: "closed", Reason: "asked", IdempotencyKey: proto.String("close")})
	if err != nil {
		h.t.Fatal(err)
	}
	return res.GetAccount()
}

// statusOf reads, and changes nothing: to ask for the closing again could end it.
func (h *harness) statusOf(accountID string) string {
	h.t.Helper()
	res, err := h.GetAccount(h.t.Context(), &accountv1.GetAccountRequest{AccountId: accountID})
	if err != nil {
		h.t.Fatal(err)
	}
	return res.GetAccount().GetStatus()
}

// An account closes once no open transaction names it; until then it is closing, and what comes back opens it again.
func TestClosing(t *testing.T) {
	newClosing := func(t *testing.T) (h *harness, id string, open *[]string, asked *error) {
		h = newHarness(t)
		open, asked = &[]string{}, new(error)
		h.Closing.Log = slog.New(slog.DiscardHandler)
		h.Closing.Open = func(context.Context, string) ([]string, error) { return *open, *asked }
		h.Closing.Accounts = func(_ context.Context, after string, _ int) ([]readmodel.Closing, error) {
			if after == "" && h.statusOf(id) == "closing" {
				return []readmodel.Closing{{AccountID: id, TenantID: "default"}}, nil
			}
			return nil, nil
		}
		return h, h.funded("5.00"), open, asked
	}
	drain := func(h *harness, id, saga string) { h.want(h.post(ask(debit, saga, step, id, "5.00")), done, "") }
	t.Run("nothing is under way", func(t *testing.T) {
		h, id, _, _ := newClosing(t)
		drain(h, id, uuid.NewString())
		if a := h.close(id); a.GetStatus() != "closed" {
			t.Errorf("the account is %s", a.GetStatus())
		}
		if a := h.close(id); a.GetStatus() != "closed" {
			t.Errorf("asked again, the account is %s", a.GetStatus())
		}
	})
	t.Run("a transaction is under way, and ends", func(t *testing.T) {
		h, id, open, _ := newClosing(t)
		drain(h, id, uuid.NewString())
		*open = []string{"some"}
		if a := h.close(id); a.GetStatus() != "closing" {
			t.Fatalf("the account is %s", a.GetStatus())
		}
		h.want(h.post(ask(credit, uuid.NewString(), step, id, "1.00")), refused, "ACCOUNT_CLOSING")
		if err := h.Closing.sweep(t.Context()); err != nil || h.statusOf(id) != "closing" {
			t.Fatalf("closed over an open transaction (%v)", err)
		}
		*open = nil
		if err := h.Closing.sweep(t.Context()); err != nil || h.statusOf(id) != "closed" {
			t.Errorf("not closed (%v)", err)
		}
	})
	t.Run("the transaction is undone: there is money again", func(t *testing.T) {
		h, id, open, _ := newClosing(t)
		saga := uuid.NewString()
		drain(h, id, saga)
		*open = []string{saga}
		h.close(id)
		h.want(h.post(undoing(saga, step, id)), done, "")
		*open = nil
		if err := h.Closing.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		res, err := h.GetAccount(t.Context(), &accountv1.GetAccountRequest{AccountId: id})
		if a := res.GetAccount(); err != nil || a.GetStatus() != "active" || a.GetBalance() != "5.00" {
			t.Errorf("the account is %v (%v)", a, err)
		}
	})
	t.Run("nobody knows whether one is under way", func(t *testing.T) {
		h, id, _, asked := newClosing(t)
		drain(h, id, uuid.NewString())
		*asked = errors.New("no answer")
		if a := h.close(id); a.GetStatus() != "closing" {
			t.Errorf("the account is %s", a.GetStatus())
		}
		if err := h.Closing.sweep(t.Context()); err != nil || h.statusOf(id) != "closing" {
			t.Errorf("closed without knowing (%v)", err)
		}
		*asked = nil
		if err := h.Closing.sweep(t.Context()); err != nil || h.statusOf(id) != "closed" {
			t.Errorf("not closed (%v)", err)
		}
	})
	t.Run("the answer is about the account as it was", func(t *testing.T) {
		h, id, _, _ := newClosing(t)
		drain(h, id, uuid.NewString())
		h.Closing.Open = func(context.Context, string) ([]string, error) { // meanwhile it is used again, and told to close again
			h.Closing.Open = func(context.Context, string) ([]string, error) { return []string{"some"}, nil }
			for _, status := range []string{"active", "closed"} {
				if _, err := h.ChangeAccountStatus(t.Context(), &accountv1.ChangeAccountStatusRequest{AccountId: id, Status: status, Reason: "again"}); err != nil {
					t.Error(err)
				}
			}
			return nil, nil
		}
		if a := h.close(id); a.GetStatus() != "closing" {
			t.Errorf("the account is %s", a.GetStatus())
		}
	})
	t.Run("with a hold, or money", func(t *testing.T) {
		h, hold := newHarness(t), uuid.NewString()
		below := "-10.00"
		id := h.open(account.User, func(r *accountv1.CreateAccountRequest) { r.MinBalance = &below })
		h.want(h.post(onHold(ask(placing, hold, "place_hold", id, "1.00"), hold)), done, "")
		closing := &accountv1.ChangeAccountStatusRequest{AccountId: id, Status: "closed", Reason: "asked"}
		if _, err := h.ChangeAccountStatus(t.Context(), closing); reasonOf(err) != "HOLDS_OPEN" {
			t.Errorf("got %v", err)
		}
		closing.AccountId = h.funded("1.00")
		if _, err := h.ChangeAccountStatus(t.Context(), closing); reasonOf(err) != "BALANCE_NOT_ZERO" {
			t.Errorf("got %v", err)
		}
		closing.Status = "closing"
		if _, err := h.ChangeAccountStatus(t.Context(), closing); reasonOf(err) != "INVALID_ARGUMENT" {
			t.Errorf("closing is no status to ask for: %v", err)
		}
	})
}

// reasonOf is why a request was not carried out.
func reasonOf(err error) string {
	if r := es.RefusalOf(err); r != nil {
		return r.Reason
	}
	if e := rpc.ErrorOf(err); e != nil {
		return e.Reason
	}
	return ""
}

// A hold moved no money: it is given back by a release, and never by a rollback, which would take money for it.
func TestAHoldIsNotRolledBack(t *testing.T) {
	h, hold := newHarness(t), uuid.NewString()
	id := h.funded("100.00")
	h.want(h.post(onHold(ask(placing, hold, "place_hold", id, "30.00"), hold)), done, "")
	h.want(h.post(undoing(hold, "place_hold", id)), undecidedOutcome, "INVALID_ARGUMENT")
	h.has(id, "100.00", "30.00", "70.00")
	release := uuid.NewString()
	h.want(h.post(onHold(ask(releasing, release, "release_hold", id, ""), hold)), done, "")
	h.want(h.post(undoing(release, "release_hold", id)), undecidedOutcome, "INVALID_ARGUMENT")
	h.has(id, "100.00", "0.00", "100.00")
}
