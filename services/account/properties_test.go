package account_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/shopspring/decimal"
	"pgregory.net/rapid"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/estest"
	"example.com/billing/services/account"
)

// walk is an account that random commands are given to, and what a reader of its events knows of it.
type walk struct {
	dec    *es.Decider[account.Account, account.Command]
	stream es.Stream
	root   es.Root[account.Account]
	events []es.Event
	done   []account.BalanceChanged   // first legs that moved money
	holds  map[string]decimal.Decimal // what is left of each open hold
	n      int
}

// do gives the account a command and returns its facts.
func (w *walk) do(rt *rapid.T, c account.Command) []es.Fact {
	w.n++
	at := time.Date(2025, 12, 9, 12, 0, w.n, 0, time.UTC)
	events, err := w.dec.Apply(&w.root, w.stream, es.Command[account.Command]{ID: fmt.Sprint("c-", w.n), At: at, Body: c})
	if err != nil && es.RefusalOf(err) == nil {
		rt.Fatal(err)
	}
	w.root.Commit()
	var facts []es.Fact
	for _, e := range events {
		e = estest.Stored(rt, e)
		w.events = append(w.events, e)
		f, err := account.Decode(e)
		if err != nil {
			rt.Fatal(err)
		}
		facts = append(facts, f)
	}
	return facts
}

// cents draws an amount with up to the digits given.
func cents(lowest, highest int64, scale int32) *rapid.Generator[decimal.Decimal] {
	return rapid.Map(rapid.Int64Range(lowest, highest), func(n int64) decimal.Decimal { return decimal.New(n, -scale) })
}

func drawOpen(rt *rapid.T) account.Open {
	o := account.Open{
		OwnerID: "u-1", OwnerType: "customer", Type: account.Type(rapid.SampledFrom(account.Types()).Draw(rt, "type")),
		Currency: "USD", Scale: rapid.SampledFrom([]int32{0, 2, 8}).Draw(rt, "scale"), RequestHash: "h1",
	}
	if o.Type != account.External && rapid.Bool().Draw(rt, "minimum given") {
		x := cents(-50, 0, o.Scale).Draw(rt, "minimum")
		o.MinBalance = &x
	}
	if o.Type != account.External && rapid.Bool().Draw(rt, "maximum given") {
		x := cents(0, 100, o.Scale).Draw(rt, "maximum")
		o.MaxBalance = &x
	}
	return o
}

func TestAccountProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := &walk{dec: account.Decider(), stream: es.Stream{Type: account.AggregateType, ID: "a-1"}, holds: map[string]decimal.Decimal{}}
		w.root = w.dec.New()
		w.do(rt, drawOpen(rt))
		scale := w.root.State.Scale
		rt.Repeat(map[string]func(*rapid.T){
			"post": func(rt *rapid.T) {
				c := account.Post{
					SagaID: saga, Step: fmt.Sprint("s-", w.n), Amount: cents(-1, 80, rapid.SampledFrom([]int32{scale, scale, scale, scale + 1}).Draw(rt, "digits")).Draw(rt, "amount"),
					Direction: rapid.SampledFrom([]account.Direction{account.Debit, account.Credit}).Draw(rt, "direction"),
					Currency:  rapid.SampledFrom([]string{"USD", "USD", "USD", "USD", "EUR"}).Draw(rt, "currency"),
				}
				w.post(rt, c)
			},
			"hold":    w.hold,
			"capture": w.capture,
			"release": func(rt *rapid.T) {
				id := rapid.SampledFrom([]string{"h-1", "h-2", "h-3"}).Draw(rt, "hold")
				facts := w.do(rt, account.ReleaseHold{SagaID: saga, Step: fmt.Sprint("s-", w.n), HoldID: id})
				if f, ok := facts[0].(account.FundsReleased); !ok || !decimal.Decimal(f.Amount).Equal(w.holds[id]) {
					rt.Fatalf("hold %s of %s was released by %+v", id, w.holds[id], facts)
				}
				delete(w.holds, id)
			},
			"finish closing": func(rt *rapid.T) {
				before := w.root.State
				w.do(rt, account.FinishClosing{Version: w.root.Version})
				if now := w.root.State; now.Status == account.Closed && before.Status != account.Closed && (!now.Balance.IsZero() || len(w.holds) > 0) {
					rt.Fatalf("closed with %s and %d holds", now.Balance, len(w.holds))
				}
			},
			"cancel": func(rt *rapid.T) {
				before := w.root.State.Balance
				facts := w.do(rt, account.Cancel{SagaID: saga, Step: fmt.Sprint("s-", w.n)})
				if len(facts) != 1 || !w.root.State.Balance.Equal(before) {
					rt.Fatalf("a cancel led to %+v", facts)
				}
			},
			"rollback": func(rt *rapid.T) {
				if len(w.done) == 0 {
					rt.Skip("nothing was done")
				}
				i := rapid.IntRange(0, len(w.done)-1).Draw(rt, "which")
				w.rollback(rt, w.done[i])
				w.done = append(w.done[:i:i], w.done[i+1:]...)
			},
			"status": func(rt *rapid.T) {
				w.do(rt, account.ChangeStatus{Status: account.Status(rapid.SampledFrom(account.Statuses()).Draw(rt, "status")), Reason: "asked"})
			},
			"": func(rt *rapid.T) { w.check(rt) },
		})
		for _, e := range w.events {
			f, _ := account.Decode(e)
			estest.RoundTrip(t, w.dec, f)
		}
	})
}

// post: a first leg writes one register, and stays within the limits where it moves money.
func (w *walk) post(rt *rapid.T, c account.Post) {
	before := w.root.State
	facts := w.do(rt, c)
	if len(facts) != 1 {
		rt.Fatalf("a posting wrote %d registers", len(facts))
	}
	after := w.root.State
	switch f := facts[0].(type) {
	case account.BalanceChanged:
		w.done = append(w.done, f)
		change := c.Amount
		if c.Direction == account.Debit {
			change = change.Neg()
		}
		switch {
		case !c.Amount.IsPositive() || c.Currency != before.Currency || -c.Amount.Exponent() > before.Scale:
			rt.Fatalf("%+v was done", c)
		case before.Status != account.Active:
			rt.Fatalf("%+v was done on a %s account", c, before.Status)
		case !after.Balance.Equal(before.Balance.Add(change)):
			rt.Fatalf("%s and %s make %s", before.Balance, change, after.Balance)
		case c.HoldID == "" && c.Direction == account.Debit && after.MinBalance != nil && after.Available().LessThan(*after.MinBalance):
			rt.Fatalf("a debit to %s, below %s", after.Available(), after.MinBalance)
		case c.Direction == account.Credit && after.MaxBalance != nil && after.Balance.GreaterThan(*after.MaxBalance):
			rt.Fatalf("a credit to %s, above %s", after.Balance, after.MaxBalance)
		case after.Type == account.User && c.Direction == account.Debit && after.MinBalance == nil:
			rt.Fatal("a USER account without a lower limit")
		}
	case account.PostingRefused:
		if !after.Balance.Equal(before.Balance) || f.ErrorReason == "" || f.ErrorMessage == "" {
			rt.Fatalf("refused with %+v, balance from %s to %s", f, before.Balance, after.Balance)
		}
	default:
		rt.Fatalf("a posting wrote %+v", f)
	}
}

// hold reserves an amount, or leaves everything as it was.
func (w *walk) hold(rt *rapid.T) {
	before := w.root.State
	id := rapid.SampledFrom([]string{"h-1", "h-2", "h-3"}).Draw(rt, "hold")
	c := account.PlaceHold{SagaID: saga, Step: fmt.Sprint("s-", w.n), HoldID: id, Amount: cents(-1, 60, before.Scale).Draw(rt, "held"), Currency: "USD"}
	facts := w.do(rt, c)
	after := w.root.State
	switch facts[0].(type) {
	case account.FundsHeld:
		w.holds[id] = w.holds[id].Add(c.Amount)
		if !c.Amount.IsPositive() || before.Status != account.Active || after.MinBalance != nil && after.Available().LessThan(*after.MinBalance) {
			rt.Fatalf("%+v was done on a %s account with %s available", c, before.Status, before.Available())
		}
	case account.PostingRefused:
	default:
		rt.Fatalf("a hold wrote %+v", facts)
	}
	if !after.Balance.Equal(before.Balance) {
		rt.Fatalf("a hold moved the balance from %s to %s", before.Balance, after.Balance)
	}
}

// capture takes from a hold what it has, whatever the limits, and no more.
func (w *walk) capture(rt *rapid.T) {
	before := w.root.State
	id := rapid.SampledFrom([]string{"h-1", "h-2", "h-3"}).Draw(rt, "hold")
	c := account.Post{
		SagaID: saga, Step: fmt.Sprint("s-", w.n), Direction: account.Debit, Amount: cents(1, 60, before.Scale).Draw(rt, "captured"), Currency: "USD", HoldID: id,
	}
	w.post(rt, c)
	covered := before.Status == account.Active && before.Holds[id].GreaterThanOrEqual(c.Amount)
	if moved := !w.root.State.Balance.Equal(before.Balance); moved != covered {
		rt.Fatalf("capture of %s from a hold with %s on a %s account: done %v", c.Amount, before.Holds[id], before.Status, moved)
	}
	if covered {
		if w.holds[id] = w.holds[id].Sub(c.Amount); w.holds[id].IsZero() {
			delete(w.holds, id)
		}
		if !w.root.State.Available().Equal(before.Available()) {
			rt.Fatalf("a capture changed what is available from %s to %s", before.Available(), w.root.State.Available())
		}
	}
}

// rollback: it takes back exactly what was done, whatever the account's limits and status.
func (w *walk) rollback(rt *rapid.T, undone account.BalanceChanged) {
	before := w.root.State.Balance
	facts := w.do(rt, account.Rollback{
		SagaID: undone.SagaID, Step: undone.Step + "_rollback", Direction: undone.ChangeType, Amount: decimal.Decimal(undone.ChangeAmount), Reason: "rollback",
		HoldID: undone.HoldID,
	})
	if undone.HoldID != "" {
		w.holds[undone.HoldID] = w.holds[undone.HoldID].Add(decimal.Decimal(undone.ChangeAmount))
	}
	f, ok := facts[0].(account.BalanceChanged)
	sum := decimal.Decimal(f.TransitChange).Add(decimal.Decimal(undone.TransitChange))
	was := decimal.Decimal(undone.NewBalance).Sub(decimal.Decimal(undone.PreviousBalance))
	if !ok || !sum.IsZero() || !w.root.State.Balance.Equal(before.Sub(was)) {
		rt.Fatalf("%+v was rolled back by %+v, balance from %s to %s", undone, facts[0], before, w.root.State.Balance)
	}
}

// check holds at any time: every event is balanced and follows the one before, and state from events, live state and state from
// its snapshot are the same.
func (w *walk) check(rt *rapid.T) {
	balance, transit := decimal.Zero, decimal.Zero
	for _, e := range w.events {
		f, _ := account.Decode(e)
		c, ok := f.(account.BalanceChanged)
		if !ok {
			continue
		}
		change := decimal.Decimal(c.NewBalance).Sub(decimal.Decimal(c.PreviousBalance))
		switch {
		case !decimal.Decimal(c.PreviousBalance).Equal(balance):
			rt.Fatalf("version %d starts from %s, not %s", e.Version, e.Data, balance)
		case !change.Add(decimal.Decimal(c.TransitChange)).IsZero():
			rt.Fatalf("version %d makes money: %s", e.Version, e.Data)
		case !change.Abs().Equal(decimal.Decimal(c.ChangeAmount)) || change.IsNegative() != (c.ChangeType == account.Debit) || change.IsZero():
			rt.Fatalf("version %d: amount and balances differ: %s", e.Version, e.Data)
		}
		balance, transit = decimal.Decimal(c.NewBalance), transit.Add(decimal.Decimal(c.TransitChange))
	}
	if !balance.Add(transit).IsZero() || !w.root.State.Balance.Equal(balance) {
		rt.Fatalf("balance %s, transit %s, state %s", balance, transit, w.root.State.Balance)
	}
	held := decimal.Zero
	for id, left := range w.holds {
		if held = held.Add(left); !w.root.State.Holds[id].Equal(left) {
			rt.Fatalf("hold %s has %s left, not %s", id, w.root.State.Holds[id], left)
		}
	}
	if !w.root.State.Held.Equal(held) || len(w.root.State.Holds) != len(w.holds) {
		rt.Fatalf("held %s by %d holds, want %s by %d", w.root.State.Held, len(w.root.State.Holds), held, len(w.holds))
	}
	live := take(rt, w.dec, w.root.State)
	again := w.dec.New()
	if err := w.dec.Replay(&again, w.events...); err != nil {
		rt.Fatal(err)
	}
	if got := take(rt, w.dec, again.State); got != live {
		rt.Fatalf("reloaded\n%s\nlive\n%s", got, live)
	}
	restored, err := w.dec.Snapshots.Restore([]byte(live))
	if err != nil {
		rt.Fatal(err)
	}
	if got := take(rt, w.dec, restored); got != live {
		rt.Fatalf("restored\n%s\nlive\n%s", got, live)
	}
}

func take(rt *rapid.T, dec *es.Decider[account.Account, account.Command], a account.Account) string {
	b, err := dec.Snapshots.Take(a)
	if err != nil {
		rt.Fatal(err)
	}
	return string(b)
}
