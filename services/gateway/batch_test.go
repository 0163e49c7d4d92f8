package gateway_test

import (
	"strings"
	"testing"
	"time"

	"example.com/billing/pkg/rpc"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
)

// An item that does not fit spoils none of the others, and every result stands in its item's place.
func TestBatch(t *testing.T) {
	b := &backend{results: []*transactionv1.BatchResult{
		{Transaction: &transactionv1.Transaction{TransactionId: "t-1", Status: "pending"}},
		{Transaction: &transactionv1.Transaction{TransactionId: "t-2", Status: "completed"}, Replayed: true},
		{Error: &transactionv1.BatchError{Reason: "SAME_ACCOUNT", Detail: "One account."}},
	}}
	url := start(t, b)
	a := ask(t, "POST", url+batch, `{"transactions":[
		{"type":"topup","idempotencyKey":"k-1","amount":7},
		{"type":"topup","idempotencyKey":"k-2","amount":"1.00"},
		"text",
		{"type":"transfer","idempotencyKey":"k-3","metadata":{"a":[1]}},
		{"colour":"red","type":null},
		{"type":"transfer","idempotencyKey":"k-4"}
	]}`, "Idempotency-Key", "of nobody")
	transaction := func(id, status string) string {
		return `{"transactionId":"` + id + `","type":"","status":"` + status + `","sourceAccountId":"","destinationAccountId":"","amount":"","currency":"","idempotencyKey":"","version":0}`
	}
	want := `{"results":[` + strings.Join([]string{
		`{"replayed":false,"error":{"reason":"INVALID_ARGUMENT","detail":"Wrong in the request: amount (string).","errors":[{"field":"amount","rule":"string","value":"7"}]}}`,
		`{"transaction":` + transaction("t-1", "pending") + `,"replayed":false}`,
		`{"replayed":false,"error":{"reason":"INVALID_ARGUMENT","detail":"Wrong in the request: transaction (object).","errors":[{"field":"transaction","rule":"object","value":"\"text\""}]}}`,
		`{"transaction":` + transaction("t-2", "completed") + `,"replayed":true}`,
		`{"replayed":false,"error":{"reason":"INVALID_ARGUMENT","detail":"Wrong in the request: colour (unknown), type (string).","errors":[{"field":"colour","rule":"unknown","value":"\"red\""},{"field":"type","rule":"string","value":"null"}]}}`,
		`{"replayed":false,"error":{"reason":"SAME_ACCOUNT","detail":"One account.","errors":[]}}`,
	}, ",") + `]}`
	if a.status != 200 || a.body != want || a.header.Get("Content-Type") != "application/json" {
		t.Errorf("got %+v\nwant %s", a, want)
	}
	r, ok := b.request.(*transactionv1.BatchRequest)
	if !ok || len(r.GetTransactions()) != 3 || r.GetTransactions()[1].GetIdempotencyKey() != "k-3" || b.caller.IdempotencyKey != "" || !b.deadline {
		t.Errorf("asked %v by %+v", b.request, b.caller)
	}
}

func TestBatchOfNothingThatFits(t *testing.T) {
	b := &backend{}
	a := ask(t, "POST", start(t, b)+batch, `{"transactions":[1]}`)
	if a.status != 200 || !strings.Contains(a.body, `"INVALID_ARGUMENT"`) || b.called != 0 {
		t.Errorf("got %+v, asked %d times", a, b.called)
	}
}

func TestBatchProblems(t *testing.T) {
	b := &backend{err: rpc.Fail("UNAVAILABLE", "Later.")}
	url := start(t, b)
	if p := problemIn(t, ask(t, "POST", url+batch, `{"transactions":[{}]}`)); p.Status != 503 {
		t.Errorf("got %+v", p)
	}
	b.err = nil // and no results: not one for each item
	if p := problemIn(t, ask(t, "POST", url+batch, `{"transactions":[{}]}`)); p.Status != 500 || p.Reason != rpc.ReasonInternal {
		t.Errorf("got %+v", p)
	}
}

// A batch that is shed is refused as a whole: there is no result of any item, not even of one that does not fit.
func TestBatchIsShedAsAWhole(t *testing.T) {
	b := &backend{err: rpc.Fail("OVERLOADED", "Later.").After(2100 * time.Millisecond)}
	a := ask(t, "POST", start(t, b)+batch, `{"transactions":[{},"text"]}`)
	if p := problemIn(t, a); p.Status != 429 || p.Reason != "OVERLOADED" || a.header.Get("Retry-After") != "3" || strings.Contains(a.body, "results") {
		t.Errorf("got %+v", a)
	}
}

// The batch's body may be larger than others': an item's metadata alone may be 16 KiB.
func TestBatchBody(t *testing.T) {
	b := &backend{}
	url := start(t, b)
	items := func(n int) string {
		item := `{"metadata":{"text":"` + strings.Repeat("x", 16<<10) + `"},"colour":1}`
		return `{"transactions":[` + item + strings.Repeat(","+item, n-1) + `]}`
	}
	if a := ask(t, "POST", url+batch, items(200)); a.status != 200 {
		t.Errorf("3 MiB: %d %.200s", a.status, a.body)
	}
	if p := problemIn(t, ask(t, "POST", url+batch, items(1030))); p.Status != 413 {
		t.Errorf("17 MiB: %+v", p)
	}
}
