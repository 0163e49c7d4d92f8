package api

import (
	"encoding/json"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/shopspring/decimal"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
)

// lives opens accounts and moves money on them at random, in commits of up to 20 postings, some of which are refused; now and
// then a status changes.
func (h *harness) lives(accounts, postings int) []string {
	h.t.Helper()
	ids := make([]string, accounts)
	for i := range ids {
		ids[i] = h.open(account.User, upTo("500"))
	}
	one := func() string { return ids[rand.IntN(len(ids))] }
	for done := 0; done < postings; {
		var batch []*accountv1.Posting
		for range 1 + rand.IntN(20) {
			kind := []accountv1.PostingKind{credit, credit, debit}[rand.IntN(3)]
			batch = append(batch, ask(kind, uuid.NewString(), step, one(), decimal.New(1+rand.Int64N(9999), -2).String()))
		}
		if _, err := h.Post(h.t.Context(), &accountv1.PostRequest{Postings: batch}); err != nil {
			h.t.Fatal(err)
		}
		done += len(batch)
		if rand.IntN(4) == 0 {
			status := []string{"active", "active", "suspended"}[rand.IntN(3)]
			if _, err := h.ChangeAccountStatus(h.t.Context(), &accountv1.ChangeAccountStatusRequest{AccountId: one(), Status: status, Reason: "asked"}); err != nil {
				h.t.Fatal(err)
			}
		}
	}
	return ids
}

// told is what a reader of the events up to a time knows, without the domain: it adds up what moved.
func told(t *testing.T, events []es.Event, at time.Time) (balance decimal.Decimal, status string, version int32) {
	t.Helper()
	for _, e := range events {
		if e.RecordedAt.After(at) {
			continue
		}
		version++
		var d struct{ ChangeAmount, ChangeType, NewStatus string }
		if err := json.Unmarshal(e.Data, &d); err != nil {
			t.Fatal(err)
		}
		switch {
		case e.Type == "AccountCreated":
			status = "active"
		case e.Type == "AccountStatusChanged":
			status = d.NewStatus
		case e.Type == "BalanceChanged" && d.ChangeType == "CREDIT":
			balance = balance.Add(decimal.RequireFromString(d.ChangeAmount))
		case e.Type == "BalanceChanged":
			balance = balance.Sub(decimal.RequireFromString(d.ChangeAmount))
		}
	}
	return balance, status, version
}

// For 1,000 random pairs of account and time, the balance is what the events recorded until then add up to.
func TestPastBalances(t *testing.T) {
	h := newPostgresHarness(t)
	begin := time.Now().Add(-10 * time.Millisecond)
	ids := h.lives(8, 600)
	span := time.Since(begin)
	events := map[string][]es.Event{}
	for _, id := range ids {
		events[id] = h.events(id)
	}
	for range 1000 {
		id := ids[rand.IntN(len(ids))]
		at := begin.Add(rand.N(span))
		if rand.IntN(2) == 0 { // the very time of an event, or just before
			at = events[id][rand.IntN(len(events[id]))].RecordedAt.Add(-rand.N(2 * time.Nanosecond))
		}
		balance, status, version := told(t, events[id], at)
		got, err := h.GetAccountBalance(t.Context(), &accountv1.GetAccountBalanceRequest{AccountId: id, At: timestamppb.New(at)})
		if version == 0 {
			if rpc.ErrorOf(err).Reason != "ACCOUNT_NOT_FOUND" {
				t.Fatalf("before it was opened: %v, %v", got, err)
			}
			continue
		}
		if err != nil || got.GetBalance() != balance.StringFixed(2) || got.GetStatus() != status || got.GetVersion() != version || got.GetCurrency() != "USD" {
			t.Fatalf("at %v: %v (%v), want %s, %s at version %d", at, got, err, balance, status, version)
		}
		by, err := h.GetAccountBalance(t.Context(), &accountv1.GetAccountBalanceRequest{AccountId: id, Version: &version})
		if err != nil || !proto.Equal(by, got) {
			t.Fatalf("at version %d: %v (%v), at its time %v", version, by, err, got)
		}
	}
}

func TestPastBalancesCheckTheirRequest(t *testing.T) {
	h := newHarness(t)
	id := h.funded("5.00") // version 2
	opened := h.events(id)[0].RecordedAt
	at := func(at time.Time) *accountv1.GetAccountBalanceRequest {
		return &accountv1.GetAccountBalanceRequest{AccountId: id, At: timestamppb.New(at)}
	}
	version := func(n int32) *accountv1.GetAccountBalanceRequest {
		return &accountv1.GetAccountBalanceRequest{AccountId: id, Version: &n}
	}
	both := at(opened)
	both.Version = proto.Int32(1)
	for name, tc := range map[string]struct {
		req         *accountv1.GetAccountBalanceRequest
		field, rule string // empty field = the account is not found
	}{
		"version 0":             {version(0), "version", "min:1"},
		"a version below":       {version(-1), "version", "min:1"},
		"a version to come":     {version(3), "version", "range:1..2"},
		"both":                  {both, "version", "absent_with:at"},
		"a time to come":        {at(time.Now().Add(time.Hour)), "at", "max:now"},
		"no time":               {&accountv1.GetAccountBalanceRequest{AccountId: id, At: &timestamppb.Timestamp{Nanos: -1}}, "at", "timestamp"},
		"before it was opened":  {at(opened.Add(-time.Nanosecond)), "", ""},
		"long before":           {at(time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)), "", ""},
		"of an unknown account": {&accountv1.GetAccountBalanceRequest{AccountId: uuid.NewString(), At: timestamppb.Now()}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			res, err := h.GetAccountBalance(t.Context(), tc.req)
			e := rpc.ErrorOf(err)
			switch {
			case tc.field == "" && (e == nil || e.Reason != "ACCOUNT_NOT_FOUND"):
				t.Errorf("got %v, %v", res, err)
			case tc.field != "" && (e == nil || e.Reason != "INVALID_ARGUMENT" || len(e.Violations) != 1 || e.Violations[0].Field != tc.field || e.Violations[0].Rule != tc.rule):
				t.Errorf("got %v, %v", res, err)
			}
		})
	}
}

// The store's clock may be ahead of the service's: the time of an event that is there is no time to come.
func TestATimeThatIsThereIsNotToCome(t *testing.T) {
	h := newHarness(t)
	ahead := fast{h.store, time.Hour}
	h.Store = ahead
	id := h.funded("5.00")
	newest, err := ahead.Load(t.Context(), stream(id), 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	got, err := h.GetAccountBalance(t.Context(), &accountv1.GetAccountBalanceRequest{AccountId: id, At: timestamppb.New(newest[0].RecordedAt)})
	if err != nil || got.GetBalance() != "5.00" || got.GetVersion() != 2 {
		t.Errorf("got %v, %v", got, err)
	}
	st, err := h.GetAccountStatement(t.Context(), &accountv1.GetAccountStatementRequest{AccountId: id})
	if err != nil || len(st.GetLines()) != 1 || !st.GetTo().AsTime().After(newest[0].RecordedAt) {
		t.Errorf("got %v, %v", st, err)
	}
	_, err = h.GetAccountBalance(t.Context(), &accountv1.GetAccountBalanceRequest{AccountId: id, At: timestamppb.New(newest[0].RecordedAt.Add(time.Hour))})
	if e := rpc.ErrorOf(err); e == nil || e.Reason != "INVALID_ARGUMENT" {
		t.Errorf("behind the newest event: %v", err)
	}
}
