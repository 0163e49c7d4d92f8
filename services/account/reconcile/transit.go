package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
	"example.com/billing/services/account"
)

// flightsMax is how many transactions may have money in transit at once. There are never as many: a saga engine works on
// 10,000 at most.
const flightsMax = 200_000

// flight names a transaction and its currency.
type flight struct{ transactionID, currency string }

// transit is the money in transit, transaction by transaction: an entry for each that is not zero.
type transit struct {
	end   int64 // position up to which it was read
	by    map[flight]decimal.Decimal
	first map[flight]string // the account it left first
}

// readTransit adds up what all events up to a position did to money in transit. In the order of positions each transaction
// comes and goes, so that only what was in flight at a time is held.
func readTransit(ctx context.Context, pool *pgxpool.Pool, position int64, show func() error) (*transit, error) {
	t := &transit{by: map[flight]decimal.Decimal{}, first: map[flight]string{}}
	return t, t.read(ctx, pool, position, nil, show)
}

// add adds a posting, unless only others are asked for. One that cannot be read was found before.
func (t *transit) add(payload []byte, only map[flight]bool) {
	e, err := es.Decode(payload)
	if err != nil {
		return
	}
	f, err := account.Decode(e)
	if err != nil {
		return
	}
	moved, ok := f.(account.BalanceChanged)
	if !ok {
		return
	}
	k := flight{moved.SagaID, moved.Currency}
	if only != nil && !only[k] {
		return
	}
	sum := t.by[k].Add(decimal.Decimal(moved.TransitChange))
	if sum.IsZero() {
		delete(t.by, k)
		delete(t.first, k)
		return
	}
	t.by[k] = sum
	if t.first[k] == "" {
		t.first[k] = e.Stream.ID
	}
}

// judge finds money in transit of transactions that have ended. Which have, their owner is asked later than the position of
// the postings: a transaction that ended in between had not ended there. All its postings were committed before its end, so once they
// are added too, what is left must be zero.
func (t *transit) judge(ctx context.Context, r *Reconciler, report *Report) error {
	if len(t.by) == 0 {
		return nil
	}
	ids := map[string]bool{}
	for k := range t.by {
		ids[k.transactionID] = true
	}
	open, err := r.transactions.Open(ctx, slices.Sorted(maps.Keys(ids)))
	if err != nil {
		return fmt.Errorf("ask which transactions are open: %w", err)
	}
	for _, id := range open {
		delete(ids, id)
	}
	ended := map[flight]bool{}
	for k := range t.by {
		if ids[k.transactionID] {
			ended[k] = true
		} else {
			delete(t.by, k)
		}
	}
	if err := r.fresh(ctx); err != nil {
		return err
	}
	if len(ended) > 0 {
		// All that there is now, and not more: without an end, traffic could keep the check going.
		now, err := r.end(ctx)
		if err != nil {
			return err
		}
		if err := t.read(ctx, r.pool, now, ended, func() error { return nil }); err != nil {
			return err
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(t.by), func(a, b flight) int { return cmp.Compare(a.transactionID, b.transactionID) }) {
		report.add(Finding{Kind: Transit, AccountID: t.first[k], TransactionID: k.transactionID, Expected: "0 " + k.currency, Actual: t.by[k].String() + " " + k.currency,
			Detail: "The transaction has ended and left money in transit."})
	}
	return nil
}

// read adds the postings up to a position, page by page. only are the transactions that it adds; nil = all.
func (t *transit) read(ctx context.Context, pool *pgxpool.Pool, to int64, only map[flight]bool, show func() error) error {
	for t.end < to {
		// Without the type in the condition: the rows that one statement reads are as many as it returns.
		rows, err := pool.Query(ctx, `SELECT position, CASE WHEN event_type = $1 AND stream_type = $2 THEN payload END FROM es_event
			WHERE position > $3 AND position <= $4 ORDER BY position LIMIT $5`,
			account.BalanceChanged{}.EventType(), account.AggregateType, t.end, to, pageMax)
		if err != nil {
			return fmt.Errorf("read postings: %w", err)
		}
		var (
			payload []byte
			n       int
		)
		_, err = pgx.ForEachRow(rows, []any{&t.end, &payload}, func() error {
			if n++; payload != nil {
				t.add(payload, only)
			}
			payload = nil
			return nil
		})
		if err != nil {
			return fmt.Errorf("read postings: %w", err)
		}
		if len(t.by) > flightsMax {
			return fmt.Errorf("more than %d transactions have money in transit", flightsMax)
		}
		if err := show(); err != nil {
			return err
		}
		if n < pageMax {
			return nil
		}
	}
	return nil
}
