// Package clients is how the account service asks the other services.
package clients

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"

	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
)

// callTimeout bounds one call to another service.
const callTimeout = 5 * time.Second

// Transactions asks the transaction service which transactions have not ended. Safe for concurrent use.
type Transactions struct {
	client transactionv1.SettlementServiceClient
}

// NewTransactions makes the client on a connection to the transaction service.
func NewTransactions(conn grpc.ClientConnInterface) *Transactions {
	return &Transactions{client: transactionv1.NewSettlementServiceClient(conn)}
}

// OpenOf lists transactions that have not ended and name the account; not all, where there are very many.
func (t *Transactions) OpenOf(ctx context.Context, accountID string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	res, err := t.client.ListOpenTransactions(ctx, &transactionv1.ListOpenTransactionsRequest{AccountId: accountID})
	if err != nil {
		return nil, fmt.Errorf("ask for open transactions: %w", err)
	}
	return res.GetTransactionIds(), nil
}
