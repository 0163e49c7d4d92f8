// Package clients carries out the sagas' actions in the account and transaction services, many sagas' steps in one request.
package clients

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"example.com/billing/pkg/batch"
	"example.com/billing/pkg/failpoint"
	"example.com/billing/pkg/saga"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	orchestrator "example.com/billing/services/saga-orchestrator"
)

const (
	callTimeout = 15 * time.Second // one request; what has no answer by then is asked again
	flightMax   = 2                // requests at the same time to one service
	linger      = time.Millisecond // while much goes on, for more to go with a request
	waitingMax  = 100_000          // the engine bounds how many sagas are active
)

// Clients are the two services the sagas act in. Safe for concurrent use.
type Clients struct {
	postings    *batch.Queue[*accountv1.Posting, *accountv1.PostingResult]
	settlements *batch.Queue[*transactionv1.Settlement, *transactionv1.SettlementResult]
	registers   *batch.Queue[*accountv1.RegisterKey, *accountv1.RegisterContent]

	transactions transactionv1.TransactionServiceClient
}

// New makes the clients on connections to the account and transaction services.
func New(account, transaction grpc.ClientConnInterface) *Clients {
	postings, settlement := accountv1.NewPostingServiceClient(account), transactionv1.NewSettlementServiceClient(transaction)
	return &Clients{
		transactions: transactionv1.NewTransactionServiceClient(transaction),
		postings: newQueue(func(ctx context.Context, items []*accountv1.Posting) ([]*accountv1.PostingResult, error) {
			failpoint.Hit("saga.before_request")
			res, err := postings.Post(ctx, &accountv1.PostRequest{Postings: items})
			failpoint.Hit("saga.after_answer")
			return res.GetResults(), err
		}),
		settlements: newQueue(func(ctx context.Context, items []*transactionv1.Settlement) ([]*transactionv1.SettlementResult, error) {
			failpoint.Hit("saga.before_request")
			res, err := settlement.Settle(ctx, &transactionv1.SettleRequest{Settlements: items})
			failpoint.Hit("saga.after_answer")
			return res.GetResults(), err
		}),
		registers: newQueue(func(ctx context.Context, items []*accountv1.RegisterKey) ([]*accountv1.RegisterContent, error) {
			res, err := postings.ReadRegisters(ctx, &accountv1.ReadRegistersRequest{Registers: items})
			return res.GetRegisters(), err
		}),
	}
}

// newQueue makes a queue that sends many items in one request.
func newQueue[Q, R any](send func(context.Context, []Q) ([]R, error)) *batch.Queue[Q, R] {
	return batch.New(batch.Options{FlightMax: flightMax, WaitingMax: waitingMax, Linger: linger}, func(ctx context.Context, items []Q) []batch.Result[R] {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		results, err := send(ctx, items)
		return spread(len(items), results, err)
	})
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
	return errors.Join(c.postings.Close(ctx), c.settlements.Close(ctx), c.registers.Close(ctx))
}

// Actions binds the sagas' actions to the services.
func (c *Clients) Actions() map[string]saga.Action {
	actions := map[string]saga.Action{}
	for name, end := range ends {
		actions[name] = c.settle(end)
	}
	for name, m := range moneyActions {
		actions[name] = c.post(m)
	}
	return actions
}

// end is how an action ends a transaction, and the status that the transaction has then.
type end struct {
	kind   transactionv1.SettlementKind
	status string
}

var ends = map[string]end{
	orchestrator.CompleteTransaction:   {transactionv1.SettlementKind_SETTLEMENT_KIND_COMPLETE, "completed"},
	orchestrator.FailTransaction:       {transactionv1.SettlementKind_SETTLEMENT_KIND_FAIL, "failed"},
	orchestrator.CompensateTransaction: {transactionv1.SettlementKind_SETTLEMENT_KIND_COMPENSATE, "compensated"},
}

// money is an action that writes a register of an account.
type money struct {
	kind accountv1.PostingKind
	on   side
}

var moneyActions = map[string]money{
	orchestrator.DebitSource:            {accountv1.PostingKind_POSTING_KIND_DEBIT, source},
	orchestrator.CreditDestination:      {accountv1.PostingKind_POSTING_KIND_CREDIT, destination},
	orchestrator.CreditSourceRollback:   {accountv1.PostingKind_POSTING_KIND_ROLLBACK, source},
	orchestrator.DebitCustomer:          {accountv1.PostingKind_POSTING_KIND_DEBIT, customer},
	orchestrator.CreditMerchant:         {accountv1.PostingKind_POSTING_KIND_CREDIT, merchant},
	orchestrator.CreditCustomerRollback: {accountv1.PostingKind_POSTING_KIND_ROLLBACK, customer},
	orchestrator.DebitMerchant:          {accountv1.PostingKind_POSTING_KIND_DEBIT, refundingMerchant},
	orchestrator.CreditCustomer:         {accountv1.PostingKind_POSTING_KIND_CREDIT, refundedCustomer},
	orchestrator.CreditMerchantRollback: {accountv1.PostingKind_POSTING_KIND_ROLLBACK, refundingMerchant},
	orchestrator.PlaceHold:              {accountv1.PostingKind_POSTING_KIND_HOLD, reserve},
	orchestrator.ReleaseHold:            {accountv1.PostingKind_POSTING_KIND_RELEASE, reserve},
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
func (c *Clients) post(m money) saga.Action {
	return func(ctx context.Context, call saga.Call) (saga.Answer, error) {
		in, err := orchestrator.ReadInput(call.Input)
		if err != nil {
			return saga.Answer{Outcome: saga.Stuck, Reason: "INTERNAL", Message: err.Error()}, nil //nolint:nilerr // it is the answer
		}
		p := m.posting(call, in)
		p.Amount, p.Currency, p.Reason, p.UndoStep = in.Amount, in.Currency, call.SagaType, call.Undoes
		switch m.kind {
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
		return posted(m, res)
	}
}

// posting is what every posting for the action says.
func (m money) posting(call saga.Call, in orchestrator.Input) *accountv1.Posting {
	return &accountv1.Posting{
		SagaId: call.SagaID, Step: call.Action, AccountId: m.on.account(in), Kind: m.kind, CorrelationId: call.CorrelationID, CausedBy: call.CausedBy,
		TenantId: text(call.Metadata, "tenantId"), Actor: text(call.Metadata, "actor"),
	}
}

// posted reads a register's answer.
func posted(m money, res *accountv1.PostingResult) (saga.Answer, error) {
	switch res.GetOutcome() {
	case accountv1.PostingOutcome_POSTING_OUTCOME_DONE:
		return saga.Answer{Outcome: saga.Done, Result: map[string]any{m.on.result: m.on.balance(res)}}, nil
	case accountv1.PostingOutcome_POSTING_OUTCOME_REFUSED:
		return saga.Answer{Outcome: saga.Refused, Reason: res.GetErrorReason(), Message: res.GetErrorMessage()}, nil
	case accountv1.PostingOutcome_POSTING_OUTCOME_CANCELLED:
		if m.kind == accountv1.PostingKind_POSTING_KIND_ROLLBACK {
			return saga.Answer{Outcome: saga.Done}, nil // the step was never done: nothing to undo
		}
		return saga.Answer{Outcome: saga.Refused, Reason: "POSTING_CANCELLED", Message: "The posting was cancelled before it was done."}, nil
	default:
		return undecided(res.GetErrorReason(), res.GetErrorMessage())
	}
}

// settle is an action that ends the transaction.
func (c *Clients) settle(as end) saga.Action {
	return func(ctx context.Context, call saga.Call) (saga.Answer, error) {
		in, err := orchestrator.ReadInput(call.Input)
		if err != nil {
			return saga.Answer{Outcome: saga.Stuck, Reason: "INTERNAL", Message: err.Error()}, nil //nolint:nilerr // it is the answer
		}
		res, err := c.settlements.Do(ctx, &transactionv1.Settlement{
			TransactionId: call.SagaID, Step: call.Action, Kind: as.kind, ErrorReason: call.ErrorReason, ErrorMessage: call.ErrorMessage,
			CorrelationId: call.CorrelationID, CausedBy: call.CausedBy,
			TenantId: text(call.Metadata, "tenantId"), Actor: text(call.Metadata, "actor"), ReservedOn: in.ReservedOn(),
		})
		switch {
		case err != nil:
			return saga.Answer{}, err
		case res.GetStatus() == as.status:
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
