package auditor

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/shopspring/decimal"
)

// stream is one aggregate's events.
type stream struct{ kind, id string }

func (s stream) String() string { return s.kind + " " + s.id }

type eventID = uuid.UUID

// event is the JSON of an event as it is stored and published.
type event struct {
	ID            string          `json:"eventId"`
	Type          string          `json:"eventType"`
	AggregateID   string          `json:"aggregateId"`
	AggregateType string          `json:"aggregateType"`
	Version       int64           `json:"aggregateVersion"`
	CorrelationID string          `json:"correlationId"`
	Data          json.RawMessage `json:"data"`
}

func (e event) stream() stream { return stream{e.AggregateType, e.AggregateID} }

// what names an event in a violation.
func (e event) what() string { return fmt.Sprintf("%s version %d (%s)", e.stream(), e.Version, e.Type) }

// published is an event that is committed, and whether its topic has it.
type published struct {
	stream  stream
	version int64
	digest  [16]byte // of its bytes
	seen    bool
}

func digest(b []byte) [16]byte {
	sum := sha256.Sum256(b)
	return [16]byte(sum[:16])
}

// data is every field of every event's data that the auditor looks at.
type data struct {
	// of accounts
	OwnerID        string           `json:"ownerId"`
	OwnerType      string           `json:"ownerType"`
	AccountType    string           `json:"accountType"`
	Currency       string           `json:"currency"`
	MinBalance     *decimal.Decimal `json:"minBalance"`
	MaxBalance     *decimal.Decimal `json:"maxBalance"`
	PreviousStatus string           `json:"previousStatus"`
	NewStatus      string           `json:"newStatus"`
	Previous       decimal.Decimal  `json:"previousBalance"`
	New            decimal.Decimal  `json:"newBalance"`
	Change         decimal.Decimal  `json:"changeAmount"`
	ChangeType     string           `json:"changeType"`
	TransitChange  decimal.Decimal  `json:"transitChange"`
	Balance        decimal.Decimal  `json:"balance"`
	HeldChange     *decimal.Decimal `json:"heldChange"`
	HeldBalance    *decimal.Decimal `json:"heldBalance"`
	SagaID         string           `json:"sagaId"`
	Step           string           `json:"step"`
	HoldID         string           `json:"holdId"`
	// of transactions, and of holds on accounts
	Amount         decimal.Decimal `json:"amount"`
	SourceID       string          `json:"sourceAccountId"`
	DestinationID  string          `json:"destinationAccountId"`
	IdempotencyKey string          `json:"idempotencyKey"`
	PaymentID      string          `json:"paymentId"`
	TransactionID  string          `json:"transactionId"`
	ErrorReason    string          `json:"errorReason"`
	Cause          string          `json:"cause"`
	// of sagas
	SagaType string   `json:"sagaType"`
	Steps    []string `json:"steps"`
}

func (e event) data() (d data, err error) {
	err = json.Unmarshal(e.Data, &d)
	return d, err
}

// rollback: it undoes a posting.
func (d data) rollback() bool { return strings.HasSuffix(d.Step, "_rollback") }

// same: the same amount, or neither is there.
func same(a, b *decimal.Decimal) bool {
	return a == nil && b == nil || a != nil && b != nil && a.Equal(*b)
}
