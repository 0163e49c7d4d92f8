package orchestrator

import "example.com/billing/pkg/saga"

// transfer moves money between two accounts, neither EXTERNAL.
func transfer() saga.Definition {
	return saga.Definition{
		Name: "transfer", Version: 1, Trigger: "TransferRequested", Steps: moneySteps(DebitSource, CreditSourceRollback, CreditDestination),
		OnFailed: FailTransaction, OnCompensated: CompensateTransaction, Deadline: deadline,
	}
}
