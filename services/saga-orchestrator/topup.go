package orchestrator

import "example.com/billing/pkg/saga"

// topup moves money from the outside world to a user's account.
func topup() saga.Definition {
	return saga.Definition{
		Name: "topup", Version: 1, Trigger: "TopupRequested", Steps: moneySteps(DebitSource, CreditSourceRollback, CreditDestination),
		OnFailed: FailTransaction, OnCompensated: CompensateTransaction, Deadline: deadline,
	}
}
