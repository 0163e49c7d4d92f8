package api

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/shopspring/decimal"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
)

// statement reads all pages of a statement; the head is the first page's, without lines and token.
func (h *harness) statement(t *rapid.T, req *accountv1.GetAccountStatementRequest) (head *accountv1.GetAccountStatementResponse, lines []*accountv1.StatementLine) {
	req = proto.Clone(req).(*accountv1.GetAccountStatementRequest)
	for {
		res, err := h.GetAccountStatement(h.t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if n := int32(len(res.GetLines())); req.GetPageSize() > 0 && n > req.GetPageSize() || n == 0 && head != nil {
			t.Fatalf("a page of %d lines, asked for %d", n, req.GetPageSize())
		}
		lines = append(lines, res.GetLines()...)
		req.PageToken = res.GetNextPageToken()
		res.Lines, res.NextPageToken = nil, ""
		if head != nil && !proto.Equal(head, res) {
			t.Fatalf("a later page says\n%v\nthe first said\n%v", res, head)
		}
		if head = res; req.GetPageToken() == "" {
			return head, lines
		}
	}
}

// wantStatement adds up the events of a half-open period, without the domain.
func wantStatement(t *rapid.T, events []es.Event, from, to time.Time) (opening, credits, debits decimal.Decimal, versions []int32) {
	for _, e := range events {
		var d struct{ ChangeAmount, ChangeType string }
		if err := json.Unmarshal(e.Data, &d); err != nil {
			t.Fatal(err)
		}
		if e.Type != "BalanceChanged" || !e.RecordedAt.Before(to) {
			continue
		}
		amount := decimal.RequireFromString(d.ChangeAmount)
		switch {
		case e.RecordedAt.Before(from) && d.ChangeType == "CREDIT":
			opening = opening.Add(amount)
		case e.RecordedAt.Before(from):
			opening = opening.Sub(amount)
		case d.ChangeType == "CREDIT":
			credits, versions = credits.Add(amount), append(versions, int32(e.Version))
		default:
			debits, versions = debits.Add(amount), append(versions, int32(e.Version))
		}
	}
	return opening, credits, debits, versions
}

// For any period and page size: opening + credits - debits = closing; each line continues the one before; the lines are the
// postings of the period, and nothing else; two periods that touch make one.
func TestStatementInvariants(t *testing.T) {
	h := newPostgresHarness(t)
	ids := h.lives(3, 250)
	events := map[string][]es.Event{}
	for _, id := range ids {
		events[id] = h.events(id)
	}
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.SampledFrom(ids).Draw(t, "account")
		moment := func(name string) time.Time {
			e := rapid.SampledFrom(events[id]).Draw(t, name)
			return e.RecordedAt.Add(rapid.SampledFrom([]time.Duration{0, time.Nanosecond, time.Microsecond, -time.Microsecond}).Draw(t, name+" shift"))
		}
		from, to := moment("from"), moment("to")
		if to.Before(from) {
			from, to = to, from
		}
		if opened := events[id][0].RecordedAt; !to.After(opened) { // an earlier end is refused: TestStatementChecksItsRequest
			to = opened.Add(time.Nanosecond)
		}
		req := &accountv1.GetAccountStatementRequest{
			AccountId: id, From: timestamppb.New(from), To: timestamppb.New(to), PageSize: int32(rapid.SampledFrom([]int{0, 1, 2, 7, 200}).Draw(t, "page size")),
		}
		head, lines := h.statement(t, req)
		opening, credits, debits, versions := wantStatement(t, events[id], from, to)
		closing := opening.Add(credits).Sub(debits)
		if head.GetOpeningBalance() != opening.StringFixed(2) || head.GetTotalCredits() != credits.StringFixed(2) || head.GetTotalDebits() != debits.StringFixed(2) ||
			head.GetClosingBalance() != closing.StringFixed(2) || head.GetCurrency() != "USD" || head.GetFrom().AsTime() != from || head.GetTo().AsTime() != to {
			t.Fatalf("got %v\nwant %s + %s - %s = %s", head, opening, credits, debits, closing)
		}
		if len(lines) != len(versions) {
			t.Fatalf("%d lines, want %d", len(lines), len(versions))
		}
		balance := opening
		for i, l := range lines {
			amount := decimal.RequireFromString(l.GetAmount())
			if l.GetDirection() == "DEBIT" {
				amount = amount.Neg()
			}
			if balance = balance.Add(amount); l.GetBalance() != balance.StringFixed(2) || l.GetVersion() != versions[i] {
				t.Fatalf("line %d is %v, want balance %s", i, l, balance)
			}
		}
		middle := from.Add(time.Duration(rapid.Int64Range(0, int64(to.Sub(from))).Draw(t, "middle")))
		if !middle.After(events[id][0].RecordedAt) {
			return
		}
		before, after := proto.Clone(req).(*accountv1.GetAccountStatementRequest), proto.Clone(req).(*accountv1.GetAccountStatementRequest)
		before.To, after.From = timestamppb.New(middle), timestamppb.New(middle)
		first, firstLines := h.statement(t, before)
		second, secondLines := h.statement(t, after)
		if first.GetOpeningBalance() != head.GetOpeningBalance() || first.GetClosingBalance() != second.GetOpeningBalance() ||
			second.GetClosingBalance() != head.GetClosingBalance() || len(firstLines)+len(secondLines) != len(lines) {
			t.Fatalf("in two parts\n%v\n%v\nin one\n%v", first, second, head)
		}
	})
}

// Without a period it is everything until now; what happens between two pages is in neither.
func TestStatementKeepsItsPeriod(t *testing.T) {
	h := newPostgresHarness(t)
	id := h.open(account.User)
	for range 3 {
		h.want(h.post(ask(credit, uuid.NewString(), step, id, "2.00")), done, "")
	}
	saga := uuid.NewString()
	h.want(h.post(ask(debit, saga, step, id, "1.00")), done, "")
	first, err := h.GetAccountStatement(t.Context(), &accountv1.GetAccountStatementRequest{AccountId: id, PageSize: 3})
	if err != nil || len(first.GetLines()) != 3 || first.GetClosingBalance() != "5.00" || first.GetFrom().AsTime() != h.events(id)[0].RecordedAt {
		t.Fatalf("got %v, %v", first, err)
	}
	h.want(h.post(ask(debit, uuid.NewString(), step, id, "5.00")), done, "")
	second, err := h.GetAccountStatement(t.Context(), &accountv1.GetAccountStatementRequest{AccountId: id, PageSize: 3, PageToken: first.GetNextPageToken()})
	if err != nil || len(second.GetLines()) != 1 || second.GetClosingBalance() != "5.00" || second.GetNextPageToken() != "" || !proto.Equal(second.GetTo(), first.GetTo()) {
		t.Fatalf("got %v, %v", second, err)
	}
	if l := second.GetLines()[0]; l.GetTransactionId() != saga || l.GetStep() != step || l.GetReason() != "transfer" || l.GetDirection() != "DEBIT" ||
		l.GetAmount() != "1.00" || l.GetBalance() != "5.00" || l.GetVersion() != 5 || l.GetRecordedAt().AsTime() != h.events(id)[4].RecordedAt {
		t.Errorf("the line is %v", l)
	}
	other := h.funded("1.00")
	for name, req := range map[string]*accountv1.GetAccountStatementRequest{
		"of another account":  {AccountId: other, PageToken: first.GetNextPageToken()},
		"with another period": {AccountId: id, PageToken: first.GetNextPageToken(), From: timestamppb.New(time.Now().Add(-time.Hour))},
		"with another end":    {AccountId: id, PageToken: first.GetNextPageToken(), To: timestamppb.New(time.Now())},
		"made by the caller":  {AccountId: id, PageToken: rpc.EncodePageToken(sealed{Content: []byte(`{"closing":"1000000"}`), Seal: uuid.NewString()})},
		"of another kind":     {AccountId: id, PageToken: rpc.EncodePageToken(historyPage{Below: 2})},
	} {
		if res, err := h.GetAccountStatement(t.Context(), req); rpc.ErrorOf(err) == nil || rpc.ErrorOf(err).Reason != "INVALID_ARGUMENT" {
			t.Errorf("a token %s: %v, %v", name, res, err)
		}
	}
	again := &accountv1.GetAccountStatementRequest{AccountId: id, PageToken: first.GetNextPageToken(), From: first.GetFrom(), To: first.GetTo()}
	if _, err := h.GetAccountStatement(t.Context(), again); err != nil {
		t.Errorf("a token with its own period: %v", err)
	}
}

func TestStatementChecksItsRequest(t *testing.T) {
	h := newHarness(t)
	id := h.funded("5.00")
	now, opened := time.Now(), h.events(id)[0].RecordedAt
	period := func(from, to time.Time) *accountv1.GetAccountStatementRequest {
		req := &accountv1.GetAccountStatementRequest{AccountId: id}
		if !from.IsZero() {
			req.From = timestamppb.New(from)
		}
		if !to.IsZero() {
			req.To = timestamppb.New(to)
		}
		return req
	}
	for name, tc := range map[string]struct {
		req         *accountv1.GetAccountStatementRequest
		field, rule string // empty field = the account is not found
	}{
		"an end before the begin": {period(now, now.Add(-time.Second)), "to", "at_least:from"},
		"an end to come":          {period(opened, now.Add(time.Hour)), "to", "max:now"},
		"a begin to come":         {period(now.Add(time.Hour), time.Time{}), "from", "max:now"},
		"no time":                 {&accountv1.GetAccountStatementRequest{AccountId: id, To: &timestamppb.Timestamp{Nanos: -1}}, "to", "timestamp"},
		"a large page":            {&accountv1.GetAccountStatementRequest{AccountId: id, PageSize: 201}, "pageSize", "range:1..200"},
		"no token":                {&accountv1.GetAccountStatementRequest{AccountId: id, PageToken: "x"}, "pageToken", "page_token"},
		"before it was opened":    {period(time.Time{}, opened), "", ""},
		"of an unknown account":   {&accountv1.GetAccountStatementRequest{AccountId: uuid.NewString()}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			res, err := h.GetAccountStatement(t.Context(), tc.req)
			e := rpc.ErrorOf(err)
			switch {
			case tc.field == "" && (e == nil || e.Reason != "ACCOUNT_NOT_FOUND"):
				t.Errorf("got %v, %v", res, err)
			case tc.field != "" && (e == nil || e.Reason != "INVALID_ARGUMENT" || len(e.Violations) != 1 || e.Violations[0].Field != tc.field || e.Violations[0].Rule != tc.rule):
				t.Errorf("got %v, %v", res, err)
			}
		})
	}
	empty, err := h.GetAccountStatement(t.Context(), period(opened.Add(-time.Hour), opened.Add(time.Nanosecond)))
	if err != nil || empty.GetOpeningBalance() != "0.00" || empty.GetClosingBalance() != "0.00" || len(empty.GetLines()) != 0 {
		t.Errorf("a period without postings: %v, %v", empty, err)
	}
}

// A period of more events than a statement may cover is refused before they are read.
func TestAStatementIsBounded(t *testing.T) {
	h := newHarness(t)
	a := found{h.open(account.User), account.Account{Version: 250_001}}
	_, err := h.sum(t.Context(), a, Statement{Last: a.state.Version})
	if e := rpc.ErrorOf(err); e.Reason != "INVALID_ARGUMENT" || e.Violations[0] != (rpc.Violation{Field: "from", Rule: "max_events:250000", Value: "250001"}) {
		t.Errorf("got %v", err)
	}
}

// Events that do not add up make no statement.
func TestAStatementAddsUpOrIsNotShown(t *testing.T) {
	h := newHarness(t)
	id := h.open(account.User)
	wrong := h.events(id)[0]
	wrong.ID, wrong.Version, wrong.Type = uuid.NewString(), 2, "BalanceChanged"
	wrong.Data = []byte(`{"previousBalance":"0.00","newBalance":"3.00","changeAmount":"2.00","changeType":"CREDIT","reason":"x","currency":"USD","accountType":"USER","transitChange":"-2.00","sagaId":"s","step":"x"}`)
	if err := h.store.Append(t.Context(), es.Append{Stream: stream(id), Expected: 1, Events: []es.Event{wrong}}); err != nil {
		t.Fatal(err)
	}
	if res, err := h.GetAccountStatement(t.Context(), &accountv1.GetAccountStatementRequest{AccountId: id}); err == nil || !strings.Contains(err.Error(), " make 2, not 3") {
		t.Errorf("got %v, %v", res, err)
	}
}
