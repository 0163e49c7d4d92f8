// Package clients carries out the sagas' actions in the account and transaction services, many sagas' steps in one request.
package clients

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"example.com/billing/pkg/batch"
	"example.com/billing/pkg/saga"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	orchestrator "example.com/billing/services/saga-orchestrator"
)

const (
	callTimeout = 15 * time.Second // one request; what has no answer by then is asked again
	flightMax   = 2                // requests at the same time to one service
	waitingMax  = 100_000          // the engine bounds how many sagas are active
)

// Clients are the two services the sagas act in. Safe for concurrent use.
type Clients struct {
	postings    *batch.Queue[*accountv1.Posting, *accountv1.PostingResult]
	settlements *batch.Queue[*transactionv1.Settlement, *transactionv1.SettlementResult]
}

// New makes the clients on connections to the account and transaction services.
func New(account, transaction grpc.ClientConnInterface) *Clients {
	options := batch.Options{FlightMax: flightMax, WaitingMax: waitingMax}
	postings, settlement := accountv1.NewPostingServiceClient(account), transactionv1.NewSettlementServiceClient(transaction)
	return &Clients{
		postings: batch.New(options, func(ctx context.Context, items []*accountv1.Posting) []batch.Result[*accountv1.PostingResult] {
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			res, err := postings.Post(ctx, &accountv1.PostRequest{Postings: items})
			return spread(len(items), res.GetResults(), err)
		}),
		settlements: batch.New(options, func(ctx context.Context, items []*transactionv1.Settlement) []batch.Result[*transactionv1.SettlementResult] {
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			res, err := settlement.Settle(ctx, &transactionv1.SettleRequest{Settlements: items})
			return spread(len(items), res.GetResults(), err)
		}),
	}
}

// spread hands each item its result, or all of them the error.
func spread[R any](n int, results []R, err error) []batch.Result[R] {
	if err == nil && len(results) != n {
		err = fmt.Errorf("%d results for %d items", len(results), n)
	}
	out := make([]batch.Result[R], n)
	for i := range out {
		if out[i].Err = err; err == nil {
			out[i].Value = results[i]
		}
	}
	return out
}

// Close waits for the requests under way.
func (c *Clients) Close(ctx context.Context) error {
	if err := c.postings.Close(ctx); err != nil {
		return err
	}
	return c.settlements.Close(ctx)
}

// Actions binds the sagas' actions to the services.
func (c *Clients) Actions() map[string]saga.Action {
	return map[string]saga.Action{
		orchestrator.DebitSource:            c.post(accountv1.PostingKind_POSTING_KIND_DEBIT, source),
		orchestrator.CreditDestination:      c.post(accountv1.PostingKind_POSTING_KIND_CREDIT, destination),
		orchestrator.CreditSourceRollback:   c.post(accountv1.PostingKind_POSTING_KIND_ROLLBACK, source),
		orchestrator.DebitCustomer:          c.post(accountv1.PostingKind_POSTING_KIND_DEBIT, customer),
		orchestrator.CreditMerchant:         c.post(accountv1.PostingKind_POSTING_KIND_CREDIT, merchant),
		orchestrator.CreditCustomerRollback: c.post(accountv1.PostingKind_POSTING_KIND_ROLLBACK, customer),
		orchestrator.DebitMerchant:          c.post(accountv1.PostingKind_POSTING_KIND_DEBIT, refundingMerchant),
		orchestrator.CreditCustomer:         c.post(accountv1.PostingKind_POSTING_KIND_CREDIT, refundedCustomer),
		orchestrator.CreditMerchantRollback: c.post(accountv1.PostingKind_POSTING_KIND_ROLLBACK, refundingMerchant),
		orchestrator.PlaceHold:              c.post(accountv1.PostingKind_POSTING_KIND_HOLD, reserve),
		orchestrator.ReleaseHold:            c.post(accountv1.PostingKind_POSTING_KIND_RELEASE, reserve),
		orchestrator.CompleteTransaction:    c.settle(transactionv1.SettlementKind_SETTLEMENT_KIND_COMPLETE, "completed"),
		orchestrator.FailTransaction:        c.settle(transactionv1.SettlementKind_SETTLEMENT_KIND_FAIL, "failed"),
		orchestrator.CompensateTransaction:  c.settle(transactionv1.SettlementKind_SETTLEMENT_KIND_COMPENSATE, "compensated"),
	}
}

// side is one of a transaction's two accounts.
type side struct {
	result  string // key of the balance in the saga's results
	account func(orchestrator.Input) string
	balance func(*accountv1.PostingResult) string
}

var (
	source            = side{"sourceNewBalance", debited, (*accountv1.PostingResult).GetNewBalance}
	destination       = side{"destinationNewBalance", credited, (*accountv1.PostingResult).GetNewBalance}
	customer          = side{"customerNewBalance", debited, (*accountv1.PostingResult).GetNewBalance}
	merchant          = side{"merchantNewBalance", credited, (*accountv1.PostingResult).GetNewBalance}
	refundingMerchant = side{"merchantNewBalance", debited, (*accountv1.PostingResult).GetNewBalance}
	refundedCustomer  = side{"customerNewBalance", credited, (*accountv1.PostingResult).GetNewBalance}
	reserve           = side{"availableBalance", debited, (*accountv1.PostingResult).GetAvailableBalance}
)

func debited(in orchestrator.Input) string  { return in.SourceID }
func credited(in orchestrator.Input) string { return in.DestinationID }

// post is an action that moves money on one side.
func (c *Clients) post(kind accountv1.PostingKind, on side) saga.Action {
	return func(ctx context.Context, call saga.Call) (saga.Answer, error) {
		in, err := orchestrator.ReadInput(call.Input)
		if err != nil {
			return saga.Answer{Outcome: saga.Stuck, Reason: "INTERNAL", Message: err.Error()}, nil //nolint:nilerr // it is the answer
		}
		p := &accountv1.Posting{
			SagaId: call.SagaID, Step: call.Action, AccountId: on.account(in), Kind: kind, Amount: in.Amount, Currency: in.Currency,
			Reason: call.SagaType, UndoStep: call.Undoes, CorrelationId: call.CorrelationID, CausedBy: call.CausedBy,
			TenantId: text(call.Metadata, "tenantId"), Actor: text(call.Metadata, "actor"),
		}
		switch kind {
		case accountv1.PostingKind_POSTING_KIND_ROLLBACK:
			p.Reason += "_rollback"
		case accountv1.PostingKind_POSTING_KIND_DEBIT, accountv1.PostingKind_POSTING_KIND_RELEASE:
			p.HoldId = in.HoldID
		case accountv1.PostingKind_POSTING_KIND_HOLD:
			p.HoldId = call.SagaID // a hold is known by its transaction's id
		}
		res, err := c.postings.Do(ctx, p)
		if err != nil {
			return saga.Answer{}, err
		}
		return posted(kind, on, res)
	}
}

// posted reads a register's answer.
func posted(kind accountv1.PostingKind, on side, res *accountv1.PostingResult) (saga.Answer, error) {
	switch res.GetOutcome() {
	case accountv1.PostingOutcome_POSTING_OUTCOME_DONE:
		return saga.Answer{Outcome: saga.Done, Result: map[string]any{on.result: on.balance(res)}}, nil
	case accountv1.PostingOutcome_POSTING_OUTCOME_REFUSED:
		return saga.Answer{Outcome: saga.Refused, Reason: res.GetErrorReason(), Message: res.GetErrorMessage()}, nil
	case accountv1.PostingOutcome_POSTING_OUTCOME_CANCELLED:
		if kind == accountv1.PostingKind_POSTING_KIND_ROLLBACK {
			return saga.Answer{Outcome: saga.Done}, nil // the step was never done: nothing to undo
		}
		return saga.Answer{Outcome: saga.Refused, Reason: "POSTING_CANCELLED", Message: "The posting was cancelled before it was done."}, nil
	default:
		return undecided(res.GetErrorReason(), res.GetErrorMessage())
	}
}

// settle is an action that ends the transaction.
func (c *Clients) settle(kind transactionv1.SettlementKind, want string) saga.Action {
	return func(ctx context.Context, call saga.Call) (saga.Answer, error) {
		in, err := orchestrator.ReadInput(call.Input)
		if err != nil {
			return saga.Answer{Outcome: saga.Stuck, Reason: "INTERNAL", Message: err.Error()}, nil //nolint:nilerr // it is the answer
		}
		res, err := c.settlements.Do(ctx, &transactionv1.Settlement{
			TransactionId: call.SagaID, Step: call.Action, Kind: kind, ErrorReason: call.ErrorReason, ErrorMessage: call.ErrorMessage,
			CorrelationId: call.CorrelationID, CausedBy: call.CausedBy,
			TenantId: text(call.Metadata, "tenantId"), Actor: text(call.Metadata, "actor"), ReservedOn: in.ReservedOn(),
		})
		switch {
		case err != nil:
			return saga.Answer{}, err
		case res.GetStatus() == want:
			return saga.Answer{Outcome: saga.Done}, nil
		case res.GetStatus() != "":
			return saga.Answer{Outcome: saga.Stuck, Reason: "TRANSACTION_ENDED", Message: "the transaction is " + res.GetStatus()}, nil
		default:
			return undecided(res.GetErrorReason(), res.GetErrorMessage())
		}
	}
}

// undecided: UNAVAILABLE is asked again; everything else needs a person.
func undecided(reason, message string) (saga.Answer, error) {
	if reason == "UNAVAILABLE" {
		return saga.Answer{}, fmt.Errorf("no answer: %s", message)
	}
	if reason == "" {
		reason, message = "INTERNAL", "the answer says nothing that is known here"
	}
	return saga.Answer{Outcome: saga.Stuck, Reason: reason, Message: message}, nil
}

func text(m map[string]any, key string) string {
	s, _ := m[key].(string)
	return s
}
