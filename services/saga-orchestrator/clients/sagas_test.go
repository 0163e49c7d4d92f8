package clients

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"example.com/billing/pkg/saga"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	orchestrator "example.com/billing/services/saga-orchestrator"
)

const (
	done    = accountv1.PostingOutcome_POSTING_OUTCOME_DONE
	refused = accountv1.PostingOutcome_POSTING_OUTCOME_REFUSED
)

// inTermsOf puts a saga's own words in the place of those of a transfer.
func inTermsOf(name string) *strings.Replacer {
	words := map[string][2]string{"payment": {"customer", "merchant"}, "refund": {"merchant", "customer"}}
	w, ok := words[name]
	if !ok {
		w = [2]string{"source", "destination"}
	}
	return strings.NewReplacer(
		"TYPE", name, "debit_source", "debit_"+w[0], "credit_destination", "credit_"+w[1], "credit_source_rollback", "credit_"+w[0]+"_rollback",
		"sourceNewBalance", w[0]+"NewBalance", "destinationNewBalance", w[1]+"NewBalance",
	)
}

// The sagas that move money, from their trigger to their end, on the engine.
func TestSagas(t *testing.T) {
	for _, d := range orchestrator.Definitions() {
		if d.Name == "hold" || d.Name == "release" { // TestHoldSagas
			continue
		}
		words := inTermsOf(d.Name)
		for _, tc := range []struct {
			name, refuses string // refuses: the step that a rule says no to
			calls         string // in order
			event         string // type and data
		}{
			{
				"completes", "", "debit_source credit_destination complete_transaction",
				`SagaCompleted{"sagaType":"TYPE","steps":["debit_source","credit_destination","complete_transaction"],"currentStep":3,` +
					`"results":{"credit_destination":{"destinationNewBalance":"7.00"},"debit_source":{"sourceNewBalance":"7.00"}}}`,
			},
			{
				"fails", "debit_source", "debit_source fail_transaction",
				`SagaFailed{"sagaType":"TYPE","steps":["debit_source","credit_destination","complete_transaction"],"currentStep":0,` +
					`"results":{},"errorReason":"ACCOUNT_CLOSED","errorMessage":"closed"}`,
			},
			{
				"is compensated", "credit_destination", "debit_source credit_destination credit_source_rollback compensate_transaction",
				`SagaCompensated{"sagaType":"TYPE","steps":["debit_source","credit_destination","complete_transaction"],"currentStep":1,` +
					`"results":{"debit_source":{"sourceNewBalance":"7.00"}},"errorReason":"ACCOUNT_CLOSED","errorMessage":"closed",` +
					`"compensationActions":[{"action":"credit_source_rollback","result":{"sourceNewBalance":"7.00"},"timestamp":"TIME"}]}`,
			},
		} {
			t.Run(d.Name+" "+tc.name, func(t *testing.T) {
				var calls []string
				s := &services{
					post: func(p *accountv1.Posting) *accountv1.PostingResult {
						if calls = append(calls, p.GetStep()); p.GetStep() == words.Replace(tc.refuses) {
							return &accountv1.PostingResult{Outcome: refused, ErrorReason: "ACCOUNT_CLOSED", ErrorMessage: "closed"}
						}
						return &accountv1.PostingResult{Outcome: done, NewBalance: "7.00"}
					},
					settle: func(x *transactionv1.Settlement) *transactionv1.SettlementResult {
						calls = append(calls, x.GetStep())
						return &transactionv1.SettlementResult{Status: map[transactionv1.SettlementKind]string{1: "completed", 2: "failed", 3: "compensated"}[x.GetKind()]}
					},
				}
				state := carryOut(t, s, d.Trigger, "")
				e, err := orchestrator.EndedEvent(state)
				if err != nil {
					t.Fatal(err)
				}
				want := words.Replace(tc.event)
				if len(state.Actions) > 0 {
					want = strings.ReplaceAll(want, "TIME", state.Actions[0].Timestamp.Format("2006-01-02T15:04:05.000Z"))
				}
				if got := e.Type + string(e.Data); got != want {
					t.Errorf("ended as\n%s, want\n%s", got, want)
				}
				if got := strings.Join(calls, " "); got != words.Replace(tc.calls) {
					t.Errorf("called %s", got)
				}
				for _, p := range s.postings {
					want := d.Name
					if p.GetUndoStep() != "" {
						want += "_rollback"
					}
					if p.GetReason() != want {
						t.Errorf("%s is posted as %s, want %s", p.GetStep(), p.GetReason(), want)
					}
				}
			})
		}
	}
}

// A hold and its release reserve and give back; both know the hold by its id.
func TestHoldSagas(t *testing.T) {
	for _, tc := range []struct {
		trigger string
		refuses bool
		calls   string
		kind    accountv1.PostingKind
		event   string
	}{
		{"HoldRequested", false, "place_hold complete_transaction", accountv1.PostingKind_POSTING_KIND_HOLD,
			`SagaCompleted{"sagaType":"hold","steps":["place_hold","complete_transaction"],"currentStep":2,"results":{"place_hold":{"availableBalance":"3.00"}}}`},
		{"HoldRequested", true, "place_hold fail_transaction", accountv1.PostingKind_POSTING_KIND_HOLD,
			`SagaFailed{"sagaType":"hold","steps":["place_hold","complete_transaction"],"currentStep":0,"results":{},"errorReason":"INSUFFICIENT_FUNDS","errorMessage":"too little"}`},
		{"ReleaseRequested", false, "release_hold complete_transaction", accountv1.PostingKind_POSTING_KIND_RELEASE,
			`SagaCompleted{"sagaType":"release","steps":["release_hold","complete_transaction"],"currentStep":2,"results":{"release_hold":{"availableBalance":"3.00"}}}`},
	} {
		var calls []string
		s := &services{
			post: func(p *accountv1.Posting) *accountv1.PostingResult {
				if calls = append(calls, p.GetStep()); tc.refuses {
					return &accountv1.PostingResult{Outcome: refused, ErrorReason: "INSUFFICIENT_FUNDS", ErrorMessage: "too little"}
				}
				return &accountv1.PostingResult{Outcome: done, NewBalance: "7.00", AvailableBalance: "3.00"}
			},
			settle: func(x *transactionv1.Settlement) *transactionv1.SettlementResult {
				calls = append(calls, x.GetStep())
				return &transactionv1.SettlementResult{Status: map[transactionv1.SettlementKind]string{1: "completed", 2: "failed"}[x.GetKind()]}
			},
		}
		e, err := orchestrator.EndedEvent(carryOut(t, s, tc.trigger, `,"holdId":"hold-1"`))
		if err != nil {
			t.Fatal(err)
		}
		if got := e.Type + string(e.Data); got != tc.event {
			t.Errorf("ended as\n%s, want\n%s", got, tc.event)
		}
		if got := strings.Join(calls, " "); got != tc.calls {
			t.Errorf("called %s, want %s", got, tc.calls)
		}
		hold := sagaID
		if tc.trigger == "ReleaseRequested" {
			hold = "hold-1"
		}
		if on := s.settlements[0].GetReservedOn(); on != "hold-1" {
			t.Errorf("settled with what is reserved on %q", on)
		}
		if p := s.postings[0]; p.GetKind() != tc.kind || p.GetHoldId() != hold {
			t.Errorf("posted %+v", p)
		}
	}
}

// carryOut runs one saga on an engine to its end.
func carryOut(t *testing.T, s *services, trigger, more string) saga.State {
	t.Helper()
	registry, err := saga.NewRegistry(orchestrator.Definitions()...)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan saga.State, 1)
	engine, err := saga.NewEngine(saga.Config{
		Registry: registry, Actions: actions(t, s), Registers: registers(t, s), Store: saga.NewMemory(), OnEnd: func(s saga.State) { ended <- s },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = engine.Stop(context.Background()) }()
	c := call("")
	c.Input = json.RawMessage(strings.TrimSuffix(string(c.Input), "}") + more + "}")
	n, err := engine.Start(t.Context(), []saga.Trigger{{
		SagaID: sagaID, EventID: "event-1", EventType: trigger, Data: c.Input, CorrelationID: "corr-1", Metadata: c.Metadata,
	}})
	if err != nil || n != 1 {
		t.Fatalf("started %d, %v", n, err)
	}
	select {
	case state := <-ended:
		return state
	case <-time.After(10 * time.Second):
		t.Fatal("the saga does not end")
		return saga.State{}
	}
}
