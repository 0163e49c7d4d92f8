package readmodel

import (
	"bytes"
	"time"

	"github.com/jackc/pgx/v5"

	"example.com/billing/pkg/projection"
	"example.com/billing/services/account"
)

// Table is the read model's table.
const Table = "account_view"

// Shown is a row of the table.
type Shown struct {
	ID                                                          string
	Version                                                     int64
	TenantID, OwnerID, OwnerType, AccountType, Currency, Status string
	CreatedAt                                                   time.Time
	State                                                       []byte
}

// ShownColumns are the columns that ScanShown reads.
const ShownColumns = `id::text, version, tenant_id, owner_id, owner_type, type, currency, status, created_at, state`

// ScanShown reads a row of ShownColumns.
func ScanShown(row pgx.CollectableRow) (s Shown, err error) {
	err = row.Scan(&s.ID, &s.Version, &s.TenantID, &s.OwnerID, &s.OwnerType, &s.AccountType, &s.Currency, &s.Status, &s.CreatedAt, &s.State)
	return s, err
}

// Show is the row that an account has in the table.
func Show(r projection.Row[account.Account]) Shown {
	tenant, _ := r.First.Metadata["tenantId"].(string)
	return Shown{
		ID: r.ID, Version: r.Version, TenantID: tenant, OwnerID: r.State.OwnerID, OwnerType: r.State.OwnerType, AccountType: string(r.State.Type),
		Currency: r.State.Currency, Status: string(r.State.Status), CreatedAt: r.State.CreatedAt, State: r.Encoded,
	}
}

// Differs names the first column in which other is not this row, and what stands in both. A state may be written in
// another way, by an older version of the code, as long as it means the same.
func (s Shown) Differs(other Shown) (column, ours, others string, differs bool) {
	for _, c := range []struct{ name, ours, others string }{
		{"id", s.ID, other.ID}, {"tenant_id", s.TenantID, other.TenantID}, {"owner_id", s.OwnerID, other.OwnerID},
		{"owner_type", s.OwnerType, other.OwnerType}, {"type", s.AccountType, other.AccountType}, {"currency", s.Currency, other.Currency},
		{"status", s.Status, other.Status}, {"created_at", s.CreatedAt.UTC().String(), other.CreatedAt.UTC().String()},
	} {
		if c.ours != c.others {
			return c.name, c.ours, c.others, true
		}
	}
	if !bytes.Equal(s.State, other.State) && !bytes.Equal(normal(s.State), normal(other.State)) {
		return "state", string(s.State), string(other.State), true
	}
	return "", "", "", false
}

// normal is a state as this version of the code writes it, or as it is if it cannot be read.
func normal(state []byte) []byte {
	snapshots := account.Decider().Snapshots
	a, err := snapshots.Restore(state)
	if err != nil {
		return state
	}
	b, err := snapshots.Take(a)
	if err != nil {
		return state
	}
	return b
}
