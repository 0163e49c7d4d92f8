package api

import (
	"context"
	"log/slog"
	"time"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/run"
	"example.com/billing/services/account"
	"example.com/billing/services/account/readmodel"
	"example.com/billing/services/edge"
)

// Closing closes accounts that are closing once no transaction under way names them.
//
// A first leg is refused from the moment the account is closing. One that was done before belongs to a transaction that the
// transaction service had accepted before, and has among its open ones until its last rollback is done: so an account of which
// it names none gets no money any more.
type Closing struct {
	Executor *Executor
	// Open lists transactions that have not ended and name the account.
	Open func(ctx context.Context, accountID string) ([]string, error)
	// Accounts lists closing accounts with ids above after.
	Accounts func(ctx context.Context, after string, limit int) ([]readmodel.Closing, error)
	Log      *slog.Logger
}

const (
	closingEvery   = 2 * time.Second
	closingPageMax = 500
)

// Run looks through closing accounts from time to time, until ctx ends.
func (c *Closing) Run(ctx context.Context) error {
	return run.Every(ctx, closingEvery, c.Log, "close accounts", c.sweep)
}

// sweep goes through all closing accounts.
func (c *Closing) sweep(ctx context.Context) error {
	for after := ""; ; {
		accounts, err := c.Accounts(ctx, after, closingPageMax)
		if err != nil || len(accounts) == 0 {
			return err
		}
		for _, a := range accounts {
			after = a.AccountID
			if err := c.look(ctx, a); err != nil && ctx.Err() == nil { // the others may do better
				c.Log.Warn("close account", "account", a.AccountID, "error", err)
			}
		}
	}
}

// look ends an account's closing if it can end now.
func (c *Closing) look(ctx context.Context, a readmodel.Closing) error {
	now, err := c.Executor.Get(ctx, a.AccountID)
	if err != nil {
		return err
	}
	_, err = c.finish(ctx, a.AccountID, now.State, cqrs.Origin{TenantID: a.TenantID, Actor: edge.OwnActor})
	return err
}

// finish ends the closing of an account, as it was read before, if it can end now; nil = it cannot.
func (c *Closing) finish(ctx context.Context, accountID string, was account.Account, origin cqrs.Origin) (*account.Account, error) {
	open, err := c.Open(ctx, accountID)
	if err != nil || len(open) > 0 {
		return nil, err
	}
	m := cqrs.New(account.FinishClosing{Version: was.Version}, origin)
	out, err := c.Executor.Execute(ctx, command(m.Info, accountID, "", false, m.Body))
	if err != nil {
		return nil, err
	}
	return &out.State, nil
}
