// Package ledger fills an account service's database through its event store, in large groups: what measurements are made on.
package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
	"example.com/billing/services/account"
)

// What the accounts have in common.
const (
	Tenant   = "default"
	Currency = "USD"
	scale    = 2
)

const groupEvents = 5000 // written at once

// Account is an account as everybody must see it.
type Account struct {
	ID   string
	Root es.Root[account.Account]
}

// Transfer is money that was moved.
type Transfer struct {
	ID                      string // of the transaction, and of its saga
	SourceID, DestinationID string
	Amount                  decimal.Decimal
	At                      time.Time
}

// Ledger opens accounts and moves money among them, and knows every account's state. For one goroutine.
type Ledger struct {
	Begun    time.Time  // when the first account opened; each of the next opens a millisecond later
	Accounts []*Account // the first is the bank
	Events   int        // written, or about to be

	store   es.Store
	decider *es.Decider[account.Account, account.Command]
	random  *rand.Rand
	group   map[*Account][]es.Event // to be written
	size    int
}

// New returns a ledger that writes to an empty store.
func New(store es.Store) *Ledger {
	return &Ledger{
		Begun: time.Date(2025, 12, 9, 12, 0, 0, 0, time.UTC), store: store, decider: account.Decider(),
		random: rand.New(rand.NewPCG(1, 2)), group: map[*Account][]es.Event{}, //nolint:gosec // the same each time
	}
}

// Open opens more accounts, ten for each owner.
func (l *Ledger) Open(ctx context.Context, accounts int) error {
	for range accounts {
		i := len(l.Accounts)
		a := &Account{ID: uuid.NewString()}
		l.Accounts = append(l.Accounts, a)
		kind := account.User
		if i == 0 {
			kind = account.External
		}
		open := account.Open{OwnerID: Owner(i), OwnerType: "person", Type: kind, Currency: Currency, Scale: scale, RequestHash: "h"}
		if err := l.do(ctx, a, l.Begun.Add(time.Duration(i)*time.Millisecond), open); err != nil {
			return err
		}
	}
	return nil
}

// Owner is the owner of the account with this number.
func Owner(i int) string { return fmt.Sprint("owner-", i/10) }

// Random moves money between two random accounts, or from the bank where the first one holds none.
func (l *Ledger) Random(ctx context.Context) (Transfer, error) {
	from, to := l.Accounts[l.random.IntN(len(l.Accounts))], l.Accounts[1+l.random.IntN(len(l.Accounts)-1)]
	most := from.Root.State.Balance.IntPart()
	if most < 1 || from == to {
		from, most = l.Accounts[0], 1000
	}
	return l.Move(ctx, from, to, 1+l.random.Int64N(most))
}

// Move moves money from one account to another.
func (l *Ledger) Move(ctx context.Context, from, to *Account, amount int64) (Transfer, error) {
	t := Transfer{ID: uuid.NewString(), SourceID: from.ID, DestinationID: to.ID, Amount: decimal.NewFromInt(amount), At: l.Begun.Add(time.Hour)}
	for _, side := range []struct {
		*Account
		step      string
		direction account.Direction
	}{{from, "debit_source", account.Debit}, {to, "credit_destination", account.Credit}} {
		p := account.Post{SagaID: t.ID, Step: side.step, Direction: side.direction, Amount: t.Amount, Currency: Currency, Reason: "transfer"}
		if err := l.do(ctx, side.Account, t.At, p); err != nil {
			return t, err
		}
	}
	return t, nil
}

func (l *Ledger) do(ctx context.Context, a *Account, at time.Time, c account.Command) error {
	events, err := l.decider.Apply(&a.Root, es.Stream{Type: account.AggregateType, ID: a.ID}, es.Command[account.Command]{
		ID: uuid.NewString(), At: at, CorrelationID: "bench", Metadata: map[string]any{"tenantId": Tenant, "actor": "bench"}, Body: c,
	})
	if err != nil {
		return err
	}
	a.Root.Commit()
	l.group[a] = append(l.group[a], events...)
	l.Events, l.size = l.Events+len(events), l.size+len(events)
	if l.size >= groupEvents {
		return l.Flush(ctx)
	}
	return nil
}

// Refresh reads all accounts again, which others may have used meanwhile.
func (l *Ledger) Refresh(ctx context.Context) error {
	x, err := es.NewExecutor(l.decider, l.store, es.ExecutorOptions{})
	if err != nil {
		return err
	}
	for some := range slices.Chunk(l.Accounts, groupEvents) {
		ids := make([]string, len(some))
		for i, a := range some {
			ids[i] = a.ID
		}
		found, err := x.GetAll(ctx, ids)
		if err != nil {
			return errors.Join(err, x.Close(ctx))
		}
		for i, a := range some {
			a.Root = es.Root[account.Account]{State: found[i].State, Version: found[i].Version}
		}
	}
	return x.Close(ctx)
}

// Flush writes what is not written yet.
func (l *Ledger) Flush(ctx context.Context) error {
	var items [][]es.Append
	for a, events := range l.group {
		snapshot, err := l.decider.Snapshots.Take(a.Root.State)
		if err != nil {
			return err
		}
		items = append(items, []es.Append{{Stream: events[0].Stream, Expected: events[0].Version - 1, Events: events, Snapshot: snapshot}})
	}
	clear(l.group)
	l.size = 0
	for _, err := range l.store.AppendBatch(ctx, items) {
		if err != nil {
			return err
		}
	}
	return nil
}
