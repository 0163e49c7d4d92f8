package api

import (
	"context"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	eventv1 "example.com/billing/proto/gen/go/billing/event/v1"
	"example.com/billing/services/account"
	"example.com/billing/services/edge"
)

// Whatever the size of a page, a history shows every event once, newest first, and events that come meanwhile shift nothing.
func TestHistory(t *testing.T) {
	h := newPostgresHarness(t)
	id := h.lives(1, 30)[0]
	want := h.events(id)
	for _, size := range []int32{1, int32(len(want)) - 1, int32(len(want)), 200, 0, 7} { // 7 last: the account goes on there
		var got []*eventv1.RecordedEvent
		for token, pages := "", 0; ; pages++ {
			res, err := h.GetAccountHistory(t.Context(), &accountv1.GetAccountHistoryRequest{AccountId: id, PageSize: size, PageToken: token})
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, res.GetEvents()...)
			if token = res.GetNextPageToken(); token == "" {
				break
			}
			if pages == 0 && size == 7 { // the account goes on
				h.post(ask(credit, "11111111-1111-4111-8111-111111111111", step, id, "1.00"))
			}
		}
		if len(got) != len(want) {
			t.Fatalf("%d events by pages of %d, want %d", len(got), size, len(want))
		}
		for i, e := range got {
			if shown, err := edge.Recorded(want[len(want)-1-i]); err != nil || !proto.Equal(e, shown) {
				t.Fatalf("event %d by pages of %d\n got %v\nwant %v (%v)", i, size, e, shown, err)
			}
		}
	}
}

// A history tells who asked for an event, for which transaction, and what caused it.
func TestHistoryTellsWhy(t *testing.T) {
	h := newPostgresHarness(t)
	ctx, _ := call(t.Context(), rpc.Caller{Actor: "ann", CorrelationID: "corr-0"})
	res, err := h.CreateAccount(ctx, createRequest())
	if err != nil {
		t.Fatal(err)
	}
	id, saga := res.GetAccount().GetAccountId(), "22222222-2222-4222-8222-222222222222"
	h.post(ask(credit, saga, step, id, "1.00"))
	got, err := h.GetAccountHistory(t.Context(), &accountv1.GetAccountHistoryRequest{AccountId: id})
	if err != nil || len(got.GetEvents()) != 2 {
		t.Fatalf("got %v, %v", got, err)
	}
	moved, opened := got.GetEvents()[0], got.GetEvents()[1]
	if moved.GetEventType() != "BalanceChanged" || moved.GetVersion() != 2 || moved.GetTransactionId() != saga || moved.GetStep() != step ||
		moved.GetCausedBy() != "event-1" || moved.GetCorrelationId() != "corr-1" || moved.GetActor() != "ann" || moved.GetCausationId() == "" ||
		moved.GetData().AsMap()["newBalance"] != "1.00" || moved.GetRecordedAt().AsTime().Before(opened.GetRecordedAt().AsTime()) {
		t.Errorf("the posting is %v", moved)
	}
	if opened.GetEventType() != "AccountCreated" || opened.TransactionId != nil || opened.Step != nil || opened.CausedBy != nil ||
		opened.GetActor() != "ann" || opened.GetCorrelationId() != "corr-0" {
		t.Errorf("the opening is %v", opened)
	}
}

func TestHistoryChecksItsRequest(t *testing.T) {
	h := newHarness(t)
	id := h.funded("1.00") // version 2
	token := func(below int64) string { return rpc.EncodePageToken(historyPage{Below: below}) }
	for name, tc := range map[string]struct {
		req   *accountv1.GetAccountHistoryRequest
		field string
	}{
		"no UUID":              {&accountv1.GetAccountHistoryRequest{AccountId: "x"}, "accountId"},
		"a large page":         {&accountv1.GetAccountHistoryRequest{AccountId: id, PageSize: 201}, "pageSize"},
		"no token":             {&accountv1.GetAccountHistoryRequest{AccountId: id, PageToken: "x"}, "pageToken"},
		"a page of nothing":    {&accountv1.GetAccountHistoryRequest{AccountId: id, PageToken: token(1)}, "pageToken"},
		"a page from nowhere":  {&accountv1.GetAccountHistoryRequest{AccountId: id, PageToken: token(-5)}, "pageToken"},
		"a page of the future": {&accountv1.GetAccountHistoryRequest{AccountId: id, PageToken: token(3)}, "pageToken"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := h.GetAccountHistory(t.Context(), tc.req)
			if e := rpc.ErrorOf(err); e == nil || e.Reason != "INVALID_ARGUMENT" || len(e.Violations) != 1 || e.Violations[0].Field != tc.field {
				t.Errorf("got %v", err)
			}
		})
	}
	_, err := h.GetAccountHistory(t.Context(), &accountv1.GetAccountHistoryRequest{AccountId: "33333333-3333-4333-8333-333333333333"})
	if rpc.ErrorOf(err).Reason != "ACCOUNT_NOT_FOUND" {
		t.Errorf("an unknown account: %v", err)
	}
}

// Each answer that carries an account tells its version by a token.
func TestAnswersCarryConsistencyTokens(t *testing.T) {
	h := newPostgresHarness(t)
	id := ""
	for _, step := range []struct {
		name    string
		version int64
		run     func(context.Context) error
	}{
		{"create", 1, func(ctx context.Context) error {
			res, err := h.CreateAccount(ctx, createRequest())
			id = res.GetAccount().GetAccountId()
			return err
		}},
		{"status", 2, func(ctx context.Context) error {
			_, err := h.ChangeAccountStatus(ctx, &accountv1.ChangeAccountStatusRequest{AccountId: id, Status: "suspended", Reason: "asked"})
			return err
		}},
		{"limits", 3, func(ctx context.Context) error {
			_, err := h.ChangeAccountLimits(ctx, &accountv1.ChangeAccountLimitsRequest{AccountId: id, MaxBalance: proto.String("7"), Reason: "asked"})
			return err
		}},
		{"get", 3, func(ctx context.Context) error {
			_, err := h.GetAccount(ctx, &accountv1.GetAccountRequest{AccountId: id})
			return err
		}},
		{"balance", 3, func(ctx context.Context) error {
			_, err := h.GetAccountBalance(ctx, &accountv1.GetAccountBalanceRequest{AccountId: id})
			return err
		}},
		{"past balance", 2, func(ctx context.Context) error {
			_, err := h.GetAccountBalance(ctx, &accountv1.GetAccountBalanceRequest{AccountId: id, Version: proto.Int32(2)})
			return err
		}},
	} {
		ctx, header := call(t.Context(), rpc.Caller{})
		err := step.run(ctx)
		want := edge.ConsistencyToken(es.Stream{Type: account.AggregateType, ID: id}, step.version)
		if got := header.Get("consistency-token"); err != nil || len(got) != 1 || got[0] != want {
			t.Errorf("%s: %v (%v), want %s", step.name, got, err, want)
		}
	}
}

// A list that is given a token shows what the token stands for, though the events come late.
func TestListWaitsForAToken(t *testing.T) {
	h := newPostgresHarness(t)
	id := h.funded("5.00") // version 2
	token := edge.ConsistencyToken(stream(id), 2)
	if res, err := h.ListAccounts(t.Context(), &accountv1.ListAccountsRequest{}); err != nil || len(res.GetAccounts()) != 0 {
		t.Fatalf("nothing was published yet: %v, %v", res, err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if res, err := h.ListAccounts(short, &accountv1.ListAccountsRequest{ConsistencyToken: token}); err == nil {
		t.Errorf("shown before it was published: %v", res)
	}
	listed := make(chan *accountv1.ListAccountsResponse)
	go func() {
		res, err := h.ListAccounts(t.Context(), &accountv1.ListAccountsRequest{ConsistencyToken: token + ",Transaction.22222222-2222-4222-8222-222222222222.9"})
		if err != nil {
			t.Error(err)
		}
		listed <- res
	}()
	projection := h.Accounts.Projection(h.store.Load)
	for _, e := range h.events(id) {
		if err := projection.Handle(t.Context(), []es.Event{e}); err != nil {
			t.Fatal(err)
		}
	}
	res := <-listed
	if a := res.GetAccounts(); len(a) != 1 || a[0].GetAccountId() != id || a[0].GetBalance() != "5.00" {
		t.Errorf("got %v", res)
	}
	_, err := h.ListAccounts(t.Context(), &accountv1.ListAccountsRequest{ConsistencyToken: "Account." + id})
	if e := rpc.ErrorOf(err); e == nil || e.Reason != "INVALID_ARGUMENT" || e.Violations[0].Field != "consistencyToken" {
		t.Errorf("no token: %v", err)
	}
}
