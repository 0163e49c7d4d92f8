package readmodel

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/page"
	"example.com/billing/services/transaction"
)

// begun are the rows that a commit adds to transaction_pending.
type begun struct {
	ids, tenants, types, sources []string
	destinations                 []*string
	expiries                     []*time.Time
}

func (b *begun) add(e es.Event, r transaction.Requested) error {
	tenant, _ := e.Metadata["tenantId"].(string)
	var expiry *time.Time
	if r.ExpiresAt != "" {
		at, err := time.Parse(es.TimeFormat, r.ExpiresAt)
		if err != nil {
			return err
		}
		expiry = &at
	}
	b.ids, b.tenants, b.types = append(b.ids, e.Stream.ID), append(b.tenants, tenant), append(b.types, string(r.Type))
	b.sources, b.destinations, b.expiries = append(b.sources, r.SourceID), append(b.destinations, given(r.DestinationID)), append(b.expiries, expiry)
	return nil
}

// Inline keeps transaction_pending and hold_open in the transaction that commits the events.
func Inline(b *pgx.Batch, events []es.Event) error {
	var (
		begun                begun
		ended, placed, freed []string
	)
	for _, e := range events {
		f, err := transaction.Decode(e)
		if err != nil {
			return fmt.Errorf("pending of %s version %d: %w", e.Stream, e.Version, err)
		}
		switch f := f.(type) {
		case transaction.Requested:
			if err := begun.add(e, f); err != nil {
				return err
			}
		case transaction.Ended:
			if ended = append(ended, e.Stream.ID); f.Type == transaction.Hold && f.Status == transaction.Completed {
				placed = append(placed, e.Stream.ID)
			}
		case transaction.Reservation:
			if f.Final {
				freed = append(freed, e.Stream.ID)
			}
		case transaction.ReleaseStarted:
			freed = append(freed, e.Stream.ID)
		}
	}
	if len(begun.ids) > 0 {
		b.Queue(`INSERT INTO transaction_pending (id, tenant_id, type, source_id, destination_id, expires_at, created_at)
			SELECT i, n, t, s, d, e, clock_timestamp() FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::uuid[], $6::timestamptz[]) AS x(i, n, t, s, d, e)`,
			begun.ids, begun.tenants, begun.types, begun.sources, begun.destinations, begun.expiries)
	}
	if len(placed) > 0 {
		b.Queue(`INSERT INTO hold_open (id, tenant_id, expires_at) SELECT id, tenant_id, expires_at FROM transaction_pending WHERE id = ANY($1::uuid[])`, placed)
	}
	if len(ended) > 0 {
		b.Queue(`DELETE FROM transaction_pending WHERE id = ANY($1::uuid[])`, ended)
	}
	if len(freed) > 0 {
		b.Queue(`DELETE FROM hold_open WHERE id = ANY($1::uuid[])`, freed)
	}
	return nil
}

// PendingSince returns the ids above after, in their order, of transactions that have been pending for at least age.
func (t *Transactions) PendingSince(ctx context.Context, age time.Duration, after string, limit int) ([]string, error) {
	if after == "" {
		after = uuid.Nil.String()
	}
	return t.ids(ctx, "read pending transactions",
		`SELECT id::text FROM transaction_pending WHERE created_at < clock_timestamp() - $1::interval AND id > $2 ORDER BY id LIMIT $3`, age, after, limit)
}

// OpenOf returns transactions that have not ended and name the account.
func (t *Transactions) OpenOf(ctx context.Context, accountID string, limit int) ([]string, error) {
	return t.ids(ctx, "read open transactions",
		`SELECT id::text FROM transaction_pending WHERE source_id = $1 OR destination_id = $1 ORDER BY created_at, id LIMIT $2`, accountID, limit)
}

// Open returns those of these transactions that have not ended.
func (t *Transactions) Open(ctx context.Context, ids []string) ([]string, error) {
	return t.ids(ctx, "read open transactions", `SELECT id::text FROM transaction_pending WHERE id = ANY($1::uuid[]) ORDER BY id`, ids)
}

func (t *Transactions) ids(ctx context.Context, op, sql string, args ...any) ([]string, error) {
	rows, err := t.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, espg.Classify(op, err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return ids, espg.Classify(op, err)
}

// Stuck returns places of transactions that have been pending for at least age, newest first.
func (t *Transactions) Stuck(ctx context.Context, age time.Duration, f Filter) ([]page.Cursor, error) {
	before, id := f.Before.Key()
	rows, err := t.pool.Query(ctx, `SELECT created_at, id::text FROM transaction_pending
		WHERE tenant_id = $1 AND created_at < clock_timestamp() - $2::interval AND (created_at, id) < ($3, $4)
		  AND ($5 = '' OR type = $5) AND ($6::uuid IS NULL OR source_id = $6 OR destination_id = $6)
		ORDER BY created_at DESC, id DESC LIMIT $7`, f.TenantID, age, before, id, f.Type, given(f.AccountID), f.Limit)
	if err != nil {
		return nil, espg.Classify("read stuck transactions", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[page.Cursor])
	return found, espg.Classify("read stuck transactions", err)
}

// Expired is a hold whose time is over.
type Expired struct {
	HoldID    string
	TenantID  string
	ExpiresAt time.Time
}

// ExpiredHolds returns open holds whose time is over, the oldest first, from behind a place in that order; the zero one is
// before the oldest.
func (t *Transactions) ExpiredHolds(ctx context.Context, after Expired, limit int) ([]Expired, error) {
	if after.HoldID == "" {
		after.HoldID = uuid.Nil.String()
	}
	rows, err := t.pool.Query(ctx, `SELECT id::text, tenant_id, expires_at FROM hold_open
		WHERE expires_at <= clock_timestamp() AND (expires_at, id) > ($1, $2) ORDER BY expires_at, id LIMIT $3`, after.ExpiresAt, after.HoldID, limit)
	if err != nil {
		return nil, espg.Classify("read expired holds", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Expired])
	return found, espg.Classify("read expired holds", err)
}
