package clients

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"example.com/billing/pkg/rpc"
	"example.com/billing/pkg/saga"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	orchestrator "example.com/billing/services/saga-orchestrator"
)

func registers(t *testing.T, s *services) map[string]saga.Registers {
	t.Helper()
	c := New(s, s)
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c.Registers()
}

// Every action that touches an account has a register; what ends the transaction has none.
func TestRegistersAreTheMoneyActions(t *testing.T) {
	s := &services{}
	have := registers(t, s)
	for name := range actions(t, s) {
		_, has := have[name]
		if want := !strings.HasSuffix(name, "_transaction"); has != want {
			t.Errorf("%s has a register: %t", name, has)
		}
		delete(have, name)
	}
	if len(have) > 0 {
		t.Errorf("registers of no action: %v", have)
	}
}

// A cancel goes to the register that the action itself writes: same saga, step and account.
func TestCancelAsksForTheActionsRegister(t *testing.T) {
	for name := range registers(t, &services{}) {
		if strings.HasSuffix(name, "_rollback") {
			continue
		}
		s := &services{post: func(*accountv1.Posting) *accountv1.PostingResult { return &accountv1.PostingResult{Outcome: done} }}
		c := New(s, s)
		for _, ask := range []saga.Action{c.Actions()[name], c.Registers()[name].Cancel} {
			if _, err := ask(t.Context(), call(name)); err != nil {
				t.Fatal(err)
			}
		}
		_ = c.Close(t.Context())
		action, cancel := s.postings[0], s.postings[1]
		want := &accountv1.Posting{
			SagaId: action.GetSagaId(), Step: action.GetStep(), AccountId: action.GetAccountId(), Kind: accountv1.PostingKind_POSTING_KIND_CANCEL,
			CorrelationId: "corr-1", CausedBy: "event-1", TenantId: "default", Actor: "ann",
		}
		if !proto.Equal(cancel, want) {
			t.Errorf("%s is done as %v\nand cancelled as %v", name, action, cancel)
		}
	}
}

func TestCancelOutcomes(t *testing.T) {
	was := saga.Answer{Outcome: saga.Refused, Reason: "POSTING_CANCELLED", Message: "The posting was cancelled before it was done."}
	for _, tc := range []struct {
		name, action string
		result       *accountv1.PostingResult
		want         saga.Answer
		unknown      bool
	}{
		{"it had been done", "debit_source", &accountv1.PostingResult{Outcome: done, NewBalance: "50.00"},
			saga.Answer{Outcome: saga.Done, Result: map[string]any{"sourceNewBalance": "50.00"}}, false},
		{"it had been done", "place_hold", &accountv1.PostingResult{Outcome: done, NewBalance: "50.00", AvailableBalance: "10.00"},
			saga.Answer{Outcome: saga.Done, Result: map[string]any{"availableBalance": "10.00"}}, false},
		{"it had been refused", "credit_destination", &accountv1.PostingResult{Outcome: refused, ErrorReason: "MAX_BALANCE", ErrorMessage: "no"},
			saga.Answer{Outcome: saga.Refused, Reason: "MAX_BALANCE", Message: "no"}, false},
		{"it never will be", "credit_destination", &accountv1.PostingResult{Outcome: accountv1.PostingOutcome_POSTING_OUTCOME_CANCELLED}, was, false},
		{"nobody knows", "debit_source", &accountv1.PostingResult{ErrorReason: "UNAVAILABLE", ErrorMessage: "later"}, saga.Answer{}, true},
		{"it cannot be asked", "debit_source", &accountv1.PostingResult{ErrorReason: "INVALID_ARGUMENT", ErrorMessage: "no"},
			saga.Answer{Outcome: saga.Stuck, Reason: "INVALID_ARGUMENT", Message: "no"}, false},
		{"of a rollback", "credit_source_rollback", nil, saga.Answer{Outcome: saga.Stuck, Reason: "INTERNAL", Message: "a rollback is never cancelled: credit_source_rollback"}, false},
	} {
		t.Run(tc.action+": "+tc.name, func(t *testing.T) {
			s := &services{post: func(*accountv1.Posting) *accountv1.PostingResult { return tc.result }}
			got, err := registers(t, s)[tc.action].Cancel(t.Context(), call(tc.action))
			if (err != nil) != tc.unknown || !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v, %v", got, err)
			}
			if tc.result == nil && len(s.postings) > 0 {
				t.Errorf("asked %v", s.postings)
			}
		})
	}
}

func TestReadRegister(t *testing.T) {
	undo := call(orchestrator.CreditSourceRollback)
	undo.Undoes = orchestrator.DebitSource
	for _, tc := range []struct {
		call saga.Call
		key  *accountv1.RegisterKey
	}{
		{call("debit_source"), &accountv1.RegisterKey{SagaId: sagaID, Step: "debit_source", AccountId: src}},
		{call("credit_destination"), &accountv1.RegisterKey{SagaId: sagaID, Step: "credit_destination", AccountId: dst}},
		{undo, &accountv1.RegisterKey{SagaId: sagaID, Step: "credit_source_rollback", AccountId: src, UndoStep: "debit_source"}},
	} {
		for state, want := range map[accountv1.RegisterState]saga.Register{1: "open", 2: "done", 3: "refused", 4: "cancelled", 0: "", 99: ""} {
			s := &services{read: func(*accountv1.RegisterKey) *accountv1.RegisterContent {
				return &accountv1.RegisterContent{State: state, ErrorReason: "UNAVAILABLE", ErrorMessage: "later"}
			}}
			got, err := registers(t, s)[tc.call.Action].Read(t.Context(), tc.call)
			if got != want || (err != nil) != (want == "") {
				t.Errorf("%s, %s: got %q, %v", tc.call.Action, state, got, err)
			}
			if len(s.keys) != 1 || !proto.Equal(s.keys[0], tc.key) {
				t.Errorf("asked %v, want %v", s.keys, tc.key)
			}
		}
	}
}

// What cannot be asked, or has no answer, is an error, and never "open".
func TestReadRegisterUnknown(t *testing.T) {
	for name, tc := range map[string]struct {
		services *services
		call     saga.Call
	}{
		"a call that fails":                       {&services{err: errors.New("connection lost")}, call("debit_source")},
		"an answer missing":                       {&services{few: true, read: func(*accountv1.RegisterKey) *accountv1.RegisterContent { return nil }}, call("debit_source")},
		"a rollback that says not what it undoes": {&services{}, call("credit_source_rollback")},
	} {
		if got, err := registers(t, tc.services)[tc.call.Action].Read(t.Context(), tc.call); err == nil || got != "" {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
}

// Many sagas' questions share requests, and each gets its own answer.
func TestRegistersAreNotMixedUp(t *testing.T) {
	s := &services{read: func(k *accountv1.RegisterKey) *accountv1.RegisterContent {
		if strings.HasSuffix(k.GetSagaId(), "1") {
			return &accountv1.RegisterContent{State: accountv1.RegisterState_REGISTER_STATE_DONE}
		}
		return &accountv1.RegisterContent{State: accountv1.RegisterState_REGISTER_STATE_OPEN}
	}}
	register := registers(t, s)["debit_source"]
	var wg sync.WaitGroup
	for i := range 500 {
		wg.Go(func() {
			c, want := call("debit_source"), saga.RegisterOpen
			if c.SagaID = fmt.Sprint("saga-", i); i%10 == 1 {
				want = saga.RegisterDone
			}
			if got, err := register.Read(t.Context(), c); err != nil || got != want {
				t.Errorf("%s got %s, %v", c.SagaID, got, err)
			}
		})
	}
	wg.Wait()
}

// What names no register that there could be never will be done, so that a person can give its saga up.
func TestReadRegisterOfNothing(t *testing.T) {
	unreadable := call("debit_source")
	unreadable.Input = json.RawMessage(`[]`)
	s := &services{read: func(*accountv1.RegisterKey) *accountv1.RegisterContent {
		return &accountv1.RegisterContent{ErrorReason: "INVALID_ARGUMENT", ErrorMessage: "accountId"}
	}}
	for _, c := range []saga.Call{unreadable, call("debit_source")} {
		if got, err := registers(t, s)["debit_source"].Read(t.Context(), c); got != saga.RegisterRefused || err != nil {
			t.Errorf("%s: got %q, %v", c.Input, got, err)
		}
	}
}

// A transaction's status says whether it waits for an action: while it is pending, what would end it is open.
func TestReports(t *testing.T) {
	lost := errors.New("connection lost")
	for _, tc := range []struct {
		status                      string
		err                         error
		complete, fail, compensated saga.Register
	}{
		{"pending", nil, saga.RegisterOpen, saga.RegisterOpen, saga.RegisterOpen},
		{"completed", nil, saga.RegisterDone, saga.RegisterRefused, saga.RegisterRefused},
		{"failed", nil, saga.RegisterRefused, saga.RegisterDone, saga.RegisterRefused},
		{"compensated", nil, saga.RegisterRefused, saga.RegisterRefused, saga.RegisterDone},
		{"", rpc.Fail("TRANSACTION_NOT_FOUND", "There is none."), saga.RegisterRefused, saga.RegisterRefused, saga.RegisterRefused},
		{"", lost, "", "", ""},
	} {
		s := &services{status: func(string) (string, error) { return tc.status, tc.err }}
		c := New(s, s)
		for action, want := range map[string]saga.Register{
			orchestrator.CompleteTransaction: tc.complete, orchestrator.FailTransaction: tc.fail, orchestrator.CompensateTransaction: tc.compensated,
		} {
			got, err := c.Reports()[action](t.Context(), call(action))
			if got != want || (err != nil) != (want == "") {
				t.Errorf("%s of a transaction that is %q (%v): %q, %v", action, tc.status, tc.err, got, err)
			}
		}
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
