package clients

import (
	"context"
	"fmt"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/rpc"
	"example.com/billing/pkg/saga"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	orchestrator "example.com/billing/services/saga-orchestrator"
)

// Registers are the registers of the actions that touch accounts, by the action's name.
func (c *Clients) Registers() map[string]saga.Registers {
	registers := make(map[string]saga.Registers, len(moneyActions))
	for name, m := range moneyActions {
		registers[name] = Register{clients: c, money: m}
	}
	return registers
}

// Register is the write-once register of one action: what the account's stream says of it. Safe for concurrent use.
type Register struct {
	clients *Clients
	money   money
}

// registerStates are the states by the contract's.
var registerStates = map[accountv1.RegisterState]saga.Register{
	accountv1.RegisterState_REGISTER_STATE_OPEN:      saga.RegisterOpen,
	accountv1.RegisterState_REGISTER_STATE_DONE:      saga.RegisterDone,
	accountv1.RegisterState_REGISTER_STATE_REFUSED:   saga.RegisterRefused,
	accountv1.RegisterState_REGISTER_STATE_CANCELLED: saga.RegisterCancelled,
}

// Cancel closes the register of call's action if nobody has written it, so that the action will never be done, however late a
// request for it arrives. The answer is Done, with the action's result, if it was done before; Refused, with the register's own
// reason or POSTING_CANCELLED, if it never will be; an error means "unknown": ask again with the same call.
//
// A rollback is not to be cancelled: the money has nowhere else to go. The answer is Stuck.
func (r Register) Cancel(ctx context.Context, call saga.Call) (saga.Answer, error) {
	if r.money.kind == accountv1.PostingKind_POSTING_KIND_ROLLBACK {
		return saga.Answer{Outcome: saga.Stuck, Reason: "INTERNAL", Message: "a rollback is never cancelled: " + call.Action}, nil
	}
	in, err := orchestrator.ReadInput(call.Input)
	if err != nil {
		return saga.Answer{Outcome: saga.Stuck, Reason: "INTERNAL", Message: err.Error()}, nil //nolint:nilerr // it is the answer
	}
	p := r.money.posting(call, in)
	p.Kind = accountv1.PostingKind_POSTING_KIND_CANCEL
	res, err := r.clients.postings.Do(ctx, p)
	if err != nil {
		return saga.Answer{}, err
	}
	return posted(r.money, res)
}

// Read says what the register of call's action holds now, and changes nothing. Where the call names no register that there could be
// (its account is no account's id), the action never will be done: the answer is RegisterRefused. A rollback's call names in Undoes
// what it undoes.
func (r Register) Read(ctx context.Context, call saga.Call) (saga.Register, error) {
	in, err := orchestrator.ReadInput(call.Input)
	if err != nil {
		return saga.RegisterRefused, nil //nolint:nilerr // no call of it can ever be made
	}
	key := &accountv1.RegisterKey{SagaId: call.SagaID, Step: call.Action, AccountId: r.money.on.account(in)}
	if r.money.kind == accountv1.PostingKind_POSTING_KIND_ROLLBACK {
		if key.UndoStep = call.Undoes; call.Undoes == "" { // its own name is no register's
			return "", fmt.Errorf("read register of %s: the call does not say what it undoes", call.Action)
		}
	}
	content, err := r.clients.registers.Do(ctx, key)
	if err != nil {
		return "", fmt.Errorf("read register of %s: %w", call.Action, err)
	}
	state, known := registerStates[content.GetState()]
	switch {
	case known:
		return state, nil
	case content.GetErrorReason() == rpc.ReasonInvalidArgument:
		return saga.RegisterRefused, nil
	}
	return "", &es.UnavailableError{Op: "read register of " + call.Action, Err: fmt.Errorf("%s: %s", content.GetErrorReason(), content.GetErrorMessage())}
}

// Reports read whether a transaction has ended, for the actions that end it. The transaction's status is the register.
func (c *Clients) Reports() map[string]saga.ReadReport {
	reports := make(map[string]saga.ReadReport, len(ends))
	for name, end := range ends {
		reports[name] = c.readStatus(end.status)
	}
	return reports
}

func (c *Clients) readStatus(want string) saga.ReadReport {
	return func(ctx context.Context, call saga.Call) (saga.Register, error) {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		res, err := c.transactions.GetTransaction(ctx, &transactionv1.GetTransactionRequest{TransactionId: call.SagaID})
		if err != nil {
			if rpc.ErrorOf(err).Reason == "TRANSACTION_NOT_FOUND" {
				return saga.RegisterRefused, nil // nothing waits for its end
			}
			return "", fmt.Errorf("read transaction %s: %w", call.SagaID, err)
		}
		switch status := res.GetTransaction().GetStatus(); status {
		case want:
			return saga.RegisterDone, nil
		case "completed", "failed", "compensated":
			return saga.RegisterRefused, nil // its end is final
		default:
			return saga.RegisterOpen, nil
		}
	}
}
