package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
)

const (
	currency  = "USD"
	endowment = "1000000.00" // of each account
	clients   = 4            // connections to each instance
)

// world is the accounts that money is moved between, and the way to the services.
type world struct {
	run      string // makes the keys of this run its own
	accounts []string
	keys     atomic.Int64

	transactions []transactionv1.TransactionServiceClient // in turn
	settlements  transactionv1.SettlementServiceClient
	sagas        sagav1.SagaServiceClient

	toAccounts, toTransactions *grpc.ClientConn
	close                      []func() error
}

// pair is the two sides of a transfer.
type pair struct{ from, to string }

// draw chooses the sides of a transfer.
type draw func(r *rand.Rand) pair

func dial(addr string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// newWorld opens accounts and gives each its money.
func newWorld(ctx context.Context, c *cluster, run string, accounts int) (*world, error) {
	w, err := connect(c, run)
	if err != nil {
		return w, err
	}
	return w, w.open(ctx, accountv1.NewAccountServiceClient(w.toAccounts), accounts)
}

// connect reaches the services; there are no accounts.
func connect(c *cluster, run string) (*world, error) {
	w := &world{run: run}
	to := func(addr string) (*grpc.ClientConn, error) {
		conn, err := dial(addr)
		if err == nil {
			w.close = append(w.close, conn.Close)
		}
		return conn, err
	}
	var err error
	for i := range clients * len(c.transaction) {
		if w.toTransactions, err = to(c.transaction[i%len(c.transaction)]); err != nil {
			return w, err
		}
		w.transactions = append(w.transactions, transactionv1.NewTransactionServiceClient(w.toTransactions))
	}
	w.settlements = transactionv1.NewSettlementServiceClient(w.toTransactions)
	toSagas, err := to(c.saga[0])
	if err != nil {
		return w, err
	}
	w.sagas = sagav1.NewSagaServiceClient(toSagas)
	w.toAccounts, err = to(c.account[0])
	return w, err
}

func (w *world) closeAll() error {
	var errs []error
	for _, end := range w.close {
		errs = append(errs, end())
	}
	return errors.Join(errs...)
}

func (w *world) open(ctx context.Context, service accountv1.AccountServiceClient, n int) error {
	one := func(ctx context.Context, kind string, i int) (string, error) {
		key := w.key()
		res, err := service.CreateAccount(ctx, &accountv1.CreateAccountRequest{
			OwnerId: "owner-" + strconv.Itoa(i), OwnerType: "person", AccountType: kind, Currency: currency, IdempotencyKey: &key,
		})
		return res.GetAccount().GetAccountId(), err
	}
	bank, err := one(ctx, "EXTERNAL", 0)
	if err != nil {
		return fmt.Errorf("open the bank: %w", err)
	}
	w.accounts = make([]string, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(64)
	for i := range n {
		g.Go(func() (err error) {
			if w.accounts[i], err = one(ctx, "USER", i); err != nil {
				return fmt.Errorf("open an account: %w", err)
			}
			res, err := w.transactions[i%len(w.transactions)].Topup(ctx, &transactionv1.TopupRequest{
				IdempotencyKey: w.key(), SourceAccountId: bank, DestinationAccountId: w.accounts[i], Amount: endowment, Currency: currency, Wait: durationpb.New(waitMax),
			})
			if err == nil && res.GetTransaction().GetStatus() != "completed" {
				err = fmt.Errorf("it is %s", res.GetTransaction().GetStatus())
			}
			if err != nil {
				return fmt.Errorf("give an account its money: %w", err)
			}
			return nil
		})
	}
	return g.Wait()
}

func (w *world) key() string { return w.run + "-" + strconv.FormatInt(w.keys.Add(1), 10) }

// uniform draws any two accounts.
func (w *world) uniform(r *rand.Rand) pair {
	i, j := r.IntN(len(w.accounts)), r.IntN(len(w.accounts)-1)
	if j >= i {
		j++
	}
	return pair{w.accounts[i], w.accounts[j]}
}

// hot draws the first account and any other one, the first on either side in turn.
func (w *world) hot(r *rand.Rand) pair {
	other := w.accounts[1+r.IntN(len(w.accounts)-1)]
	if r.IntN(2) == 0 {
		return pair{w.accounts[0], other}
	}
	return pair{other, w.accounts[0]}
}

// zipfExponent makes the first of 1,000 accounts one side of about every fourth transfer.
const zipfExponent = 1.1

// zipf draws accounts by Zipf's law.
func (w *world) zipf(r *rand.Rand) pair {
	z := rand.NewZipf(r, zipfExponent, 1, uint64(len(w.accounts)-1)) //nolint:gosec // not negative
	i := int(z.Uint64())                                             //nolint:gosec // below the number of accounts
	j := int(z.Uint64())                                             //nolint:gosec // below the number of accounts
	if i == j {
		j = (i + 1) % len(w.accounts)
	}
	return pair{w.accounts[i], w.accounts[j]}
}
