package orchestrator

import "example.com/billing/pkg/saga"

// hold reserves an amount on an account. Reserving is all it does, so that is the point of no return.
func hold() saga.Definition {
	return saga.Definition{
		Name: "hold", Version: 1, Trigger: "HoldRequested",
		Steps: []saga.Step{
			{Name: PlaceHold, Kind: saga.Pivot},
			{Name: CompleteTransaction, Kind: saga.Retriable},
		},
		OnFailed: FailTransaction, OnCompensated: CompensateTransaction, Deadline: deadline,
	}
}
