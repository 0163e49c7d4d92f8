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

// readTransit adds up what all events did to money in transit. In the order of positions each transaction comes and goes, so
// that only what was in flight at a time is held.
func readTransit(ctx context.Context, tx pgx.Tx, show func() error) (*transit, error) {
	t := &transit{by: map[flight]decimal.Decimal{}, first: map[flight]string{}}
	if err := tx.QueryRow(ctx, `SELECT es_end()`).Scan(&t.end); err != nil {
		return nil, fmt.Errorf("read the log's end: %w", err)
	}
	postings, err := open(ctx, tx, "postings", pgx.RowTo[[]byte],
		`SELECT payload FROM es_event WHERE event_type = $1 AND stream_type = $2 ORDER BY position`, account.BalanceChanged{}.EventType(), account.AggregateType)
	if err != nil {
		return nil, err
	}
	for {
		payload, err := postings.peek(ctx)
		if err != nil || payload == nil {
			return t, err
		}
		if t.add(*payload, nil); len(t.by) > flightsMax {
			return nil, fmt.Errorf("more than %d transactions have money in transit", flightsMax)
		}
		postings.take()
		if err := show(); err != nil {
			return nil, err
		}
	}
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

// judge finds money in transit of transactions that have ended. Which have, their owner is asked after the snapshot: a
// transaction that ended in between had not in the snapshot. All its postings were committed before its end, so once they
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
	if err := t.follow(ctx, r.pool, ended); err != nil {
		return err
	}
	for _, k := range slices.SortedFunc(maps.Keys(t.by), func(a, b flight) int { return cmp.Compare(a.transactionID, b.transactionID) }) {
		report.add(Finding{Kind: Transit, AccountID: t.first[k], TransactionID: k.transactionID, Expected: "0 " + k.currency, Actual: t.by[k].String() + " " + k.currency,
			Detail: "The transaction has ended and left money in transit."})
	}
	return nil
}

// follow adds the postings of these transactions that were committed after the snapshot.
func (t *transit) follow(ctx context.Context, pool *pgxpool.Pool, only map[flight]bool) error {
	for len(only) > 0 {
		rows, err := pool.Query(ctx, `SELECT position, event_type, payload FROM es_event WHERE position > $1 ORDER BY position LIMIT $2`, t.end, pageMax)
		if err != nil {
			return fmt.Errorf("read what followed: %w", err)
		}
		var (
			eventType string
			payload   []byte
			n         int
		)
		_, err = pgx.ForEachRow(rows, []any{&t.end, &eventType, &payload}, func() error {
			if n++; eventType == (account.BalanceChanged{}).EventType() {
				t.add(payload, only)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("read what followed: %w", err)
		}
		if n < pageMax {
			return nil
		}
	}
	return nil
}
