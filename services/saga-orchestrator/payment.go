package orchestrator

import "example.com/billing/pkg/saga"

// payment moves money from a customer's account to a merchant's. Where it captures a hold, the debit takes what the hold reserved, and
// its rollback puts it back there.
func payment() saga.Definition {
	return saga.Definition{
		Name: "payment", Version: 1, Trigger: "PaymentRequested", Steps: moneySteps(DebitCustomer, CreditCustomerRollback, CreditMerchant),
		OnFailed: FailTransaction, OnCompensated: CompensateTransaction, Deadline: deadline,
	}
}
