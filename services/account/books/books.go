// Package books keeps the sums that prove that no money was made or lost: per currency the change of balances by account
// type and, summed separately, what postings did to money in transit. They commit with the events they sum.
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
	b.Queue(`INSERT INTO book_total AS t (currency, user_total, external_total, system_total, in_transit)
		SELECT c, u::numeric, e::numeric, s::numeric, i::numeric FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) AS x(c, u, e, s, i)
		ON CONFLICT (currency) DO UPDATE SET user_total = t.user_total + excluded.user_total, external_total = t.external_total + excluded.external_total,
			system_total = t.system_total + excluded.system_total, in_transit = t.in_transit + excluded.in_transit`,
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

// Read returns the sums of all currencies in one snapshot, by code, and when it was taken.
func Read(ctx context.Context, db querier) ([]Totals, time.Time, error) {
	rows, err := db.Query(ctx, `SELECT currency, user_total::text, external_total::text, system_total::text, in_transit::text, now() FROM book_total ORDER BY currency`)
	if err != nil {
		return nil, time.Time{}, espg.Classify("read books", err)
	}
	at := time.Now().UTC()
	totals, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (t Totals, err error) {
		var sums [4]string
		if err := row.Scan(&t.Currency, &sums[0], &sums[1], &sums[2], &sums[3], &at); err != nil {
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
		return nil, time.Time{}, espg.Classify("read books", err)
	}
	return totals, at.UTC(), nil
}
