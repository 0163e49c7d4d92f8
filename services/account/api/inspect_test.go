package api

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
)

// reading is a store that notes which streams' heads are read.
type reading struct {
	es.Store
	mu  sync.Mutex
	ids []string
}

func (r *reading) Heads(ctx context.Context, s []es.Stream) ([]es.Head, error) {
	r.mu.Lock()
	for _, st := range s {
		r.ids = append(r.ids, st.ID)
	}
	r.mu.Unlock()
	return r.Store.Heads(ctx, s)
}

// take returns what was read since it was last asked.
func (r *reading) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := r.ids
	r.ids = nil
	return ids
}

// Accounts that are active as far as this process knows are answered from memory; all others are read: another process may have
// activated them.
func TestInspectAccountsReadsWhatMayHaveChanged(t *testing.T) {
	store := &reading{Store: memory.New()}
	h := &harness{Server: newServer(t, store), t: t, store: store}
	other := &harness{Server: newServer(t, store.Store), t: t, store: store}
	active, suspended, closed, foreign, none := h.open(account.User), h.open(account.User), h.open(account.User), other.open(account.User), uuid.NewString()
	h.suspend(suspended)
	h.close(closed)
	store.take()
	inspect := func(read []string, statuses ...string) {
		t.Helper()
		ids := []string{suspended, active, none, foreign, closed}
		res, err := h.InspectAccounts(t.Context(), &accountv1.InspectAccountsRequest{AccountIds: ids})
		if err != nil {
			t.Fatal(err)
		}
		for i, a := range res.GetAccounts() {
			if a.GetAccountId() != ids[i] || a.GetStatus() != statuses[i] || a.GetFound() != (ids[i] != none) || a.GetErrorMessage() != "" {
				t.Errorf("account %d: %v, want %q", i, a, statuses[i])
			}
		}
		if got := store.take(); !slices.Equal(got, read) {
			t.Errorf("read %v, want %v", got, read)
		}
	}
	unsure := []string{suspended, none, foreign, closed}
	inspect(unsure, "suspended", "active", "", "active", "closed")
	other.activate(suspended)
	inspect(unsure, "active", "active", "", "active", "closed")
	other.suspend(active) // its own stream refuses what comes of it
	inspect(unsure, "active", "active", "", "active", "closed")
	h.want(h.post(ask(debit, uuid.NewString(), "debit", active, "1.00")), refused, "ACCOUNT_SUSPENDED")
	store.take()
	inspect([]string{suspended, active, none, foreign, closed}, "active", "suspended", "", "active", "closed")

	res, err := h.InspectAccounts(t.Context(), &accountv1.InspectAccountsRequest{AccountIds: []string{h.open(account.External)}})
	if got := store.take(); err != nil || res.GetAccounts()[0].GetStatus() != "active" || len(got) > 0 {
		t.Errorf("an account that was just opened: %v, %v, read %v", res, err, got)
	}
}
