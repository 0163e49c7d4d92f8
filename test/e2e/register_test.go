package e2e

import (
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/shopspring/decimal"

	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
)

const (
	debit    = accountv1.PostingKind_POSTING_KIND_DEBIT
	credit   = accountv1.PostingKind_POSTING_KIND_CREDIT
	cancel   = accountv1.PostingKind_POSTING_KIND_CANCEL
	rollback = accountv1.PostingKind_POSTING_KIND_ROLLBACK

	done      = accountv1.PostingOutcome_POSTING_OUTCOME_DONE
	refused   = accountv1.PostingOutcome_POSTING_OUTCOME_REFUSED
	cancelled = accountv1.PostingOutcome_POSTING_OUTCOME_CANCELLED
)

// step is one message to the account service, and what its register must say.
type step struct {
	kind    accountv1.PostingKind
	name    string // of the step; of a rollback: the step it undoes
	account string
	amount  string
	outcome accountv1.PostingOutcome
	balance string // of the account afterwards
}

// The races of the step registers, against the running account service. Each is a saga's messages in an order that a slow
// network and a restarted orchestrator can bring about.
func TestStepRegisterRaces(t *testing.T) {
	for _, tc := range []struct {
		name  string
		steps func(source, destination string) []step
	}{
		{"a late duplicate of the debit after its rollback moves nothing", func(s, d string) []step {
			return []step{
				{debit, "debit_source", s, "30.00", done, "70.00"},
				{cancel, "credit_destination", d, "", cancelled, "100.00"},
				{rollback, "debit_source", s, "", done, "100.00"},
				{debit, "debit_source", s, "30.00", done, "100.00"},
				{rollback, "debit_source", s, "", done, "100.00"},
			}
		}},
		{"a late duplicate of the refused credit stays refused once there would be room", func(s, d string) []step {
			return []step{
				{debit, "debit_source", s, "30.00", done, "70.00"},
				{credit, "credit_destination", d, "30.00", refused, "100.00"},
				{rollback, "debit_source", s, "", done, "100.00"},
				{debit, "make_room", d, "50.00", done, "50.00"},
				{credit, "credit_destination", d, "30.00", refused, "50.00"},
			}
		}},
		{"a cancel before the action: the action never happens", func(s, d string) []step {
			return []step{
				{cancel, "credit_destination", d, "", cancelled, "100.00"},
				{credit, "credit_destination", d, "10.00", cancelled, "100.00"},
				{credit, "credit_destination", d, "10.00", cancelled, "100.00"},
			}
		}},
		{"a cancel after the action: done, and it stays", func(s, d string) []step {
			return []step{
				{credit, "credit_destination", d, "10.00", done, "110.00"},
				{cancel, "credit_destination", d, "", done, "110.00"},
				{credit, "credit_destination", d, "10.00", done, "110.00"},
			}
		}},
		{"a rollback before the debit: nothing to undo, and the debit never happens", func(s, d string) []step {
			return []step{
				{rollback, "debit_source", s, "", cancelled, "100.00"},
				{debit, "debit_source", s, "30.00", cancelled, "100.00"},
				{rollback, "debit_source", s, "", cancelled, "100.00"},
			}
		}},
		{"a rollback goes over the maximum", func(s, d string) []step {
			return []step{
				{debit, "debit_source", s, "30.00", done, "70.00"},
				{credit, "fill", s, "50.00", done, "120.00"}, // the maximum
				{credit, "more", s, "0.01", refused, "120.00"},
				{rollback, "debit_source", s, "", done, "150.00"},
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			saga := uuid.NewString()
			source, destination := funded(t, "100.00", "maxBalance", "120.00"), funded(t, "100.00", "maxBalance", "120.00")
			for i, s := range tc.steps(source, destination) {
				res := post(t, posting(saga, s))
				if res.GetOutcome() != s.outcome {
					t.Fatalf("step %d, %s %s: %v, want %v", i+1, s.kind, s.name, res, s.outcome)
				}
				wantBalance(t, s.account, s.balance)
			}
			// What the messages left in transit goes to the outside world, so that the books of the other tests are whole.
			left := decimal.RequireFromString(balance(t, source)).Add(decimal.RequireFromString(balance(t, destination))).Sub(decimal.New(200, 0))
			kind := map[bool]accountv1.PostingKind{true: debit, false: credit}[left.IsPositive()]
			if !left.IsZero() {
				post(t, posting(saga, step{kind: kind, name: "clean_up", account: open(t, "EXTERNAL"), amount: left.Abs().StringFixed(2)}))
			}
		})
	}
}

// A rollback is refused neither on a suspended nor, when the saga was under way, on a closed account.
func TestRollbackWhateverTheStatus(t *testing.T) {
	for _, status := range []string{"suspended", "closed"} {
		saga, account := uuid.NewString(), funded(t, "30.00")
		debited := step{debit, "debit_source", account, "30.00", done, "0.00"}
		if res := post(t, posting(saga, debited)); res.GetOutcome() != done {
			t.Fatal(res)
		}
		must(t, 200, "PATCH", "/api/v1/accounts/"+account+"/status", object{"status": status, "reason": "test"})
		if res := post(t, posting(saga, step{kind: rollback, name: "debit_source", account: account})); res.GetOutcome() != done {
			t.Errorf("%s: %v", status, res)
		}
		wantBalance(t, account, "30.00")
		// The money can leave again.
		if got := must(t, 200, "GET", "/api/v1/accounts/"+account, nil)["status"]; got != "suspended" {
			t.Errorf("%s before the rollback, %v after it", status, got)
		}
		must(t, 200, "PATCH", "/api/v1/accounts/"+account+"/status", object{"status": "active", "reason": "test"})
		if tx := move(t, "transfer", account, open(t, "USER"), "30.00"); tx["status"] != "completed" {
			t.Errorf("the money is stranded: %v", tx)
		}
	}
}

// Action, cancel and rollback of one step, many times at once: whoever is first, all hear the same, and no money is made.
func TestRegisterUnderConcurrency(t *testing.T) {
	for range 5 {
		saga, account := uuid.NewString(), funded(t, "100.00")
		var mu sync.Mutex
		outcomes := map[accountv1.PostingOutcome]int{}
		together(48, func(i int) {
			kind := []accountv1.PostingKind{debit, cancel}[i%2]
			res := post(t, posting(saga, step{kind: kind, name: "debit_source", account: account, amount: "40.00"}))
			mu.Lock()
			defer mu.Unlock()
			outcomes[res.GetOutcome()]++
		})
		if len(outcomes) != 1 {
			t.Errorf("outcomes of one register: %v", outcomes)
		}
		want := "60.00"
		if outcomes[cancelled] > 0 {
			want = "100.00"
		}
		wantBalance(t, account, want)
		together(16, func(int) { post(t, posting(saga, step{kind: rollback, name: "debit_source", account: account})) })
		wantBalance(t, account, "100.00")
	}
}

func posting(saga string, s step) *accountv1.Posting {
	p := &accountv1.Posting{
		SagaId: saga, Step: s.name, AccountId: s.account, Kind: s.kind, Amount: s.amount, Currency: "USD", Reason: "test",
		CorrelationId: "test", TenantId: "default", Actor: "test",
	}
	if s.kind == rollback {
		p.UndoStep, p.Step = s.name, s.name+"_rollback"
	}
	return p
}

func post(t testing.TB, p *accountv1.Posting) *accountv1.PostingResult {
	t.Helper()
	res, err := accountv1.NewPostingServiceClient(dial(t, now.account)).Post(t.Context(), &accountv1.PostRequest{Postings: []*accountv1.Posting{p}})
	if err != nil {
		t.Fatal(err)
	}
	return res.GetResults()[0]
}
