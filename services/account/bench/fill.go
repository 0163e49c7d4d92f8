package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
	"example.com/billing/services/account"
)

const (
	groupEvents = 5000 // written at once
	tenant      = "default"
	currency    = "USD"
)

// known is an account as everybody must see it.
type known struct {
	id   string
	root es.Root[account.Account]
}

// ledger writes accounts and transfers in large groups, and knows every account's state.
type ledger struct {
	store    es.Store
	decider  *es.Decider[account.Account, account.Command]
	random   *rand.Rand
	accounts []*known // the first is the bank
	events   int
	begun    time.Time // the first account's; each of the next opened a millisecond later

	group map[*known][]es.Event // to be written
	size  int
}

func newLedger(store es.Store) *ledger {
	return &ledger{
		store: store, decider: account.Decider(), random: rand.New(rand.NewPCG(1, 2)), //nolint:gosec // the same events each time
		begun: time.Date(2025, 12, 9, 12, 0, 0, 0, time.UTC), group: map[*known][]es.Event{},
	}
}

// fill opens accounts, then moves money among them up to this many events.
func (l *ledger) fill(ctx context.Context, accounts, events int) error {
	for i := range accounts {
		k := &known{id: uuid.NewString()}
		l.accounts = append(l.accounts, k)
		kind := account.User
		if i == 0 {
			kind = account.External
		}
		open := account.Open{OwnerID: fmt.Sprint("owner-", i/10), OwnerType: "person", Type: kind, Currency: currency, Scale: 2, RequestHash: "h"}
		if err := l.do(ctx, k, l.begun.Add(time.Duration(i)*time.Millisecond), open); err != nil {
			return err
		}
	}
	for l.events+2 <= events {
		if err := l.transfer(ctx); err != nil {
			return err
		}
	}
	return l.flush(ctx)
}

// transfer moves money between two random accounts, or from the bank where the first one holds none.
func (l *ledger) transfer(ctx context.Context) error {
	from, to := l.accounts[l.random.IntN(len(l.accounts))], l.accounts[1+l.random.IntN(len(l.accounts)-1)]
	most := from.root.State.Balance.IntPart()
	if most < 1 || from == to {
		from, most = l.accounts[0], 1000
	}
	saga, by := uuid.NewString(), decimal.NewFromInt(1+l.random.Int64N(most))
	debit := account.Post{SagaID: saga, Step: "debit_source", Direction: account.Debit, Amount: by, Currency: currency, Reason: "transfer"}
	credit := account.Post{SagaID: saga, Step: "credit_destination", Direction: account.Credit, Amount: by, Currency: currency, Reason: "transfer"}
	at := l.begun.Add(time.Hour)
	if err := l.do(ctx, from, at, debit); err != nil {
		return err
	}
	return l.do(ctx, to, at, credit)
}

func (l *ledger) do(ctx context.Context, k *known, at time.Time, c account.Command) error {
	events, err := l.decider.Apply(&k.root, es.Stream{Type: account.AggregateType, ID: k.id}, es.Command[account.Command]{
		ID: uuid.NewString(), At: at, CorrelationID: "bench", Metadata: map[string]any{"tenantId": tenant, "actor": "bench"}, Body: c,
	})
	if err != nil {
		return err
	}
	k.root.Commit()
	l.group[k] = append(l.group[k], events...)
	l.events, l.size = l.events+len(events), l.size+len(events)
	if l.size >= groupEvents {
		return l.flush(ctx)
	}
	return nil
}

func (l *ledger) flush(ctx context.Context) error {
	var items [][]es.Append
	for k, events := range l.group {
		snapshot, err := l.decider.Snapshots.Take(k.root.State)
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
