package readmodel

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/services/account"
)

// Closing is an account that is closing.
type Closing struct {
	AccountID string
	TenantID  string
}

// Inline keeps account_closing in the transaction that commits the events.
func Inline(b *pgx.Batch, events []es.Event) error {
	for _, e := range events {
		if e.Type != (account.StatusChanged{}).EventType() {
			continue
		}
		f, err := account.Decode(e)
		if err != nil {
			return fmt.Errorf("status of %s version %d: %w", e.Stream, e.Version, err)
		}
		switch c := f.(account.StatusChanged); { //nolint:forcetypeassert // told by its type
		case c.NewStatus == account.Closing:
			tenant, _ := e.Metadata["tenantId"].(string)
			b.Queue(`INSERT INTO account_closing (id, tenant_id) VALUES ($1, $2) ON CONFLICT DO NOTHING`, e.Stream.ID, tenant)
		case c.PreviousStatus == account.Closing:
			b.Queue(`DELETE FROM account_closing WHERE id = $1`, e.Stream.ID)
		}
	}
	return nil
}

// Closing returns closing accounts with ids above after, in their order.
func (a *Accounts) Closing(ctx context.Context, after string, limit int) ([]Closing, error) {
	if after == "" {
		after = uuid.Nil.String()
	}
	rows, err := a.pool.Query(ctx, `SELECT id::text, tenant_id FROM account_closing WHERE id > $1 ORDER BY id LIMIT $2`, after, limit)
	if err != nil {
		return nil, espg.Classify("read closing accounts", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Closing])
	return found, espg.Classify("read closing accounts", err)
}
