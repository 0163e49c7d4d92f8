package clients

import (
	"context"
	"strings"
	"testing"
	"time"

	"example.com/billing/pkg/saga"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	orchestrator "example.com/billing/services/saga-orchestrator"
)

// The three sagas from their trigger to their end, on the engine.
func TestSagas(t *testing.T) {
	const (
		done    = accountv1.PostingOutcome_POSTING_OUTCOME_DONE
		refused = accountv1.PostingOutcome_POSTING_OUTCOME_REFUSED
	)
	for _, d := range orchestrator.Definitions() {
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
						if calls = append(calls, p.GetStep()); p.GetStep() == tc.refuses {
							return &accountv1.PostingResult{Outcome: refused, ErrorReason: "ACCOUNT_CLOSED", ErrorMessage: "closed"}
						}
						return &accountv1.PostingResult{Outcome: done, NewBalance: "7.00"}
					},
					settle: func(x *transactionv1.Settlement) *transactionv1.SettlementResult {
						calls = append(calls, x.GetStep())
						return &transactionv1.SettlementResult{Status: map[transactionv1.SettlementKind]string{1: "completed", 2: "failed", 3: "compensated"}[x.GetKind()]}
					},
				}
				state := carryOut(t, s, d.Trigger)
				e, err := orchestrator.EndedEvent(state)
				if err != nil {
					t.Fatal(err)
				}
				want := strings.ReplaceAll(tc.event, "TYPE", d.Name)
				if len(state.Actions) > 0 {
					want = strings.ReplaceAll(want, "TIME", state.Actions[0].Timestamp.Format("2006-01-02T15:04:05.000Z"))
				}
				if got := e.Type + string(e.Data); got != want {
					t.Errorf("ended as\n%s, want\n%s", got, want)
				}
				if got := strings.Join(calls, " "); got != tc.calls {
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

// carryOut runs one saga on an engine to its end.
func carryOut(t *testing.T, s *services, trigger string) saga.State {
	t.Helper()
	registry, err := saga.NewRegistry(orchestrator.Definitions()...)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan saga.State, 1)
	engine, err := saga.NewEngine(saga.Config{
		Registry: registry, Actions: actions(t, s), Store: saga.NewMemory(), OnEnd: func(s saga.State) { ended <- s },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = engine.Stop(context.Background()) }()
	c := call("")
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
