package reconcile_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
)

// looked is a pool that has something done before each of its statements.
type looked struct {
	pool *pgxpool.Pool
	name string // of its connections

	mu     sync.Mutex
	before func() // nil = nothing
}

func newLooked(t *testing.T, like *pgxpool.Pool) *looked {
	t.Helper()
	l := &looked{name: "reconcile " + uuid.NewString()[:8]}
	cfg := like.Config()
	cfg.ConnConfig.Tracer = l
	cfg.ConnConfig.RuntimeParams["application_name"] = l.name
	var err error
	if l.pool, err = pgxpool.NewWithConfig(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.pool.Close)
	return l
}

func (l *looked) set(before func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.before = before
}

func (l *looked) call() {
	l.mu.Lock()
	before := l.before
	l.mu.Unlock()
	if before != nil {
		before()
	}
}

func (l *looked) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	l.call()
	return ctx
}

func (l *looked) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (l *looked) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	l.call()
	return ctx
}

func (l *looked) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

func (l *looked) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

// busy checks while a transfer is made, and an account opened, before each statement of the check.
func (s small) busy(check func() *accountv1.Reconciliation) *accountv1.Reconciliation {
	s.t.Helper()
	carol := s.openAccount(account.User)
	s.looked.set(func() {
		s.transfer(s.bank, carol, "2.00")
		s.transfer(s.bank, s.openAccount(account.User), "1.00")
	})
	defer s.looked.set(nil)
	return check()
}

// A check of more events than a page has keeps no transaction, and with it no snapshot, over more than a few statements; each
// of them reads no more than a page.
func TestNoSnapshotIsKept(t *testing.T) {
	const eachOfThem = 700 // more than a page
	s := newSmall(t)
	for range eachOfThem {
		s.do(s.bob, uuid.NewString(), account.ChangeStatus{Status: account.Suspended}, false)
		s.do(s.bob, uuid.NewString(), account.ChangeStatus{Status: account.Active}, false)
	}
	statements, open := 0, map[string]int{} // how many statements found each transaction open
	s.looked.set(func() {
		statements++
		rows, err := s.pool.Query(t.Context(), `SELECT pid || ' ' || xact_start FROM pg_stat_activity WHERE application_name = $1 AND xact_start IS NOT NULL
			UNION ALL SELECT 'xmin' FROM pg_stat_activity WHERE application_name = $1 AND backend_xmin IS NOT NULL AND state = 'idle'`, s.looked.name)
		if err != nil {
			t.Error(err)
			return
		}
		found, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Error(err)
		}
		for _, transaction := range found {
			open[transaction]++
		}
		s.transfer(s.bank, s.alice, "1.00")
	})
	r := s.all()
	s.looked.set(nil)
	s.wantClean(r)
	if int(r.GetEvents()) < 2*eachOfThem || statements < 12 {
		t.Errorf("%d events, %d statements", r.GetEvents(), statements)
	}
	for transaction, n := range open {
		if n > 6 {
			t.Errorf("transaction %s was open for %d of %d statements", transaction, n, statements)
		}
	}
}

// All accounts are seen, and each once, where they are more than one look takes; their ids come from events, heads and rows.
func TestMoreAccountsThanOneLookTakes(t *testing.T) {
	w := newWorld(t)
	const many = 230
	for range many {
		w.openAccount(account.User)
	}
	for _, sql := range []string{
		`DELETE FROM es_head WHERE stream_id IN (SELECT stream_id FROM es_head ORDER BY stream_id LIMIT 120)`,
		`DELETE FROM es_event WHERE stream_id IN (SELECT stream_id FROM es_event ORDER BY stream_id DESC LIMIT 60)`,
		`DELETE FROM account_view WHERE id IN (SELECT id FROM account_view ORDER BY id OFFSET 110 LIMIT 60)`,
		`INSERT INTO account_view SELECT gen_random_uuid(), 1, '', '', '', '', '', '', now(), '' FROM generate_series(1, 150)`,
	} {
		w.exec(sql)
	}
	r := w.all()
	found := map[string]int{}
	for _, f := range r.GetFindings() {
		found[f.GetKind()]++
	}
	// A head that is gone; events that are gone; rows of accounts that never were, which those without events are not said to be.
	if got := fmt.Sprint(r.GetAccounts(), found); got != fmt.Sprint(many-60, map[string]int{"state": 120, "sequence": 60, "read_model": 150}) {
		t.Errorf("got %s", got)
	}
}
