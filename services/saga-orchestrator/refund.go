package orchestrator

import "example.com/billing/pkg/saga"

// refund moves a payment's money back.
func refund() saga.Definition {
	return saga.Definition{
		Name: "refund", Version: 1, Trigger: "RefundRequested", Steps: moneySteps(DebitMerchant, CreditMerchantRollback, CreditCustomer),
		OnFailed: FailTransaction, OnCompensated: CompensateTransaction, Deadline: deadline,
	}
}
