package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/inbox"
	"example.com/billing/pkg/saga"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
)

// pending is a transaction service that knows which transactions are pending.
type pending struct {
	mu    sync.Mutex
	ids   []string
	err   error
	calls int
}

func (p *pending) FilterOpenTransactions(_ context.Context, req *transactionv1.FilterOpenTransactionsRequest, _ ...grpc.CallOption) (*transactionv1.FilterOpenTransactionsResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.calls++; p.err != nil {
		return nil, p.err
	}
	res := &transactionv1.FilterOpenTransactionsResponse{}
	for _, id := range req.GetTransactionIds() {
		if slices.Contains(p.ids, id) {
			res.TransactionIds = append(res.TransactionIds, id)
		}
	}
	return res, nil
}

func requested(id string) es.Event {
	return es.Event{
		ID: uuid.NewString(), Type: "TransferRequested", Stream: es.Stream{Type: "Transaction", ID: id}, Version: 1, At: accepted,
		CorrelationID: "corr-1", Data: json.RawMessage(`{"sourceAccountId":"a","destinationAccountId":"b","amount":"1.00","currency":"USD"}`),
	}
}

// No step is carried out for a trigger from Kafka whose transaction is not pending. The trigger is an error that the inbox parks;
// the triggers beside it start their sagas, and one question is asked for all of them.
func TestTriggersWithoutAPendingTransaction(t *testing.T) {
	h := newHarness(t)
	var (
		mu    sync.Mutex
		asked int
	)
	on := h.instance(t.Context(), func(action string) saga.Answer {
		mu.Lock()
		defer mu.Unlock()
		asked++
		return fine(action)
	})
	old, fresh, lost := uuid.NewString(), uuid.NewString(), uuid.NewString()
	p := &pending{ids: []string{old}}
	triggers := &TopicTriggers{Engine: on.engine, Store: h.store, Transactions: p, Log: slog.New(slog.DiscardHandler)}
	if err := triggers.Handle(t.Context(), []es.Event{requested(old)}); err != nil {
		t.Fatal(err)
	}
	h.eventually(old, saga.Completed)
	p.ids, p.calls = []string{fresh}, 0 // the old one has ended
	err := triggers.Handle(t.Context(), []es.Event{requested(lost), requested(old), requested(fresh)})
	if err == nil || inbox.Transient(err) || p.calls != 1 || triggers.Refused() != 1 {
		t.Errorf("%v, in %d calls, %d refused: want an error that parks, one call, one refused", err, p.calls, triggers.Refused())
	}
	h.eventually(fresh, saga.Completed)
	if _, err := h.store.Get(t.Context(), lost); !errors.Is(err, saga.ErrNotFound) {
		t.Errorf("the lost transaction has a saga: %v", err)
	}
	if mu.Lock(); asked != 6 {
		t.Errorf("%d steps were carried out, want the 6 of two transfers", asked)
	}
	mu.Unlock()
	if err := triggers.Handle(t.Context(), []es.Event{requested(old), requested(fresh)}); err != nil {
		t.Errorf("triggers that were read again: %v", err)
	}
}

// As long as the transaction service does not answer, no saga starts, and nothing is parked.
func TestTriggersWaitForTheTransactionService(t *testing.T) {
	h := newHarness(t)
	on := h.instance(t.Context(), fine)
	id := uuid.NewString()
	p := &pending{ids: []string{id}, err: status.Error(codes.Unavailable, "away")}
	triggers := &TopicTriggers{Engine: on.engine, Store: h.store, Transactions: p, Log: slog.New(slog.DiscardHandler)}
	if err := triggers.Handle(t.Context(), []es.Event{requested(id)}); !inbox.Transient(err) {
		t.Errorf("%v: want an error that is tried again for ever", err)
	}
	if _, err := h.store.Get(t.Context(), id); !errors.Is(err, saga.ErrNotFound) {
		t.Errorf("the saga has started: %v", err)
	}
	p.err = nil
	if err := triggers.Handle(t.Context(), []es.Event{requested(id)}); err != nil {
		t.Fatal(err)
	}
	h.eventually(id, saga.Completed)
}
