package transaction

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
)

// Command is what can be asked of a transaction.
type Command interface {
	decide(t Transaction) ([]es.Fact, error)
}

// Request asks for a transaction. Its values are checked at the edge.
type Request struct {
	Type                    Type
	SourceID, DestinationID string
	Amount                  decimal.Decimal
	Scale                   int32
	Currency                string
	Reference               *string
	Metadata                map[string]any
	IdempotencyKey          string
	// Checked is what the accounts say: nil = they take part, a *es.Refusal = they do not, another error = not known. It
	// does not touch a transaction that was accepted before.
	Checked error
}

func (c Request) decide(t Transaction) ([]es.Fact, error) {
	if t.Exists() {
		if names := c.differences(t); len(names) > 0 {
			return nil, es.Refuse("IDEMPOTENCY_CONFLICT", "The idempotency key was used for another request; it differs in %s.", strings.Join(names, ", "))
		}
		return nil, nil
	}
	if c.Checked != nil {
		return nil, c.Checked
	}
	return []es.Fact{Requested{
		Type: c.Type, SourceID: c.SourceID, DestinationID: c.DestinationID, Amount: c.Amount.StringFixed(c.Scale), Currency: c.Currency,
		Reference: c.Reference, Metadata: c.Metadata, IdempotencyKey: c.IdempotencyKey,
	}}, nil
}

// differences names what a repeat asks for that the first request did not.
func (c Request) differences(t Transaction) []string {
	var names []string
	for _, f := range []struct {
		name string
		same bool
	}{
		{"type", c.Type == t.Type},
		{"sourceAccountId", c.SourceID == t.SourceID},
		{"destinationAccountId", c.DestinationID == t.DestinationID},
		{"amount", c.Amount.Equal(t.Amount)},
		{"currency", c.Currency == t.Currency},
		{"reference", equal(c.Reference, t.Reference)},
		{"metadata", equalJSON(c.Metadata, t.Metadata)},
	} {
		if !f.same {
			names = append(names, f.name)
		}
	}
	return names
}

func equal(a, b *string) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

func equalJSON(a, b map[string]any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && (string(x) == string(y) || len(a) == 0 && len(b) == 0)
}

// Settle ends a transaction. The first end is final.
type Settle struct {
	Status       Status // Completed, Failed or Compensated
	SagaID       string
	ErrorReason  string
	ErrorMessage string
}

func (c Settle) decide(t Transaction) ([]es.Fact, error) {
	switch {
	case !t.Exists():
		return nil, es.Refuse("TRANSACTION_NOT_FOUND", "There is no such transaction.")
	case t.Status == c.Status:
		return nil, nil
	case t.Ended():
		return nil, es.Refuse("TRANSACTION_ENDED", "The transaction is %s; it cannot become %s.", t.Status, c.Status)
	case suffixes[c.Status] == "":
		return nil, fmt.Errorf("a transaction does not end as %q", c.Status)
	}
	return []es.Fact{Ended{Type: t.Type, Status: c.Status, SagaID: c.SagaID, ErrorReason: c.ErrorReason, ErrorMessage: c.ErrorMessage}}, nil
}
