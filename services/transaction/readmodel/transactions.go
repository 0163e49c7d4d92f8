// Package readmodel is the transaction service's tables: the list of transactions, folded from the published events, and
// the pending ones, written with the events themselves.
package readmodel

import (
	"context"
	"embed"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

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

// Rebuild is the job that makes the read model anew from the store's events.
func (t *Transactions) Rebuild(source projection.Source) job.Work {
	return func(ctx context.Context, run *job.Run) error { return t.model.Rebuild(ctx, run, source) }
}

// Filter selects transactions. Empty fields select all.
type Filter struct {
	TenantID  string
	AccountID string // on either side
	Before    page.Cursor
	Limit     int
}

// Entry is a transaction and its id.
type Entry struct {
	ID          string
	Transaction transaction.Transaction
}

// List returns transactions, newest first.
func (t *Transactions) List(ctx context.Context, f Filter) ([]Entry, error) {
	before, id := f.Before.Key()
	const page = ` AND (created_at, id) < ($2, $3) ORDER BY created_at DESC, id DESC LIMIT $4`
	sql, args := `SELECT id::text, version, state FROM transaction_view WHERE tenant_id = $1`+page, []any{f.TenantID, before, id, f.Limit}
	if f.AccountID != "" {
		// One index each; no transaction has the same account on both sides.
		sql = `SELECT id::text, version, state FROM (
			(SELECT * FROM transaction_view WHERE tenant_id = $1 AND source_id = $5` + page + `) UNION ALL
			(SELECT * FROM transaction_view WHERE tenant_id = $1 AND destination_id = $5` + page + `)) AS sides
			ORDER BY created_at DESC, id DESC LIMIT $4`
		args = append(args, f.AccountID)
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
		ids, tenants, sources, destinations []string
		versions                            []int64
		created                             []time.Time
		states                              [][]byte
	)
	for _, r := range rows {
		tenant, _ := r.First.Metadata["tenantId"].(string)
		ids, tenants, versions = append(ids, r.ID), append(tenants, tenant), append(versions, r.Version)
		sources, destinations = append(sources, r.State.SourceID), append(destinations, r.State.DestinationID)
		created, states = append(created, r.State.CreatedAt), append(states, r.Encoded)
	}
	_, err := tx.Exec(ctx, `INSERT INTO `+table+` AS v (id, version, tenant_id, source_id, destination_id, created_at, state)
		SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::uuid[], $5::uuid[], $6::timestamptz[], $7::bytea[])
		ON CONFLICT (id) DO UPDATE SET version = excluded.version, state = excluded.state
		WHERE v.version <= excluded.version -- a consumer that lost its partition may come late`,
		ids, versions, tenants, sources, destinations, created, states)
	return espg.Classify("write "+table, err)
}

// Inline keeps transaction_pending in the transaction that commits the events.
func Inline(b *pgx.Batch, events []es.Event) error {
	var begun, ended []string
	for _, e := range events {
		if e.Version == 1 {
			begun = append(begun, e.Stream.ID)
		} else {
			ended = append(ended, e.Stream.ID)
		}
	}
	if len(begun) > 0 {
		b.Queue(`INSERT INTO transaction_pending (id, created_at) SELECT i, clock_timestamp() FROM unnest($1::uuid[]) AS x(i)`, begun)
	}
	if len(ended) > 0 {
		b.Queue(`DELETE FROM transaction_pending WHERE id = ANY($1::uuid[])`, ended)
	}
	return nil
}

// PendingSince returns the ids above after, in their order, of transactions that have been pending for at least age.
func (t *Transactions) PendingSince(ctx context.Context, age time.Duration, after string, limit int) ([]string, error) {
	if after == "" {
		after = uuid.Nil.String()
	}
	rows, err := t.pool.Query(ctx, `SELECT id::text FROM transaction_pending WHERE created_at < clock_timestamp() - $1::interval AND id > $2 ORDER BY id LIMIT $3`, age, after, limit)
	if err != nil {
		return nil, espg.Classify("read pending transactions", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return ids, espg.Classify("read pending transactions", err)
}
