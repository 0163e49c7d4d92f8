package api

import (
	"context"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
	"example.com/billing/services/account/books"
	"example.com/billing/services/edge"
)

// Statements that follow each other, each from where the one before ended, have every posting once, also while commits take
// their time: what was recorded before the end is in, and nothing comes later.
func TestStatementsChain(t *testing.T) {
	h := newPostgresHarness(t)
	watches := edge.NewWatches(t.Context())
	store := espg.New(h.Pool, espg.Options{Inline: func(b *pgx.Batch, events []es.Event) error {
		b.Queue(`SELECT pg_sleep(random() * 0.03)`)
		return books.Inline(b, events)
	}})
	x, err := es.NewExecutor(account.Decider(), store, es.ExecutorOptions{Notify: watches.Hub.Notify})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close(context.Background()) })
	slow := &harness{Server: newParts(t, x, Parts{Store: store, Watches: watches, Pool: h.Pool}), t: t, store: store}
	id := slow.open(account.User)
	const postings = 60
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		defer close(done)
		for range postings {
			postOn(t, slow.Server, ask(credit, uuid.NewString(), "fund", id, "1.00"))
		}
	})
	defer wg.Wait()
	req := &accountv1.GetAccountStatementRequest{AccountId: id, PageSize: 200}
	lines, sum, closing := 0, decimal.Zero, "0.00"
	for finished := false; ; {
		select {
		case <-done:
			finished = true
		default:
		}
		res, err := h.GetAccountStatement(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if res.GetOpeningBalance() != closing {
			t.Fatalf("opens with %s where the one before closed with %s", res.GetOpeningBalance(), closing)
		}
		lines, sum, closing = lines+len(res.GetLines()), sum.Add(decimal.RequireFromString(res.GetTotalCredits())), res.GetClosingBalance()
		req.From = res.GetTo()
		if finished {
			break
		}
	}
	if want := decimal.NewFromInt(postings); lines != postings || !sum.Equal(want) || closing != want.StringFixed(2) {
		t.Errorf("%d lines of %s in all, closing with %s; want %d", lines, sum, closing, postings)
	}
}
