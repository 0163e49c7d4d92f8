package inprocess

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
	"example.com/billing/pkg/money"
	"example.com/billing/pkg/saga"
	"example.com/billing/services/account"
	accountapi "example.com/billing/services/account/api"
	"example.com/billing/services/account/readmodel"
	"example.com/billing/services/edge"
	orchestrator "example.com/billing/services/saga-orchestrator"
	sagaapi "example.com/billing/services/saga-orchestrator/api"
	"example.com/billing/services/saga-orchestrator/clients"
	"example.com/billing/services/transaction"
	transactionapi "example.com/billing/services/transaction/api"
	transactionclients "example.com/billing/services/transaction/clients"
)

var secret = []byte("secret")

// services are the three services' own code on stores in memory: APIs, executors, sagas and the clients between them. What
// Postgres and Kafka do is done in the least way that keeps their promises: a commit wakes who waits, and hands its requests to
// the sagas.
type services struct {
	account, transaction conn
	accounts             *accountapi.Executor
	transactions         *transactionapi.Executor
	sagas                *saga.Engine
	open                 *open
}

func start(t *testing.T) *services {
	t.Helper()
	s := &services{account: conn{}, transaction: conn{}, open: &open{by: map[string][2]string{}}}
	stop := func(f func(context.Context) error) {
		t.Cleanup(func() {
			if err := f(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	services := clients.New(s.account, s.transaction)
	stop(services.Close)
	registry, err := saga.NewRegistry(orchestrator.Definitions()...)
	must(err)
	s.sagas, err = saga.NewEngine(saga.Config{
		Registry: registry, Actions: services.Actions(), Registers: services.Registers(), Store: saga.NewMemory(), Log: slog.New(slog.DiscardHandler),
	})
	must(err)
	stop(s.sagas.Stop)

	watches := edge.NewWatches(t.Context())
	accountStore := &telling{Store: memory.New(), told: watches.Hub.Notify}
	s.accounts, err = es.NewExecutor(account.Decider(), accountStore, es.ExecutorOptions{})
	must(err)
	stop(s.accounts.Close)
	closing := &accountapi.Closing{
		Executor: s.accounts, Open: s.open.of, Log: slog.New(slog.DiscardHandler),
		Accounts: func(context.Context, string, int) ([]readmodel.Closing, error) { return nil, nil },
	}
	accountapi.New(accountapi.Parts{
		Executor: s.accounts, Store: accountStore, Watches: watches, Currencies: money.Default(), Secret: secret, Closing: closing,
	}).Register(s.account)

	committed := edge.NewWatches(t.Context())
	triggers := make(chan []es.Event, 4096)
	transactionStore := &telling{Store: memory.New(), told: func(events []es.Event) {
		if err := s.open.note(events); err != nil {
			t.Error(err)
		}
		committed.Hub.Notify(events)
		triggers <- events
	}}
	s.transactions, err = es.NewExecutor(transaction.Decider(), transactionStore, es.ExecutorOptions{})
	must(err)
	stop(s.transactions.Close)
	asked := transactionclients.NewAccounts(s.account)
	stop(asked.Close)
	transactionapi.New(transactionapi.Parts{
		Executor: s.transactions, Store: transactionStore, Watches: committed, Accounts: asked, Currencies: money.Default(), Secret: secret,
	}).Register(s.transaction)
	go s.relay(t, registry, triggers)
	return s
}

// relay starts the sagas of what was committed.
func (s *services) relay(t testing.TB, registry saga.Registry, committed <-chan []es.Event) {
	ctx := t.Context()
	for {
		select {
		case events := <-committed:
			for _, e := range events {
				if _, ok := registry.ByTrigger(e.Type); ok {
					if _, err := s.sagas.Start(ctx, sagaapi.Triggers([]es.Event{e})); err != nil {
						if ctx.Err() == nil {
							t.Errorf("start the saga of %s: %v", e.Stream, err)
						}
						return
					}
				}
			}
		case <-ctx.Done():
			return
		}
	}
}

// expire asks for the release of a hold as the transaction service does when its time is over.
func (s *services) expire(ctx context.Context, holdID string) error {
	on, err := s.transactions.Get(ctx, holdID)
	if err != nil {
		return err
	}
	id := edge.DeriveID(secret, "Release", "default", holdID)
	m := cqrs.New(transaction.Request{
		ID: id, Type: transaction.Release, HoldID: holdID, SourceID: on.State.SourceID, Currency: on.State.Currency, Scale: on.State.Scale, Cause: transaction.Expiry,
	}, cqrs.Origin{TenantID: "default", Actor: edge.OwnActor, CorrelationID: "expiry"})
	_, err = s.transactions.Execute(ctx, es.Command[transaction.Command]{
		ID: m.ID, StreamID: id, OtherID: holdID, At: m.At, CorrelationID: m.CorrelationID, Metadata: m.Metadata(), Creates: true, Body: m.Body,
	})
	if err != nil {
		return err
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Microsecond) { // between two looks
		if out, err := s.transactions.Get(ctx, id); err != nil || out.State.Ended() {
			return err
		}
	}
	return errors.New("the release does not end")
}

// telling is a store that tells of its commits.
type telling struct {
	es.Store
	told func([]es.Event)
}

// AppendBatch is es.Store's.
func (s *telling) AppendBatch(ctx context.Context, items [][]es.Append) []error {
	errs := s.Store.AppendBatch(ctx, items)
	for i, item := range items {
		for _, a := range item {
			if errs[i] == nil {
				s.told(a.Events)
			}
		}
	}
	return errs
}

// open are the transactions that have not ended, each with its accounts.
type open struct {
	mu sync.Mutex
	by map[string][2]string
}

func (o *open) note(events []es.Event) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range events {
		f, err := transaction.Decode(e)
		if err != nil {
			return err
		}
		switch f := f.(type) {
		case transaction.Requested:
			o.by[e.Stream.ID] = [2]string{f.SourceID, f.DestinationID}
		case transaction.Ended:
			delete(o.by, e.Stream.ID)
		}
	}
	return nil
}

func (o *open) of(_ context.Context, accountID string) ([]string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var ids []string
	for id, sides := range o.by {
		if sides[0] == accountID || sides[1] == accountID {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
