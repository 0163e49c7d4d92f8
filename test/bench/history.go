package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"example.com/billing/deploy/local/system"
	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/saga"
	sagapg "example.com/billing/pkg/saga/postgres"
	"example.com/billing/services/account/books"
	"example.com/billing/services/account/ledger"
	orchestrator "example.com/billing/services/saga-orchestrator"
	"example.com/billing/services/transaction"
)

const (
	eventsOfTransfer = 5    // of both accounts, of the transaction when it begins and ends, of the saga
	granted          = 1000 // what each account gets from the bank
	shortEvents      = 10   // of an account with few events
	shorts           = 100  // accounts that have as many
	longShare        = 100  // one of so many events is of the account with many
	historyGroup     = 2000 // transactions written at once
)

// history writes what would have happened, straight to the three event stores while no service runs: as the services would, but in
// large groups. The events count as published.
type history struct {
	pools    map[string]*pgxpool.Pool // by database
	ledger   *ledger.Ledger
	events   int // of all three services
	sagas    *sagapg.Store
	template saga.State // of a transfer
	group    []ledger.Transfer
	ready    chan []ledger.Transfer // to be written by the other two services' stores
}

func newHistory(ctx context.Context, c *cluster, template string) (_ *history, err error) {
	h := &history{pools: map[string]*pgxpool.Pool{}}
	for _, name := range databases {
		if h.pools[name], err = pgxpool.New(ctx, c.postgres.DSN(name)); err != nil {
			return h, err
		}
	}
	h.ledger = ledger.New(espg.New(h.pools[system.AccountDatabase], espg.Options{Inline: books.Inline}))
	h.sagas = sagapg.New(h.pools[system.SagaDatabase], espg.New(h.pools[system.SagaDatabase], espg.Options{}), orchestrator.EndedEvent)
	h.template, err = h.sagas.Get(ctx, template)
	return h, err
}

func (h *history) close() {
	if h == nil {
		return
	}
	for _, p := range h.pools {
		p.Close()
	}
}

// grow writes on until there are so many accounts and events.
func (h *history) grow(ctx context.Context, accounts, events int) error {
	g, running := errgroup.WithContext(ctx)
	h.ready = make(chan []ledger.Transfer, 1)
	transactions, sagas := make(chan []ledger.Transfer, 1), make(chan []ledger.Transfer, 1)
	g.Go(func() error {
		defer close(h.ready)
		return h.move(running, accounts, events)
	})
	g.Go(func() error {
		defer close(transactions)
		defer close(sagas)
		for ts := range h.ready {
			for _, to := range []chan []ledger.Transfer{transactions, sagas} {
				select {
				case to <- ts:
				case <-running.Done():
					return running.Err()
				}
			}
		}
		return nil
	})
	g.Go(func() error { return h.writeTransactions(running, transactions) })
	g.Go(func() error { return h.writeSagas(running, sagas) })
	if err := g.Wait(); err != nil {
		return err
	}
	return errors.Join(h.published(ctx), h.settle(ctx))
}

// move opens the accounts, gives each its money, and moves it among them.
func (h *history) move(ctx context.Context, accounts, events int) error {
	l, first := h.ledger, len(h.ledger.Accounts)
	if err := l.Refresh(ctx); err != nil {
		return err
	}
	if err := l.Open(ctx, accounts-first); err != nil {
		return err
	}
	h.events += accounts - first
	for _, a := range l.Accounts[max(first, 1):] {
		if err := h.transfer(ctx, l.Accounts[0], a, granted); err != nil {
			return err
		}
	}
	told := time.Now()
	for n := 0; h.events+eventsOfTransfer <= events; n++ {
		from, to := h.sides(n)
		if err := h.transfer(ctx, from, to, 1); err != nil {
			return err
		}
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			say("  %d of %d events", h.events, events)
		}
	}
	if err := l.Flush(ctx); err != nil {
		return err
	}
	return h.handOver(ctx, 0)
}

// sides chooses between whom money is moved next: first among the accounts that shall have few events but not fewer, then in turn on
// either side of the account that shall have many, and then between any two of the others.
func (h *history) sides(n int) (from, to *ledger.Account) {
	accounts := h.ledger.Accounts
	for i := shortFirst; i < shortFirst+shorts; i += 2 {
		a, b := accounts[i], accounts[i+1]
		if a.Root.Version < shortEvents {
			return a, b
		}
	}
	others := accounts[shortFirst+shorts:]
	long, one := accounts[longOne], others[n%len(others)]
	switch {
	case long.Root.Version >= int64(h.events/longShare):
		return one, others[(n+1)%len(others)]
	case long.Root.Version%2 == 0:
		return long, one
	}
	return one, long
}

// The places of some accounts.
const (
	longOne    = 1 // has one of longShare events
	shortFirst = 2 // and those behind it have shortEvents
)

func (h *history) transfer(ctx context.Context, from, to *ledger.Account, amount int64) error {
	t, err := h.ledger.Move(ctx, from, to, amount)
	if err != nil {
		return err
	}
	h.events += eventsOfTransfer
	h.group = append(h.group, t)
	return h.handOver(ctx, historyGroup)
}

// handOver gives transfers to the other two stores where there are that many.
func (h *history) handOver(ctx context.Context, least int) error {
	if len(h.group) < least || len(h.group) == 0 {
		return nil
	}
	select {
	case h.ready <- h.group:
		h.group = nil
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// writeTransactions writes what the transaction service would. Its tables of what is pending stay as they are: nothing is.
func (h *history) writeTransactions(ctx context.Context, from <-chan []ledger.Transfer) error {
	store, decider := espg.New(h.pools[system.TransactionDatabase], espg.Options{}), transaction.Decider()
	for ts := range from {
		items := make([][]es.Append, len(ts))
		for i, t := range ts {
			stream := es.Stream{Type: transaction.AggregateType, ID: t.ID}
			root, a := decider.New(), es.Append{Stream: stream}
			for _, c := range []transaction.Command{
				transaction.Request{
					ID: t.ID, Type: transaction.Transfer, SourceID: t.SourceID, DestinationID: t.DestinationID, Amount: t.Amount, Scale: 2,
					Currency: ledger.Currency, IdempotencyKey: t.ID,
				},
				transaction.Settle{Status: transaction.Completed, SagaID: t.ID},
			} {
				events, err := decider.Apply(&root, stream, es.Command[transaction.Command]{
					ID: uuid.NewString(), At: t.At, CorrelationID: t.ID, Metadata: map[string]any{"tenantId": ledger.Tenant, "actor": "bench"}, Body: c,
				})
				if err != nil {
					return err
				}
				a.Events = append(a.Events, events...)
			}
			var err error
			if a.Snapshot, err = decider.Snapshots.Take(root.State); err != nil {
				return err
			}
			items[i] = []es.Append{a}
		}
		if err := errors.Join(store.AppendBatch(ctx, items)...); err != nil {
			return fmt.Errorf("write transactions: %w", err)
		}
	}
	return nil
}

// writeSagas writes the sagas' states and events: each a copy of a real one's state with its own ids and times.
func (h *history) writeSagas(ctx context.Context, from <-chan []ledger.Transfer) error {
	store := espg.New(h.pools[system.SagaDatabase], espg.Options{})
	for ts := range from {
		states, items := make([]saga.State, len(ts)), make([][]es.Append, len(ts))
		for i, t := range ts {
			s := h.template
			s.SagaID, s.CorrelationID, s.CausedBy = t.ID, t.ID, uuid.NewString()
			s.Subjects = []string{t.SourceID, t.DestinationID}
			s.Input = []byte(strings.NewReplacer(h.template.SagaID, t.ID, h.template.Subjects[0], t.SourceID, h.template.Subjects[1], t.DestinationID).Replace(string(s.Input)))
			s.CreatedAt, s.UpdatedAt = t.At, t.At
			e, err := orchestrator.EndedEvent(s)
			if err != nil {
				return err
			}
			states[i], items[i] = s, []es.Append{{Stream: e.Stream, Events: []es.Event{e}}}
		}
		if _, err := h.sagas.Insert(ctx, states); err != nil {
			return fmt.Errorf("write sagas: %w", err)
		}
		if err := errors.Join(store.AppendBatch(ctx, items)...); err != nil {
			return fmt.Errorf("write the sagas' events: %w", err)
		}
	}
	return nil
}

// published has the relays take all events as published.
func (h *history) published(ctx context.Context) error {
	return h.each(ctx, "UPDATE outbox_relay SET position = es_end()")
}

// settle has Postgres know its tables as it would after so long, and write them out.
func (h *history) settle(ctx context.Context) error {
	return h.each(ctx, "VACUUM ANALYZE", "CHECKPOINT")
}

func (h *history) each(ctx context.Context, statements ...string) error {
	for name, pool := range h.pools {
		for _, sql := range statements {
			if _, err := pool.Exec(ctx, sql); err != nil {
				return fmt.Errorf("%s: %s: %w", name, sql, err)
			}
		}
	}
	return nil
}
