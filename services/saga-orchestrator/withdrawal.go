package orchestrator

import "example.com/billing/pkg/saga"

// withdrawal moves money from a user's account to the outside world.
func withdrawal() saga.Definition {
	return saga.Definition{
		Name: "withdrawal", Version: 1, Trigger: "WithdrawalRequested", Steps: moneySteps(DebitSource, CreditSourceRollback, CreditDestination),
		OnFailed: FailTransaction, OnCompensated: CompensateTransaction, Deadline: deadline,
	}
}
