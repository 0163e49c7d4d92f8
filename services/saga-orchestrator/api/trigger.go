package api

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/saga"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/edge"
)

// OpenTransactions says which transactions have not ended, from the transaction service's own tables.
type OpenTransactions interface {
	FilterOpenTransactions(context.Context, *transactionv1.FilterOpenTransactionsRequest, ...grpc.CallOption) (*transactionv1.FilterOpenTransactionsResponse, error)
}

// TopicTriggers starts sagas from trigger events that were read from Kafka. Kafka may hold events of transactions that their database
// has lost, after a fail-over or a restore: no step is carried out before the transaction service says that the transaction
// is there and is pending. Triggers that the transaction service sends itself (EnsureSaga) need no such question.
type TopicTriggers struct {
	Engine       *saga.Engine
	Store        saga.Store
	Transactions OpenTransactions
	Log          *slog.Logger

	refused atomic.Int64
}

// Refused is how many triggers were refused for want of a pending transaction, each as often as it was tried.
func (t *TopicTriggers) Refused() int64 { return t.refused.Load() }

// Handle is a cqrs.EventHandler. The transaction service is asked once for all events. A trigger without a pending transaction is an
// error, after the others were started: the inbox parks it.
func (t *TopicTriggers) Handle(ctx context.Context, events []es.Event) error {
	for page := range slices.Chunk(events, edge.BatchMax) {
		if err := t.handle(ctx, page); err != nil {
			return err
		}
	}
	return nil
}

func (t *TopicTriggers) handle(ctx context.Context, events []es.Event) error {
	asking, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	res, err := t.Transactions.FilterOpenTransactions(asking, &transactionv1.FilterOpenTransactionsRequest{TransactionIds: streamIDs(events)})
	if err != nil {
		return fmt.Errorf("ask which transactions are pending: %w", err)
	}
	open, others := split(events, res.GetTransactionIds())
	if len(open) > 0 {
		if _, err := t.Engine.Start(ctx, Triggers(open)); err != nil {
			return err
		}
	}
	if len(others) == 0 {
		return nil
	}
	known, err := t.Store.Known(ctx, streamIDs(others))
	if err != nil {
		return err
	}
	_, lost := split(others, known) // a trigger of a saga that is there is an old one, read again
	if len(lost) == 0 {
		return nil
	}
	t.refused.Add(int64(len(lost)))
	for _, e := range lost {
		t.Log.Error("trigger refused: its transaction is not pending, or does not exist, and has no saga",
			"transaction", e.Stream.ID, "event", e.ID, "type", e.Type, "correlation_id", e.CorrelationID)
	}
	return fmt.Errorf("transaction %s is not pending, or does not exist, and has no saga: its trigger starts none", lost[0].Stream.ID)
}

// askTimeout bounds a question to the transaction service; the inbox asks again.
const askTimeout = 10 * time.Second

func streamIDs(events []es.Event) []string {
	ids := make([]string, len(events))
	for i, e := range events {
		ids[i] = e.Stream.ID
	}
	return ids
}

// split divides events by whether their stream is among ids.
func split(events []es.Event, ids []string) (in, out []es.Event) {
	has := make(map[string]bool, len(ids))
	for _, id := range ids {
		has[id] = true
	}
	for _, e := range events {
		if has[e.Stream.ID] {
			in = append(in, e)
		} else {
			out = append(out, e)
		}
	}
	return in, out
}
