// Package readmodel is the account service's read model: the list of accounts, folded from the published events.
package readmodel

import (
	"context"
	"embed"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/job"
	"example.com/billing/pkg/page"
	"example.com/billing/pkg/projection"
	"example.com/billing/services/account"
)

// Migrations are the service's own tables; see package migrate.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// Accounts is the list of accounts. Safe for concurrent use.
type Accounts struct {
	pool  *pgxpool.Pool
	model *projection.Folded[account.Account, account.Command]
}

// New returns the read model in a database that Migrations were applied to.
func New(pool *pgxpool.Pool) *Accounts {
	return &Accounts{pool: pool, model: &projection.Folded[account.Account, account.Command]{
		Table: Table, Decider: account.Decider(), Write: write,
	}}
}

// Projection feeds the read model; load reads a stream from the service's store.
func (a *Accounts) Projection(load func(context.Context, es.Stream, int64, int) ([]es.Event, error)) *projection.Projection {
	return projection.New(a.pool, a.model, load)
}

// Healer keeps the list right where no message does; load reads a stream from the service's database.
func (a *Accounts) Healer(
	p *projection.Projection, load func(context.Context, es.Stream, int64, int) ([]es.Event, error), log *slog.Logger,
) *projection.Healer[account.Account, account.Command] {
	return projection.NewHealer(p, a.model, load, log, projection.HealerPace{})
}

// Rebuild is the job that makes the read model anew from the store's events.
func (a *Accounts) Rebuild(source projection.Source) job.Work {
	return func(ctx context.Context, run *job.Run) error { return a.model.Rebuild(ctx, run, source) }
}

// Filter selects accounts. Empty fields select all.
type Filter struct {
	TenantID  string
	OwnerID   string
	OwnerType string
	Type      string
	Status    string
	Currency  string
	Before    page.Cursor
	Limit     int
}

// Entry is an account and its id.
type Entry struct {
	ID      string
	Account account.Account
}

// Wait returns when the list shows accounts at these versions or newer ones; see projection.Folded.
func (a *Accounts) Wait(ctx context.Context, versions map[es.Stream]int64, has projection.StillHas) error {
	return a.model.Wait(ctx, a.pool, versions, has)
}

// where is the filter's condition, and its arguments: only what is asked for, so that each question finds its index.
func (f Filter) where() (string, []any) {
	before, id := f.Before.Key()
	sql, args := `tenant_id = $1 AND (created_at, id) < ($2, $3)`, []any{f.TenantID, before, id}
	for _, c := range []struct{ column, value string }{
		{"owner_id", f.OwnerID}, {"owner_type", f.OwnerType}, {"type", f.Type}, {"status", f.Status}, {"currency", f.Currency},
	} {
		if c.value != "" {
			args = append(args, c.value)
			sql += fmt.Sprintf(" AND %s = $%d", c.column, len(args))
		}
	}
	// Those that are few have indexes of their own.
	if f.Status != "" && f.Status != string(account.Active) {
		sql += " AND status <> 'active'"
	}
	if f.Type != "" && f.Type != string(account.User) {
		sql += " AND type <> 'USER'"
	}
	return sql, args
}

// List returns accounts, newest first.
func (a *Accounts) List(ctx context.Context, f Filter) ([]Entry, error) {
	where, args := f.where()
	args = append(args, f.Limit)
	rows, err := a.pool.Query(ctx, fmt.Sprintf(`SELECT id::text, version, state FROM account_view WHERE %s ORDER BY created_at DESC, id DESC LIMIT $%d`, where, len(args)), args...)
	if err != nil {
		return nil, espg.Classify("list accounts", err)
	}
	found, err := pgx.CollectRows(rows, a.model.Scan)
	if err != nil {
		return nil, espg.Classify("list accounts", err)
	}
	entries := make([]Entry, len(found))
	for i, r := range found {
		entries[i] = Entry{ID: r.ID, Account: r.State}
	}
	return entries, nil
}

func write(ctx context.Context, tx pgx.Tx, table string, rows []projection.Row[account.Account]) error {
	var (
		ids, tenants, owners, kinds []string
		types, currencies, statuses []string
		versions                    []int64
		created                     []time.Time
		states                      [][]byte
	)
	for _, r := range rows {
		if !r.State.Exists() {
			continue // a register on a stream that is no account
		}
		v := Show(r)
		ids, tenants, owners, kinds = append(ids, v.ID), append(tenants, v.TenantID), append(owners, v.OwnerID), append(kinds, v.OwnerType)
		types, currencies, statuses = append(types, v.AccountType), append(currencies, v.Currency), append(statuses, v.Status)
		versions, created, states = append(versions, v.Version), append(created, v.CreatedAt), append(states, v.State)
	}
	_, err := tx.Exec(ctx, `INSERT INTO `+table+` AS v (id, version, tenant_id, owner_id, owner_type, type, currency, status, created_at, state)
		SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::timestamptz[], $10::bytea[])
		ON CONFLICT (id) DO UPDATE SET version = excluded.version, status = excluded.status, state = excluded.state
		WHERE v.version <= excluded.version -- a consumer that lost its partition may come late`,
		ids, versions, tenants, owners, kinds, types, currencies, statuses, created, states)
	if err != nil {
		return espg.Classify("write "+table, err)
	}
	return nil
}
