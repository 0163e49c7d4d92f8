// Package books keeps the sums that prove that no money was made or lost: per currency the change of balances by account
// type and, summed separately, what postings did to money in transit. They commit with the events they sum.
//
// A commit inserts what it adds, into book_delta, and updates nothing: a row that each commit updates makes each slower than
// the one before for as long as any snapshot is open. A roll-up moves the added rows into book_total. The books are the sum of
// both, read in one statement.
package books

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/services/account"
)

// Totals are the sums of one currency.
type Totals struct {
	Currency                          string
	User, External, System, InTransit decimal.Decimal
}

// Difference is the sum of all of them: zero, always.
func (t Totals) Difference() decimal.Decimal {
	return t.User.Add(t.External).Add(t.System).Add(t.InTransit)
}

// Inline adds the sums of these events to the transaction that commits them.
func Inline(b *pgx.Batch, events []es.Event) error {
	totals := map[string]*Totals{}
	for _, e := range events {
		if e.Type != (account.BalanceChanged{}).EventType() {
			continue
		}
		f, err := account.Decode(e)
		if err != nil {
			return fmt.Errorf("sum %s version %d: %w", e.Stream, e.Version, err)
		}
		c := f.(account.BalanceChanged) //nolint:forcetypeassert // told by its type
		t := totals[c.Currency]
		if t == nil {
			t = &Totals{Currency: c.Currency}
			totals[c.Currency] = t
		}
		t.add(c)
	}
	if len(totals) == 0 {
		return nil
	}
	var currencies, user, external, system, transit []string
	for code := range totals {
		currencies = append(currencies, code)
	}
	slices.Sort(currencies)
	for _, code := range currencies {
		t := totals[code]
		user, external = append(user, t.User.String()), append(external, t.External.String())
		system, transit = append(system, t.System.String()), append(transit, t.InTransit.String())
	}
	b.Queue(`INSERT INTO book_delta (currency, user_total, external_total, system_total, in_transit)
		SELECT c, u::numeric, e::numeric, s::numeric, i::numeric FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) AS x(c, u, e, s, i)`,
		currencies, user, external, system, transit)
	return nil
}

// add takes the balance's change from the balances and transit's from the posting: an event whose two sides disagree shows.
func (t *Totals) add(c account.BalanceChanged) {
	change := decimal.Decimal(c.NewBalance).Sub(decimal.Decimal(c.PreviousBalance))
	switch c.AccountType {
	case account.User:
		t.User = t.User.Add(change)
	case account.External:
		t.External = t.External.Add(change)
	case account.System:
		t.System = t.System.Add(change)
	}
	t.InTransit = t.InTransit.Add(decimal.Decimal(c.TransitChange))
}

// querier is a pool, or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// stored are the rows that the books are the sum of. No row is left before the mark, and an index scan behind it does not meet
// the dead ones there. The upper bound excludes nothing: a range is what makes the planner choose the index without statistics.
const stored = `(SELECT currency, user_total, external_total, system_total, in_transit FROM book_total
	UNION ALL SELECT currency, user_total, external_total, system_total, in_transit FROM book_delta
		WHERE id > (SELECT up_to FROM book_rolled) AND id <= (SELECT up_to FROM book_rolled) + 1000000000000000) AS stored`

// Read returns the sums of all currencies in one snapshot, by code, and when it was taken.
func Read(ctx context.Context, db querier) ([]Totals, time.Time, error) {
	totals, _, at, err := read(ctx, db)
	return totals, at, err
}

// ReadAt is Read with the position of the newest event that is in the sums.
func ReadAt(ctx context.Context, db querier) ([]Totals, int64, error) {
	totals, position, _, err := read(ctx, db)
	return totals, position, err
}

// read is one statement, thus one snapshot. The row of the end comes first, and is there when nothing was ever moved.
func read(ctx context.Context, db querier) (totals []Totals, end int64, at time.Time, err error) {
	rows, err := db.Query(ctx, `WITH totals AS (SELECT currency, sum(user_total)::text AS u, sum(external_total)::text AS e, sum(system_total)::text AS s,
			sum(in_transit)::text AS i FROM `+stored+` GROUP BY currency)
		SELECT coalesce(t.currency, ''), coalesce(t.u, '0'), coalesce(t.e, '0'), coalesce(t.s, '0'), coalesce(t.i, '0'), n.at, n.position
		FROM (SELECT now() AS at, coalesce((SELECT max(position) FROM es_event), 0) AS position) n LEFT JOIN totals t ON true ORDER BY t.currency`)
	if err != nil {
		return nil, 0, time.Time{}, espg.Classify("read books", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (t Totals, err error) {
		var sums [4]string
		if err := row.Scan(&t.Currency, &sums[0], &sums[1], &sums[2], &sums[3], &at, &end); err != nil {
			return t, err
		}
		for i, into := range []*decimal.Decimal{&t.User, &t.External, &t.System, &t.InTransit} {
			if *into, err = decimal.NewFromString(sums[i]); err != nil {
				return t, err
			}
		}
		return t, nil
	})
	if err != nil {
		return nil, 0, time.Time{}, espg.Classify("read books", err)
	}
	totals = slices.DeleteFunc(all, func(t Totals) bool { return t.Currency == "" })
	return totals, end, at.UTC(), nil
}
