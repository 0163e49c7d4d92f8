package transaction_test

import (
	"testing"

	"example.com/billing/pkg/es/estest"
	"example.com/billing/services/transaction"
)

// What a snapshot of each schema looks like that was ever stored: they are read for ever. Added to, never edited.
func TestSnapshotsOfEverySchema(t *testing.T) {
	const second = `{"schema":2,"type":"payment","status":"completed","sourceAccountId":"11111111-1111-4111-8111-111111111111","destinationAccountId":"22222222-2222-4222-8222-222222222222","amount":"100","scale":2,"currency":"USD","reference":"rent","metadata":{"month":"May"},"idempotencyKey":"k-1","version":3,"createdAt":"2025-12-09T12:00:00Z","updatedAt":"2025-12-09T12:00:00Z","reserved":"40"}`
	for schema, tc := range map[string]struct{ json, left string }{
		"1": {`{"schema":1,"type":"transfer","status":"completed","sourceAccountId":"11111111-1111-4111-8111-111111111111","destinationAccountId":"22222222-2222-4222-8222-222222222222","amount":"50","scale":2,"currency":"USD","idempotencyKey":"k-1","version":2,"createdAt":"2025-12-09T12:00:00Z","updatedAt":"2025-12-09T12:00:00Z"}`, "50"},
		"2": {second, "60"},
	} {
		tr, err := transaction.Decider().Snapshots.Restore([]byte(tc.json))
		if err != nil || !tr.Left().Equal(d(tc.left)) || tr.Status != transaction.Completed {
			t.Errorf("schema %s: %+v, %v", schema, tr, err)
		}
	}
	// The newest is what is written today.
	_, on := estest.GivenPair(t, transaction.Decider(), nil, paid()).When(refund("40")).States()
	b, err := transaction.Decider().Snapshots.Take(on)
	if err != nil || string(b) != second {
		t.Errorf("got %s, %v\nwant %s: a state that says more needs a schema of its own", b, err, second)
	}
}
