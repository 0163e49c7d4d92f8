// Package clients is how the transaction service asks the other services.
package clients

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"example.com/billing/pkg/batch"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/transaction"
)

// linger is how long a question waits for others while many are asked.
const linger = time.Millisecond

// callTimeout bounds one call to another service.
const callTimeout = 5 * time.Second

// Accounts asks the account service about accounts, many callers' questions in one request. Safe for concurrent use.
type Accounts struct {
	client accountv1.PostingServiceClient
	queue  *batch.Queue[[2]string, [2]transaction.Side]
}

// NewAccounts makes the client on a connection to the account service.
func NewAccounts(conn grpc.ClientConnInterface) *Accounts {
	a := &Accounts{client: accountv1.NewPostingServiceClient(conn)}
	a.queue = batch.New(batch.Options{FlightMax: 2, Linger: linger}, a.ask)
	return a
}

// Sides returns what matters of a transaction's two accounts, from their own streams.
func (a *Accounts) Sides(ctx context.Context, source, destination string) (s, d transaction.Side, err error) {
	sides, err := a.queue.Do(ctx, [2]string{source, destination})
	return sides[0], sides[1], err
}

// Close waits for the questions under way.
func (a *Accounts) Close(ctx context.Context) error { return a.queue.Close(ctx) }

func (a *Accounts) ask(ctx context.Context, pairs [][2]string) []batch.Result[[2]transaction.Side] {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	results := make([]batch.Result[[2]transaction.Side], len(pairs))
	var ids []string
	for _, p := range pairs {
		ids = append(ids, p[0], p[1])
	}
	res, err := a.client.InspectAccounts(ctx, &accountv1.InspectAccountsRequest{AccountIds: ids})
	if err == nil && len(res.GetAccounts()) != len(ids) {
		err = fmt.Errorf("inspect accounts: %d answers to %d questions", len(res.GetAccounts()), len(ids))
	}
	for i := range pairs {
		if err != nil {
			results[i].Err = err
			continue
		}
		for j := range 2 {
			x := res.GetAccounts()[2*i+j]
			if x.GetErrorMessage() != "" {
				results[i].Err = fmt.Errorf("inspect account %s: %s", ids[2*i+j], x.GetErrorMessage())
			}
			results[i].Value[j] = transaction.Side{Found: x.GetFound(), AccountType: x.GetAccountType(), Currency: x.GetCurrency(), Status: x.GetStatus()}
		}
	}
	return results
}
