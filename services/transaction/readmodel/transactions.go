// Package readmodel is the transaction service's tables: the list of transactions, folded from the published events, and
// the pending ones, written with the events themselves.
package readmodel

import (
	"context"
	"embed"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/job"
	"example.com/billing/pkg/page"
	"example.com/billing/pkg/projection"
	"example.com/billing/services/transaction"
)

// Migrations are the service's own tables; see package migrate.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// Transactions is the list of transactions. Safe for concurrent use.
type Transactions struct {
	pool  *pgxpool.Pool
	model *projection.Folded[transaction.Transaction, transaction.Command]
}

// New returns the read model in a database that Migrations were applied to.
func New(pool *pgxpool.Pool) *Transactions {
	return &Transactions{pool: pool, model: &projection.Folded[transaction.Transaction, transaction.Command]{
		Table: "transaction_view", Decider: transaction.Decider(), Write: write,
	}}
}

// Projection feeds the read model; load reads a stream from the service's store.
func (t *Transactions) Projection(load func(context.Context, es.Stream, int64, int) ([]es.Event, error)) *projection.Projection {
	return projection.New(t.pool, t.model, load)
}

// Healer keeps the list right where no message does; load reads a stream from the service's database.
func (t *Transactions) Healer(
	p *projection.Projection, load func(context.Context, es.Stream, int64, int) ([]es.Event, error), log *slog.Logger,
) *projection.Healer[transaction.Transaction, transaction.Command] {
	return projection.NewHealer(p, t.model, load, log, projection.HealerPace{})
}

// Compare compares a page of the list with the events; see projection.Folded.
func (t *Transactions) Compare(ctx context.Context, after string) (wrong []projection.Difference, last string, err error) {
	return t.model.Compare(ctx, t.pool, after)
}

// Wait returns when the list shows transactions at these versions or newer ones; see projection.Folded.
func (t *Transactions) Wait(ctx context.Context, versions map[es.Stream]int64, has projection.StillHas) error {
	return t.model.Wait(ctx, t.pool, versions, has)
}

// Rebuild is the job that makes the read model anew from the store's events.
func (t *Transactions) Rebuild(source projection.Source) job.Work {
	return func(ctx context.Context, run *job.Run) error { return t.model.Rebuild(ctx, run, source) }
}

// Filter selects transactions. Empty fields select all.
type Filter struct {
	TenantID   string
	AccountID  string // on either side
	SourceID   string // on the source side; of a hold, the account that it is on
	Type       string
	Status     string
	Currency   string
	MinAmount  *decimal.Decimal
	MaxAmount  *decimal.Decimal
	From, To   *time.Time // accepted at or after From, before To
	PaymentID  string     // refunds of it
	HoldStatus string     // holds that stand there
	Before     page.Cursor
	Limit      int
}

// where is the filter's condition but for accounts, and its arguments.
func (f Filter) where() (string, []any) {
	before, id := f.Before.Key()
	sql, args := `tenant_id = $1 AND (created_at, id) < ($2, $3)`, []any{f.TenantID, before, id}
	and := func(condition string, value any) {
		args = append(args, value)
		sql += fmt.Sprintf(" AND "+condition, len(args))
	}
	for _, c := range []struct{ column, value string }{
		{"type", f.Type}, {"status", f.Status}, {"currency", f.Currency}, {"payment_id", f.PaymentID}, {"source_id", f.SourceID}, {"hold_status", f.HoldStatus},
	} {
		if c.value != "" {
			and(c.column+" = $%d", c.value)
		}
	}
	if f.MinAmount != nil {
		and("amount >= $%d::numeric", f.MinAmount.String())
	}
	if f.MaxAmount != nil {
		and("amount <= $%d::numeric", f.MaxAmount.String())
	}
	if f.From != nil {
		and("created_at >= $%d", *f.From)
	}
	if f.To != nil {
		and("created_at < $%d", *f.To)
	}
	return sql, args
}

// source is where a filter's transactions are looked for: where it asks for what only some are, among those.
func (f Filter) source() string {
	switch transaction.Status(f.Status) {
	case transaction.Pending:
		return `(SELECT s.* FROM transaction_pending o, LATERAL (SELECT * FROM transaction_view g WHERE g.id = o.id OFFSET 0) s) AS pending WHERE `
	case transaction.Failed, transaction.Compensated:
		return `transaction_view WHERE not_completed AND `
	default:
		return `transaction_view WHERE `
	}
}

// Entry is a transaction and its id.
type Entry struct {
	ID          string
	Transaction transaction.Transaction
}

// List returns transactions, newest first.
func (t *Transactions) List(ctx context.Context, f Filter) ([]Entry, error) {
	where, args := f.where()
	args = append(args, f.Limit)
	const columns = `SELECT id::text, version, state`
	order := fmt.Sprintf(` ORDER BY created_at DESC, id DESC LIMIT $%d`, len(args))
	sql := columns + ` FROM ` + f.source() + where + order
	if f.AccountID != "" {
		// One index each; no transaction has the same account on both sides.
		args = append(args, f.AccountID)
		side := func(column string) string {
			return fmt.Sprintf(`(SELECT * FROM %s %s AND %s = $%d%s)`, f.source(), where, column, len(args), order)
		}
		sql = columns + ` FROM (` + side("source_id") + ` UNION ALL ` + side("destination_id") + `) AS sides` + order
	}
	rows, err := t.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, espg.Classify("list transactions", err)
	}
	found, err := pgx.CollectRows(rows, t.model.Scan)
	if err != nil {
		return nil, espg.Classify("list transactions", err)
	}
	entries := make([]Entry, len(found))
	for i, r := range found {
		entries[i] = Entry{ID: r.ID, Transaction: r.State}
	}
	return entries, nil
}

func write(ctx context.Context, tx pgx.Tx, table string, rows []projection.Row[transaction.Transaction]) error {
	var (
		ids, tenants, sources, types, statuses, currencies, amounts, holds []string
		destinations, payments                                             []*string
		versions                                                           []int64
		created                                                            []time.Time
		states                                                             [][]byte
	)
	for _, r := range rows {
		tenant, _ := r.First.Metadata["tenantId"].(string)
		ids, tenants, versions = append(ids, r.ID), append(tenants, tenant), append(versions, r.Version)
		sources, destinations, payments = append(sources, r.State.SourceID), append(destinations, given(r.State.DestinationID)), append(payments, given(r.State.PaymentID))
		types, statuses, holds = append(types, string(r.State.Type)), append(statuses, string(r.State.Status)), append(holds, string(r.State.HoldStatus))
		currencies, amounts = append(currencies, r.State.Currency), append(amounts, r.State.Amount.String())
		created, states = append(created, r.State.CreatedAt), append(states, r.Encoded)
	}
	_, err := tx.Exec(ctx, `INSERT INTO `+table+` AS v (id, version, tenant_id, source_id, destination_id, payment_id, type, status, hold_status, currency, amount, created_at, state)
		SELECT i, v, t, s, d, p, y, u, h, c, a::numeric, r, e
		FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::uuid[], $5::uuid[], $6::uuid[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::timestamptz[], $13::bytea[])
			AS x(i, v, t, s, d, p, y, u, h, c, a, r, e)
		ON CONFLICT (id) DO UPDATE SET version = excluded.version, status = excluded.status, hold_status = excluded.hold_status, state = excluded.state
		WHERE v.version <= excluded.version -- a consumer that lost its partition may come late`,
		ids, versions, tenants, sources, destinations, payments, types, statuses, holds, currencies, amounts, created, states)
	return espg.Classify("write "+table, err)
}

// given is an optional text: nil where it is empty.
func given(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
