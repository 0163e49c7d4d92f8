package api

import (
	"strings"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
	"example.com/billing/services/edge"
)

const (
	isUnknown   = accountv1.RegisterState_REGISTER_STATE_UNSPECIFIED
	isOpen      = accountv1.RegisterState_REGISTER_STATE_OPEN
	isDone      = accountv1.RegisterState_REGISTER_STATE_DONE
	isRefused   = accountv1.RegisterState_REGISTER_STATE_REFUSED
	isCancelled = accountv1.RegisterState_REGISTER_STATE_CANCELLED
)

// readRegisters reads them in one request.
func (h *harness) readRegisters(keys ...*accountv1.RegisterKey) []*accountv1.RegisterContent {
	h.t.Helper()
	res, err := h.ReadRegisters(h.t.Context(), &accountv1.ReadRegistersRequest{Registers: keys})
	if err != nil || len(res.GetRegisters()) != len(keys) {
		h.t.Fatalf("read %d registers: %v, %v", len(keys), res, err)
	}
	return res.GetRegisters()
}

func registerOf(p *accountv1.Posting) *accountv1.RegisterKey {
	return &accountv1.RegisterKey{SagaId: p.GetSagaId(), Step: p.GetStep(), AccountId: p.GetAccountId(), UndoStep: p.GetUndoStep()}
}

// A register reads as what the postings made of it, by themselves and all in one request; reading writes nothing.
func TestReadRegisters(t *testing.T) {
	h := newHarness(t)
	id, other, hold := h.funded("100.00"), h.funded("7.00"), uuid.NewString()
	asked := func(p *accountv1.Posting, outcome accountv1.PostingOutcome, reason string) *accountv1.Posting {
		t.Helper()
		h.want(h.post(p), outcome, reason)
		return p
	}
	newDebit := func(amount string) *accountv1.Posting { return ask(debit, uuid.NewString(), step, id, amount) }
	upper := func(p *accountv1.Posting) *accountv1.Posting {
		p = proto.Clone(p).(*accountv1.Posting)
		p.SagaId, p.AccountId = strings.ToUpper(p.GetSagaId()), strings.ToUpper(p.GetAccountId())
		return p
	}
	paid := asked(newDebit("10.00"), done, "") // 90.00
	elsewhere := proto.Clone(paid).(*accountv1.Posting)
	elsewhere.AccountId = other
	tooMuch := asked(newDebit("90.01"), refused, "INSUFFICIENT_FUNDS")
	never := asked(ask(cancel, uuid.NewString(), step, id, ""), cancelled, "")
	back := asked(newDebit("20.00"), done, "") // 70.00
	undone := asked(undoing(back.GetSagaId(), step, id), done, "")
	nothing := asked(undoing(uuid.NewString(), step, id), cancelled, "")
	held := asked(onHold(ask(placing, hold, "place_hold", id, "40.00"), hold), done, "")
	nobody := asked(ask(cancel, uuid.NewString(), step, uuid.NewString(), ""), cancelled, "")

	for _, tc := range []struct {
		name    string
		posting *accountv1.Posting
		want    *accountv1.RegisterContent
	}{
		{"open", newDebit("1.00"), &accountv1.RegisterContent{State: isOpen}},
		{"open, on an account that does not exist", ask(debit, uuid.NewString(), step, uuid.NewString(), "1.00"), &accountv1.RegisterContent{State: isOpen}},
		{"open, although another account has one of this step", elsewhere, &accountv1.RegisterContent{State: isOpen}},
		{"done", paid, &accountv1.RegisterContent{State: isDone, NewBalance: "90.00", AvailableBalance: "90.00", Version: 3}},
		{"done, named in upper case", upper(paid), &accountv1.RegisterContent{State: isDone, NewBalance: "90.00", AvailableBalance: "90.00", Version: 3}},
		{"done, a hold", held, &accountv1.RegisterContent{State: isDone, NewBalance: "90.00", AvailableBalance: "50.00", Version: 9}},
		{"refused", tooMuch, &accountv1.RegisterContent{
			State: isRefused, ErrorReason: "INSUFFICIENT_FUNDS", ErrorMessage: "The account holds 90.00 USD, less than 90.01.", Version: 4,
		}},
		{"cancelled", never, &accountv1.RegisterContent{State: isCancelled, Version: 5}},
		{"cancelled, on an account that does not exist", nobody, &accountv1.RegisterContent{State: isCancelled, Version: 1}},
		{"a rollback of nothing yet", undoing(uuid.NewString(), step, id), &accountv1.RegisterContent{State: isOpen}},
		{"a rollback that is still to come", undoing(paid.GetSagaId(), step, id), &accountv1.RegisterContent{State: isOpen}},
		{"a rollback, done", undone, &accountv1.RegisterContent{State: isDone, NewBalance: "90.00", AvailableBalance: "90.00", Version: 7}},
		{"a rollback, done, what it undid", back, &accountv1.RegisterContent{State: isDone, NewBalance: "70.00", AvailableBalance: "70.00", Version: 6}},
		{"a rollback of what was cancelled", nothing, &accountv1.RegisterContent{State: isCancelled, Version: 8}},
		{"a rollback of what was refused", undoing(tooMuch.GetSagaId(), step, id), &accountv1.RegisterContent{State: isCancelled, Version: 4}},
		{"a rollback of a hold", undoing(hold, "place_hold", id), &accountv1.RegisterContent{
			ErrorReason: "INVALID_ARGUMENT", ErrorMessage: `INVALID_ARGUMENT: Wrong in the request: undoStep (moved_money).; undoStep moved_money "place_hold"`,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := len(h.events(tc.posting.GetAccountId()))
			for i, got := range h.readRegisters(registerOf(newDebit("1.00")), registerOf(tc.posting), registerOf(paid), registerOf(tc.posting))[1:] {
				if i != 1 && !proto.Equal(got, tc.want) {
					t.Errorf("got %v\nwant %v", got, tc.want)
				}
			}
			if n := len(h.events(tc.posting.GetAccountId())); n != before {
				t.Errorf("reading wrote %d events", n-before)
			}
		})
	}
	t.Run("what was read open can still be done", func(t *testing.T) {
		p := newDebit("1.00")
		if got := h.readRegisters(registerOf(p))[0]; got.GetState() != isOpen {
			t.Errorf("got %v", got)
		}
		h.want(h.post(p), done, "")
	})
}

// A key that is none names field, rule and value, and leaves the others their answers.
func TestReadRegistersWithMalformedKeys(t *testing.T) {
	h := newHarness(t)
	id := h.funded("100.00")
	paid := ask(debit, uuid.NewString(), step, id, "10.00")
	h.want(h.post(paid), done, "")
	for want, change := range map[string]func(*accountv1.RegisterKey){
		`sagaId uuid "x"`:    func(k *accountv1.RegisterKey) { k.SagaId = "x" },
		`sagaId required ""`: func(k *accountv1.RegisterKey) { k.SagaId = "" },
		`accountId uuid "y"`: func(k *accountv1.RegisterKey) { k.AccountId = "y" },
		`step pattern:` + stepPattern.String() + ` "a/b"`:   func(k *accountv1.RegisterKey) { k.Step = "a/b" },
		`undoStep pattern:` + stepPattern.String() + ` "B"`: func(k *accountv1.RegisterKey) { k.UndoStep = "B" },
		`undoStep different_from:step "debit_source"`:       func(k *accountv1.RegisterKey) { k.UndoStep = k.GetStep() },
	} {
		bad := registerOf(paid)
		change(bad)
		got := h.readRegisters(registerOf(paid), bad, registerOf(paid))
		if c := got[1]; c.GetState() != isUnknown || c.GetErrorReason() != "INVALID_ARGUMENT" || !strings.Contains(c.GetErrorMessage(), want) {
			t.Errorf("got %v, want %s", c, want)
		}
		if got[0].GetState() != isDone || got[2].GetState() != isDone {
			t.Errorf("with %s the others got %v", want, got)
		}
	}
	for _, n := range []int{0, edge.BatchMax + 1} {
		_, err := h.ReadRegisters(t.Context(), &accountv1.ReadRegistersRequest{Registers: make([]*accountv1.RegisterKey, n)})
		if e := rpc.ErrorOf(err); e == nil || len(e.Violations) != 1 || e.Violations[0].Field != "registers" || e.Violations[0].Rule != "items:1..1000" {
			t.Errorf("%d registers: %v", n, err)
		}
	}
}

// On Postgres, as many as one request takes, half of them rollbacks.
func TestReadRegistersManyAtOnce(t *testing.T) {
	h := newPostgresHarness(t)
	id := h.funded("1000.00")
	req := &accountv1.PostRequest{}
	var keys []*accountv1.RegisterKey
	for i := range edge.BatchMax / 2 {
		p := ask(debit, uuid.NewString(), step, id, "1.00")
		if i%2 == 0 {
			req.Postings = append(req.Postings, p)
		}
		keys = append(keys, registerOf(p), registerOf(undoing(p.GetSagaId(), step, id)))
	}
	if _, err := h.Post(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	for i, got := range h.readRegisters(keys...) {
		want := isOpen
		if i%4 == 0 {
			want = isDone
		}
		if got.GetState() != want {
			t.Fatalf("register %d: %v", i, got)
		}
	}
	if n := h.count(id, account.PostingCancelled{}.EventType()); n != 0 {
		t.Errorf("reading left %d tombstones", n)
	}
}
