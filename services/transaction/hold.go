package transaction

// HoldStatus is where a hold stands.
type HoldStatus string

// The statuses.
const (
	HoldPending   HoldStatus = "pending"   // being placed
	HoldFailed    HoldStatus = "failed"    // refused; nothing is reserved
	HoldActive    HoldStatus = "active"    // can be captured
	HoldReleasing HoldStatus = "releasing" // what is left is being given back
	HoldCaptured  HoldStatus = "captured"  // all of it was paid
	HoldVoided    HoldStatus = "voided"    // what was left was given back, because somebody asked
	HoldExpired   HoldStatus = "expired"   // what was left was given back, because its time was over
)

// HoldStatuses lists them.
func HoldStatuses() []HoldStatus {
	return []HoldStatus{HoldPending, HoldFailed, HoldActive, HoldReleasing, HoldCaptured, HoldVoided, HoldExpired}
}

// placed is a hold's status after its saga ended.
var placed = map[Status]HoldStatus{Completed: HoldActive, Failed: HoldFailed}

// Cause is why a hold is released.
type Cause string

// The causes.
const (
	Void   Cause = "void"
	Expiry Cause = "expiry"
)

// released is a hold's status after it was released.
var released = map[Cause]HoldStatus{Void: HoldVoided, Expiry: HoldExpired}

// ReleaseStarted is the fact that what is left of a hold is being given back. It commits with ReleaseRequested.
type ReleaseStarted struct {
	TransactionID string `json:"transactionId"`
	Cause         Cause  `json:"cause"`
}

// EventType is HoldReleaseStarted.
func (ReleaseStarted) EventType() string { return "HoldReleaseStarted" }

// Released is the fact that what was left of a hold has been given back. It commits with ReleaseCompleted.
type Released struct {
	TransactionID string `json:"transactionId"`
	Cause         Cause  `json:"cause"`
}

// EventType is HoldReleased.
func (Released) EventType() string { return "HoldReleased" }
