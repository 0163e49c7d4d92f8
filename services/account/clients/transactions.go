// Package clients is how the account service asks the other services.
package clients

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/edge"
)

// callTimeout bounds one call to another service.
const callTimeout = 5 * time.Second

// compareTimeout bounds one page of a comparison, which waits for rows that are on their way.
const compareTimeout = 20 * time.Second

// Transactions asks the transaction service which transactions have not ended. Safe for concurrent use.
type Transactions struct {
	client transactionv1.SettlementServiceClient
}

// NewTransactions makes the client on a connection to the transaction service.
func NewTransactions(conn grpc.ClientConnInterface) *Transactions {
	return &Transactions{client: transactionv1.NewSettlementServiceClient(conn)}
}

// Open returns those of these transactions that have not ended. One that the transaction service does not know is not open.
func (t *Transactions) Open(ctx context.Context, ids []string) ([]string, error) {
	var open []string
	for some := range slices.Chunk(ids, edge.BatchMax) {
		res, err := t.filter(ctx, some)
		if err != nil {
			return nil, err
		}
		open = append(open, res.GetTransactionIds()...)
	}
	return open, nil
}

func (t *Transactions) filter(ctx context.Context, ids []string) (*transactionv1.FilterOpenTransactionsResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return t.client.FilterOpenTransactions(ctx, &transactionv1.FilterOpenTransactionsRequest{TransactionIds: ids})
}

// OpenOf returns transactions that have not ended and name the account, the first 100.
func (t *Transactions) OpenOf(ctx context.Context, accountID string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	res, err := t.client.ListOpenTransactions(ctx, &transactionv1.ListOpenTransactionsRequest{AccountId: accountID})
	return res.GetTransactionIds(), err
}

// Difference is a row of the list of transactions that is not what the events say.
type Difference struct {
	TransactionID    string
	Expected, Actual int64 // versions; 0 = there is none. Equal where the row shows another state
}

// CompareList compares a page of the list of transactions with their events. A transaction service of before that question
// has nothing to say.
func (t *Transactions) CompareList(ctx context.Context, after string) (wrong []Difference, last string, err error) {
	ctx, cancel := context.WithTimeout(ctx, compareTimeout)
	defer cancel()
	res, err := t.client.CompareTransactionList(ctx, &transactionv1.CompareTransactionListRequest{After: after})
	if status.Code(err) == codes.Unimplemented {
		return nil, "", nil
	}
	for _, d := range res.GetDifferences() {
		wrong = append(wrong, Difference{d.GetTransactionId(), d.GetExpectedVersion(), d.GetActualVersion()})
	}
	return wrong, res.GetLast(), err
}
