package books

import (
	"reflect"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
	"example.com/billing/services/account"
)

func posted(t *testing.T, f es.Fact) es.Event {
	t.Helper()
	data, err := es.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	return es.Event{Type: f.EventType(), Data: data}
}

func moved(currency string, kind account.Type, before, after, transit string) account.BalanceChanged {
	amount := func(s string) account.Amount { return account.Amount(decimal.RequireFromString(s)) }
	return account.BalanceChanged{
		PreviousBalance: amount(before), NewBalance: amount(after), TransitChange: amount(transit), Currency: currency, AccountType: kind,
	}
}

// The sums of a group's events, by currency in alphabetical order, are one statement.
func TestInlineSums(t *testing.T) {
	b := &pgx.Batch{}
	err := Inline(b, []es.Event{
		posted(t, moved("USD", account.External, "0", "-100.00", "100.00")),
		posted(t, moved("USD", account.User, "0", "100.00", "-100.00")),
		posted(t, moved("USD", account.User, "100.00", "69.50", "30.50")),
		posted(t, account.PostingRefused{Currency: "USD"}),
		posted(t, moved("EUR", account.System, "5.00", "7.00", "-2.00")),
	})
	if err != nil || len(b.QueuedQueries) != 1 {
		t.Fatalf("%d statements, %v", len(b.QueuedQueries), err)
	}
	want := []any{[]string{"EUR", "USD"}, []string{"0", "69.5"}, []string{"0", "-100"}, []string{"2", "0"}, []string{"-2", "30.5"}}
	if got := b.QueuedQueries[0].Arguments; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

func TestInlineWithoutMovements(t *testing.T) {
	b := &pgx.Batch{}
	if err := Inline(b, []es.Event{posted(t, account.PostingCancelled{})}); err != nil || len(b.QueuedQueries) != 0 {
		t.Errorf("%d statements, %v", len(b.QueuedQueries), err)
	}
	if err := Inline(b, []es.Event{{Type: "BalanceChanged", Data: []byte(`[]`)}}); err == nil {
		t.Error("an event that cannot be read is left out of the books")
	}
}

// A posting whose two sides disagree shows as a difference.
func TestDifference(t *testing.T) {
	var right, wrong Totals
	right.add(moved("USD", account.User, "5.00", "2.00", "3.00"))
	wrong.add(moved("USD", account.User, "5.00", "2.00", "2.99"))
	if !right.Difference().IsZero() || wrong.Difference().String() != "-0.01" {
		t.Errorf("differences %s and %s", right.Difference(), wrong.Difference())
	}
}
