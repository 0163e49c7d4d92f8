package orchestrator

import "example.com/billing/pkg/saga"

// release gives back what is left of a hold. Nothing refuses it: there is only forward.
func release() saga.Definition {
	return saga.Definition{
		Name: "release", Version: 1, Trigger: "ReleaseRequested",
		Steps: []saga.Step{
			{Name: ReleaseHold, Kind: saga.Retriable},
			{Name: CompleteTransaction, Kind: saga.Retriable},
		},
		OnFailed: FailTransaction, OnCompensated: CompensateTransaction,
	}
}
