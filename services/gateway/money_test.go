package gateway_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	readmodelv1 "example.com/billing/proto/gen/go/billing/readmodel/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func TestHolds(t *testing.T) {
	b := &backend{hold: &transactionv1.Hold{HoldId: "h-1"}, transaction: &transactionv1.Transaction{}}
	url := start(t, b)
	for state, status := range map[string]int{"pending": 202, "active": 200, "failed": 200} {
		b.hold.Status = state
		a := ask(t, "POST", url+"/api/v1/holds?wait=2s", `{"accountId":"a-1"}`, "Idempotency-Key", "k")
		if a.status != status || a.header.Get("Location") != "/api/v1/holds/h-1" || b.caller.Wait != "2s" || b.caller.IdempotencyKey != "k" {
			t.Errorf("%s: %+v, caller %+v", state, a, b.caller)
		}
	}
	want := `{"holdId":"h-1","status":"failed","accountId":"","amount":"","capturedAmount":"","capturingAmount":"","remainingAmount":"","currency":"","idempotencyKey":"","version":0}`
	b.hold.Status = "failed"
	if a := ask(t, "GET", url+"/api/v1/holds/h-1", ""); a.status != 200 || a.body != want || a.header.Get("Location") != "" {
		t.Errorf("got %+v\nwant %s", a, want)
	}
	if a := ask(t, "GET", url+"/api/v1/transactions/t-1", ""); a.status != 200 || a.header.Get("Location") != "" {
		t.Errorf("got %+v", a)
	}
	for state, status := range map[string]int{"releasing": 202, "voided": 200} {
		b.hold.Status = state
		a := ask(t, "POST", url+"/api/v1/holds/h-1/void?wait=0s", `{"reason":"left"}`, "Idempotency-Key", "k")
		r, ok := b.request.(*transactionv1.VoidHoldRequest)
		if a.status != status || !ok || r.GetHoldId() != "h-1" || r.GetReason() != "left" || b.caller.IdempotencyKey != "" {
			t.Errorf("%s: %+v, asked %v by %+v", state, a, b.request, b.caller)
		}
	}
}

func TestReconcileAndRebuild(t *testing.T) {
	b := &backend{check: &accountv1.Reconciliation{}, rebuild: &readmodelv1.Rebuild{}}
	url := start(t, b)
	for state, status := range map[string]int{"running": 202, "clean": 200, "differences": 200, "switched": 200} {
		b.check.Status, b.rebuild.Status = state, state
		a := ask(t, "POST", url+"/api/v1/books/reconcile?wait=3s", `{"accountId":"a-1"}`)
		r, ok := b.request.(*accountv1.ReconcileRequest)
		if a.status != status || !ok || r.GetAccountId() != "a-1" || b.caller.Wait != "3s" {
			t.Errorf("reconcile %s: %+v, asked %v by %+v", state, a, b.request, b.caller)
		}
		if a := ask(t, "GET", url+"/api/v1/books/reconcile", ""); a.status != 200 {
			t.Errorf("reconciliation %s: %+v", state, a)
		}
		for name, service := range map[string]string{"accounts": "account", "transactions": "transaction"} {
			want := fmt.Sprintf(`{"name":%q,"status":%q,"events":0,"eventsTotal":0,"rows":0,"repairedRows":0,"behindRows":0,"checksum":"of %s","eventsPerSecond":0}`, name, state, service)
			if a := ask(t, "POST", url+"/api/v1/readmodels/"+name+"/rebuild?wait=3s", "{}"); a.status != status || a.body != want || b.caller.Wait != "3s" {
				t.Errorf("rebuild: %+v by %+v\nwant %s", a, b.caller, want)
			}
			if a := ask(t, "GET", url+"/api/v1/readmodels/"+name+"/rebuild", ""); a.status != 200 || a.body != want {
				t.Errorf("rebuild: %+v\nwant %s", a, want)
			}
		}
	}
}

func TestBodiesThatMayBeAbsent(t *testing.T) {
	b := &backend{hold: &transactionv1.Hold{}}
	url := start(t, b)
	for _, path := range []string{"/api/v1/holds/h-1/void", "/api/v1/books/reconcile", "/api/v1/readmodels/accounts/rebuild"} {
		for _, headers := range [][]string{nil, {"Content-Type", "application/x-www-form-urlencoded"}} {
			if a := ask(t, "POST", url+path, "", headers...); a.status != 200 {
				t.Errorf("%s: %+v", path, a)
			}
		}
		if a := askReader(t, "POST", url+path, http.NoBody); a.status != 200 {
			t.Errorf("%s: %+v", path, a)
		}
		if a := askReader(t, "POST", url+path, chunked{strings.NewReader("")}); a.status != 200 {
			t.Errorf("%s chunked: %+v", path, a)
		}
		if p := problemIn(t, ask(t, "POST", url+path, "x")); p.Status != 400 {
			t.Errorf("%s: %+v", path, p)
		}
		if p := problemIn(t, ask(t, "POST", url+path, "{}", "-Content-Type", "", "Content-Type", "text/plain")); p.Status != 415 {
			t.Errorf("%s: %+v", path, p)
		}
	}
}

// chunked hides how long the body is.
type chunked struct{ r *strings.Reader }

func (c chunked) Read(p []byte) (int, error) { return c.r.Read(p) }

func TestConsistencyToken(t *testing.T) {
	b := &backend{token: "a-1:7", account: &accountv1.Account{AccountId: "a-1"}, hold: &transactionv1.Hold{}, transaction: &transactionv1.Transaction{}}
	url := start(t, b)
	for _, path := range []string{account + "/a-1", "/api/v1/holds/h-1", transactions + "/t-1"} {
		if a := ask(t, "GET", url+path, ""); a.header.Get("X-Consistency-Token") != "a-1:7" {
			t.Errorf("%s: %+v", path, a)
		}
	}
	for _, path := range []string{account, topup, "/api/v1/holds", "/api/v1/holds/h-1/capture", "/api/v1/holds/h-1/void"} {
		if a := ask(t, "POST", url+path, "{}"); a.header.Get("X-Consistency-Token") != "a-1:7" {
			t.Errorf("%s: %+v", path, a)
		}
	}
	if a := ask(t, "GET", url+account+"?consistencyToken=a-1:7", ""); a.status != 200 {
		t.Errorf("got %+v", a)
	}
	if r, ok := b.request.(*accountv1.ListAccountsRequest); !ok || r.GetConsistencyToken() != "a-1:7" {
		t.Errorf("asked %v", b.request)
	}
}

func TestListFilters(t *testing.T) {
	b := &backend{}
	url := start(t, b)
	id := "7f3c1b9e-4d2a-4c1e-9b7a-2f6d8e5a1c03"
	a := ask(t, "GET", url+transactions+"?accountId="+id+"&type=payment&status=pending&currency=USD&minAmount=1&maxAmount=2.50"+
		"&createdFrom=2025-01-01T00:00:00%2B01:00&createdTo=2025-02-01T00:00:00.5Z&stuck=true&paymentId="+id, "")
	want := &transactionv1.ListTransactionsRequest{
		AccountId: id, Type: "payment", Status: "pending", Currency: "USD", MinAmount: "1", MaxAmount: "2.50",
		CreatedFrom: timestamppb.New(time.Date(2024, 12, 31, 23, 0, 0, 0, time.UTC)), CreatedTo: timestamppb.New(time.Date(2025, 2, 1, 0, 0, 0, 5e8, time.UTC)),
		Stuck: true, PaymentId: id,
	}
	if r, ok := b.request.(*transactionv1.ListTransactionsRequest); a.status != 200 || a.body != `{"transactions":[],"nextPageToken":""}` || !ok || !proto.Equal(r, want) {
		t.Errorf("got %+v, asked %v", a, b.request)
	}
}
