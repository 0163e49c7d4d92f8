package reconcile

import (
	"context"
	"fmt"

	"example.com/billing/services/account/clients"
)

// Lists compares a page of the list of transactions with their events, in the service that owns both.
type Lists interface {
	CompareList(ctx context.Context, after string) (wrong []clients.Difference, last string, err error)
}

// lists finds rows of the list of transactions that are not what the events say. Its owner is asked page by page.
func (r *Reconciler) lists(ctx context.Context, report *Report, show func() error) error {
	owner, ok := r.transactions.(Lists)
	if !ok {
		return nil
	}
	for after := ""; ; {
		wrong, last, err := owner.CompareList(ctx, after)
		if err != nil {
			return fmt.Errorf("compare the list of transactions: %w", err)
		}
		for _, d := range wrong {
			detail := "The list shows another version of the transaction than its events have."
			switch {
			case d.Actual == 0:
				detail = "The list lacks the transaction."
			case d.Expected == 0:
				detail = "The list shows a transaction that was never requested."
			case d.Expected == d.Actual:
				detail = "The list shows another state of the transaction than its events fold to."
			}
			report.add(Finding{Kind: ReadModel, TransactionID: d.TransactionID, Expected: version(d.Expected), Actual: version(d.Actual), Detail: detail})
		}
		if err := show(); err != nil || last == "" {
			return err
		}
		after = last
	}
}
