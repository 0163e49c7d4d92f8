package clients

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"example.com/billing/pkg/saga"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	orchestrator "example.com/billing/services/saga-orchestrator"
)

const (
	sagaID = "33333333-3333-4333-8333-333333333333"
	src    = "11111111-1111-4111-8111-111111111111"
	dst    = "22222222-2222-4222-8222-222222222222"
)

// services stand for the account and the transaction service: a connection that answers by itself.
type services struct {
	grpc.ClientConnInterface
	post   func(*accountv1.Posting) *accountv1.PostingResult
	settle func(*transactionv1.Settlement) *transactionv1.SettlementResult
	read   func(*accountv1.RegisterKey) *accountv1.RegisterContent
	status func(id string) (string, error) // of a transaction
	err    error
	few    bool // one result less than asked

	mu          sync.Mutex
	postings    []*accountv1.Posting
	settlements []*transactionv1.Settlement
	keys        []*accountv1.RegisterKey
}

func (s *services) Invoke(_ context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	switch req := args.(type) {
	case *accountv1.PostRequest:
		reply.(*accountv1.PostResponse).Results = answers(s.few, &s.postings, req.GetPostings(), s.post)
	case *transactionv1.SettleRequest:
		reply.(*transactionv1.SettleResponse).Results = answers(s.few, &s.settlements, req.GetSettlements(), s.settle)
	case *accountv1.ReadRegistersRequest:
		reply.(*accountv1.ReadRegistersResponse).Registers = answers(s.few, &s.keys, req.GetRegisters(), s.read)
	case *transactionv1.GetTransactionRequest:
		status, err := s.status(req.GetTransactionId())
		reply.(*transactionv1.GetTransactionResponse).Transaction = &transactionv1.Transaction{Status: status}
		return err
	default:
		return fmt.Errorf("%s is not expected", method)
	}
	return nil
}

// answers notes what is asked and answers it, the first one not if there are to be too few.
func answers[Q, A any](few bool, noted *[]Q, asked []Q, answer func(Q) A) []A {
	var all []A
	for _, q := range asked {
		*noted = append(*noted, q)
		all = append(all, answer(q))
	}
	if few {
		return all[1:]
	}
	return all
}

func actions(t *testing.T, s *services) map[string]saga.Action {
	t.Helper()
	c := New(s, s)
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c.Actions()
}

func call(action string) saga.Call {
	return saga.Call{
		SagaID: sagaID, SagaType: "transfer", Action: action,
		Input:         json.RawMessage(`{"sourceAccountId":"` + src + `","destinationAccountId":"` + dst + `","amount":"50.00","currency":"USD"}`),
		CorrelationID: "corr-1", CausedBy: "event-1", Metadata: map[string]any{"tenantId": "default", "actor": "ann"},
	}
}

// Every action of every definition is there, and none besides.
func TestActionsAreTheDefinitions(t *testing.T) {
	want := map[string]bool{}
	for _, d := range orchestrator.Definitions() {
		want[d.OnFailed], want[d.OnCompensated] = true, true
		for _, s := range d.Steps {
			want[s.Name] = true
			if s.Compensation != "" {
				want[s.Compensation] = true
			}
		}
	}
	got := map[string]bool{}
	for name := range actions(t, &services{}) {
		got[name] = true
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("actions %v, want %v", got, want)
	}
}

func TestPostingRequests(t *testing.T) {
	s := &services{post: func(*accountv1.Posting) *accountv1.PostingResult {
		return &accountv1.PostingResult{Outcome: accountv1.PostingOutcome_POSTING_OUTCOME_DONE}
	}}
	act := actions(t, s)
	undo := call("credit_source_rollback")
	undo.Undoes = "debit_source"
	for _, c := range []saga.Call{call("debit_source"), call("credit_destination"), undo} {
		if _, err := act[c.Action](t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	common := &accountv1.Posting{
		SagaId: sagaID, Amount: "50.00", Currency: "USD", CorrelationId: "corr-1", CausedBy: "event-1", TenantId: "default", Actor: "ann",
	}
	for i, want := range []*accountv1.Posting{
		{Step: "debit_source", AccountId: src, Kind: accountv1.PostingKind_POSTING_KIND_DEBIT, Reason: "transfer"},
		{Step: "credit_destination", AccountId: dst, Kind: accountv1.PostingKind_POSTING_KIND_CREDIT, Reason: "transfer"},
		{Step: "credit_source_rollback", AccountId: src, Kind: accountv1.PostingKind_POSTING_KIND_ROLLBACK, Reason: "transfer_rollback", UndoStep: "debit_source"},
	} {
		proto.Merge(want, common)
		if !proto.Equal(s.postings[i], want) {
			t.Errorf("got %v\nwant %v", s.postings[i], want)
		}
	}
}

func TestPostingOutcomes(t *testing.T) {
	type answer = saga.Answer
	result := func(o accountv1.PostingOutcome, balance, reason, message string) *accountv1.PostingResult {
		return &accountv1.PostingResult{Outcome: o, NewBalance: balance, ErrorReason: reason, ErrorMessage: message}
	}
	const (
		undecided = accountv1.PostingOutcome_POSTING_OUTCOME_UNSPECIFIED
		done      = accountv1.PostingOutcome_POSTING_OUTCOME_DONE
		refused   = accountv1.PostingOutcome_POSTING_OUTCOME_REFUSED
		cancelled = accountv1.PostingOutcome_POSTING_OUTCOME_CANCELLED
	)
	was := answer{Outcome: saga.Refused, Reason: "POSTING_CANCELLED", Message: "The posting was cancelled before it was done."}
	for _, tc := range []struct {
		name, action string
		result       *accountv1.PostingResult
		want         answer
		unknown      bool
	}{
		{"done", "debit_source", result(done, "50.00", "", ""), answer{Outcome: saga.Done, Result: map[string]any{"sourceNewBalance": "50.00"}}, false},
		{"done", "credit_destination", result(done, "150.00", "", ""), answer{Outcome: saga.Done, Result: map[string]any{"destinationNewBalance": "150.00"}}, false},
		{"done", "credit_source_rollback", result(done, "100.00", "", ""), answer{Outcome: saga.Done, Result: map[string]any{"sourceNewBalance": "100.00"}}, false},
		{"refused", "debit_source", result(refused, "", "INSUFFICIENT_FUNDS", "no"), answer{Outcome: saga.Refused, Reason: "INSUFFICIENT_FUNDS", Message: "no"}, false},
		{"refused", "credit_destination", result(refused, "", "MAX_BALANCE", "no"), answer{Outcome: saga.Refused, Reason: "MAX_BALANCE", Message: "no"}, false},
		{"cancelled", "debit_source", result(cancelled, "", "", ""), was, false},
		{"cancelled", "credit_destination", result(cancelled, "", "", ""), was, false},
		{"nothing to undo", "credit_source_rollback", result(cancelled, "", "", ""), answer{Outcome: saga.Done}, false},
		{"conflict", "debit_source", result(undecided, "", "IDEMPOTENCY_CONFLICT", "no"), answer{Outcome: saga.Stuck, Reason: "IDEMPOTENCY_CONFLICT", Message: "no"}, false},
		{"malformed", "credit_source_rollback", result(undecided, "", "INVALID_ARGUMENT", "no"), answer{Outcome: saga.Stuck, Reason: "INVALID_ARGUMENT", Message: "no"}, false},
		{"unavailable", "debit_source", result(undecided, "", "UNAVAILABLE", "later"), answer{}, true},
		{"unavailable", "credit_source_rollback", result(undecided, "", "UNAVAILABLE", "later"), answer{}, true},
		{"an outcome of a later version", "debit_source", result(99, "", "", ""), answer{Outcome: saga.Stuck, Reason: "INTERNAL", Message: "the answer says nothing that is known here"}, false},
	} {
		t.Run(tc.action+" "+tc.name, func(t *testing.T) {
			s := &services{post: func(*accountv1.Posting) *accountv1.PostingResult { return tc.result }}
			c := call(tc.action)
			c.Undoes = "debit_source"
			got, err := actions(t, s)[tc.action](t.Context(), c)
			if (err != nil) != tc.unknown || !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func TestSettlements(t *testing.T) {
	kinds := map[string]struct {
		kind transactionv1.SettlementKind
		end  string
	}{
		"complete_transaction":   {transactionv1.SettlementKind_SETTLEMENT_KIND_COMPLETE, "completed"},
		"fail_transaction":       {transactionv1.SettlementKind_SETTLEMENT_KIND_FAIL, "failed"},
		"compensate_transaction": {transactionv1.SettlementKind_SETTLEMENT_KIND_COMPENSATE, "compensated"},
	}
	for action, k := range kinds {
		for _, tc := range []struct {
			name    string
			result  *transactionv1.SettlementResult
			want    saga.Answer
			unknown bool
		}{
			{"so", &transactionv1.SettlementResult{Status: k.end}, saga.Answer{Outcome: saga.Done}, false},
			{"otherwise", &transactionv1.SettlementResult{Status: "pending"}, saga.Answer{Outcome: saga.Stuck, Reason: "TRANSACTION_ENDED", Message: "the transaction is pending"}, false},
			{"ended before", &transactionv1.SettlementResult{ErrorReason: "TRANSACTION_ENDED", ErrorMessage: "no"}, saga.Answer{Outcome: saga.Stuck, Reason: "TRANSACTION_ENDED", Message: "no"}, false},
			{"not found", &transactionv1.SettlementResult{ErrorReason: "TRANSACTION_NOT_FOUND", ErrorMessage: "no"}, saga.Answer{Outcome: saga.Stuck, Reason: "TRANSACTION_NOT_FOUND", Message: "no"}, false},
			{"unavailable", &transactionv1.SettlementResult{ErrorReason: "UNAVAILABLE", ErrorMessage: "later"}, saga.Answer{}, true},
		} {
			t.Run(action+" "+tc.name, func(t *testing.T) {
				s := &services{settle: func(*transactionv1.Settlement) *transactionv1.SettlementResult { return tc.result }}
				c := call(action)
				c.ErrorReason, c.ErrorMessage = "ACCOUNT_CLOSED", "closed"
				got, err := actions(t, s)[action](t.Context(), c)
				if (err != nil) != tc.unknown || !reflect.DeepEqual(got, tc.want) {
					t.Errorf("got %+v, %v", got, err)
				}
				want := &transactionv1.Settlement{
					TransactionId: sagaID, Step: action, Kind: k.kind, ErrorReason: "ACCOUNT_CLOSED", ErrorMessage: "closed",
					CorrelationId: "corr-1", CausedBy: "event-1", TenantId: "default", Actor: "ann",
				}
				if !proto.Equal(s.settlements[0], want) {
					t.Errorf("asked %v\nwant %v", s.settlements[0], want)
				}
			})
		}
	}
}

// What is not known is asked again, never assumed.
func TestUnknownOutcomes(t *testing.T) {
	for name, s := range map[string]*services{
		"a call that fails": {err: errors.New("connection lost")},
		"a result missing": {
			few:    true,
			post:   func(*accountv1.Posting) *accountv1.PostingResult { return nil },
			settle: func(*transactionv1.Settlement) *transactionv1.SettlementResult { return nil },
		},
	} {
		t.Run(name, func(t *testing.T) {
			for action, do := range actions(t, s) {
				if got, err := do(t.Context(), call(action)); err == nil {
					t.Errorf("%s: %+v", action, got)
				}
			}
		})
	}
	t.Run("a trigger that cannot be read needs a person", func(t *testing.T) {
		c := call("debit_source")
		c.Input = json.RawMessage(`[]`)
		if got, err := actions(t, &services{})["debit_source"](t.Context(), c); err != nil || got.Outcome != saga.Stuck || got.Reason != "INTERNAL" {
			t.Errorf("got %+v, %v", got, err)
		}
	})
}

// Many sagas' answers find their own saga.
func TestAnswersAreNotMixedUp(t *testing.T) {
	s := &services{post: func(p *accountv1.Posting) *accountv1.PostingResult {
		return &accountv1.PostingResult{Outcome: accountv1.PostingOutcome_POSTING_OUTCOME_DONE, NewBalance: p.GetSagaId()}
	}}
	debit := actions(t, s)["debit_source"]
	var wg sync.WaitGroup
	for i := range 500 {
		wg.Go(func() {
			c := call("debit_source")
			c.SagaID = fmt.Sprint("saga-", i)
			if got, err := debit(t.Context(), c); err != nil || got.Result["sourceNewBalance"] != c.SagaID {
				t.Errorf("%s got %+v, %v", c.SagaID, got, err)
			}
		})
	}
	wg.Wait()
}
