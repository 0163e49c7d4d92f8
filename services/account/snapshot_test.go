package account_test

import (
	"testing"

	"example.com/billing/pkg/es/estest"
	"example.com/billing/services/account"
)

// What a snapshot of each schema looks like that was ever stored: they are read for ever. Added to, never edited.
func TestSnapshotsOfEverySchema(t *testing.T) {
	for schema, tc := range map[string]struct{ json, available string }{
		"1": {`{"schema":1,"ownerId":"u-1","ownerType":"customer","accountType":"USER","currency":"USD","scale":2,"balance":"100","minBalance":"0","status":"active","requestHash":"h1","version":2,"createdAt":"2025-12-09T12:00:00Z","updatedAt":"2025-12-09T12:00:00Z"}`, "100"},
		"2": {`{"schema":2,"ownerId":"u-1","ownerType":"customer","accountType":"USER","currency":"USD","scale":2,"balance":"100","held":"60","holds":{"44444444-4444-4444-8444-444444444444":"60"},"minBalance":"0","status":"active","requestHash":"h1","version":3,"createdAt":"2025-12-09T12:00:00Z","updatedAt":"2025-12-09T12:00:00Z"}`, "40"},
	} {
		a, err := account.Decider().Snapshots.Restore([]byte(tc.json))
		if err != nil || !a.Available().Equal(d(tc.available)) || a.Status != account.Active || a.OwnerID != "u-1" {
			t.Errorf("schema %s: %+v, %v", schema, a, err)
		}
	}
	// The newest is what is written today.
	a := estest.Given(t, account.Decider(), created(), credited("100.00")).When(place("60.00")).State()
	b, err := account.Decider().Snapshots.Take(a)
	const want = `{"schema":2,"ownerId":"u-1","ownerType":"customer","accountType":"USER","currency":"USD","scale":2,"balance":"100","held":"60","holds":{"44444444-4444-4444-8444-444444444444":"60"},"minBalance":"0","status":"active","requestHash":"h1","version":3,"createdAt":"2025-12-09T12:00:00Z","updatedAt":"2025-12-09T12:00:00Z"}`
	if err != nil || string(b) != want {
		t.Errorf("got %s, %v\nwant %s: a state that says more needs a schema of its own", b, err, want)
	}
}
