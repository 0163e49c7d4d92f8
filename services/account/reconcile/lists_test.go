package reconcile_test

import (
	"testing"

	"github.com/google/uuid"

	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
)

// The check looks at the list of transactions too, page by page, and names each row that is wrong.
func TestTheListOfTransactionsIsChecked(t *testing.T) {
	s := newSmall(t)
	s.wantClean(s.all())
	lacking, unknown, other, page := uuid.NewString(), uuid.NewString(), uuid.NewString(), uuid.NewString()
	s.transactions.mu.Lock()
	s.transactions.list = []*transactionv1.CompareTransactionListResponse{
		{Last: page, Differences: []*transactionv1.TransactionListDifference{{TransactionId: lacking, ExpectedVersion: 2}, {TransactionId: unknown, ActualVersion: 1}}},
		{Differences: []*transactionv1.TransactionListDifference{{TransactionId: other, ExpectedVersion: 2, ActualVersion: 2}}},
	}
	s.transactions.mu.Unlock()
	found := map[string]string{}
	for _, f := range s.all().GetFindings() {
		if f.GetKind() != "read_model" {
			t.Errorf("found %v", f)
		}
		found[f.GetTransactionId()] = f.GetDetail()
	}
	for id, detail := range map[string]string{
		lacking: "The list lacks the transaction.", unknown: "The list shows a transaction that was never requested.",
		other: "The list shows another state of the transaction than its events fold to.",
	} {
		if found[id] != detail {
			t.Errorf("of %s is found %q, want %q", id, found[id], detail)
		}
	}
	if len(found) != 3 {
		t.Errorf("found %v", found)
	}
}
