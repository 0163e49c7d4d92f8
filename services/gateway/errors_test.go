package gateway_test

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"example.com/billing/pkg/rpc"
	"example.com/billing/services/gateway"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var update = flag.Bool("update", false, "write docs/errors.md")

func TestErrorTable(t *testing.T) {
	const path = "../../docs/errors.md"
	want := gateway.ErrorTable(catalog(t))
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the catalog says; run go test -run ErrorTable -update", path)
	}
}

const (
	topup   = "/api/v1/transactions/topup"
	account = "/api/v1/accounts"

	transactions = "/api/v1/transactions"
	batch        = transactions + "/batch"
)

func TestMalformedRequests(t *testing.T) {
	b := &backend{}
	url := start(t, b)
	deep := `{"metadata":{"a":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}}`
	tests := []struct {
		name, method, path, body string
		headers                  []string
		status                   int
		reason                   string
		want                     []gateway.FieldError
	}{
		{"no such path", "GET", "/api/v1/nothing", "", nil, 404, "ROUTE_NOT_FOUND", nil},
		{"root", "GET", "/", "", nil, 404, "ROUTE_NOT_FOUND", nil},
		{"trailing slash", "GET", "/api/v1/accounts/", "", nil, 404, "ROUTE_NOT_FOUND", nil},
		{"internal service", "POST", "/billing.account.v1.PostingService/Post", "{}", nil, 404, "ROUTE_NOT_FOUND", nil},
		{"method", "DELETE", account, "", nil, 405, "METHOD_NOT_ALLOWED", nil},
		{"literal before parameter", "GET", topup, "", nil, 405, "METHOD_NOT_ALLOWED", nil},
		{"method override", "POST", account + "/x", "{}", []string{"X-HTTP-Method-Override", "GET"}, 405, "METHOD_NOT_ALLOWED", nil},
		{"form", "POST", account, "a=b", []string{"-Content-Type", "", "Content-Type", "application/x-www-form-urlencoded"}, 415, "MEDIA_TYPE_NOT_SUPPORTED", nil},
		{"no media type", "POST", account, "{}", []string{"-Content-Type", "", "Content-Type", ";"}, 415, "MEDIA_TYPE_NOT_SUPPORTED", nil},
		{"charset", "POST", account, "{}", []string{"-Content-Type", "", "Content-Type", "application/json; charset=latin1"}, 415, "MEDIA_TYPE_NOT_SUPPORTED", nil},
		{"compressed", "POST", account, "{}", []string{"Content-Encoding", "gzip"}, 415, "MEDIA_TYPE_NOT_SUPPORTED", nil},
		{"empty", "POST", account, "", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "body", Rule: "required"}}},
		{"blank", "POST", account, " \n", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "body", Rule: "required"}}},
		{"not json", "POST", account, "{", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "body", Rule: "json"}}},
		{"comma", "POST", account, `{"ownerId":"a",}`, nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "body", Rule: "json"}}},
		{"array", "POST", account, "[]", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "body", Rule: "object"}}},
		{"null", "POST", account, "null", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "body", Rule: "object"}}},
		{"garbage after", "POST", account, "{} x", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "body", Rule: "json"}}},
		{"two documents", "POST", account, "{}{}", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "body", Rule: "one_document"}}},
		{"not utf-8", "POST", account, "{\"ownerId\":\"\xff\"}", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "body", Rule: "utf8"}}},
		{"lone surrogate", "POST", account, `{"ownerId":"\ud800"}`, nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "ownerId", Rule: "string", Value: `"\ud800"`}}},
		{"deep", "POST", account, deep, nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "body", Rule: "max_depth:100"}}},
		{"unknown field", "POST", account, `{"ownerId":"a","colour":"red"}`, nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "colour", Rule: "unknown", Value: `"red"`}}},
		{"wrong types", "POST", account, `{"ownerId":7,"metadata":[],"currency":null,"minBalance":"0"}`, nil, 400, "INVALID_ARGUMENT",
			[]gateway.FieldError{{Field: "ownerId", Rule: "string", Value: "7"}, {Field: "metadata", Rule: "object", Value: "[]"}, {Field: "currency", Rule: "string", Value: "null"}}},
		{"wrong number", "PATCH", account + "/x/status", `{"expectedVersion":"many"}`, nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "expectedVersion", Rule: "int32", Value: `"many"`}}},
		{"number in quotes", "PATCH", account + "/x/status", `{"expectedVersion":"3"}`, nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "expectedVersion", Rule: "int32", Value: `"3"`}}},
		{"null alone", "POST", account, `{"idempotencyKey":null}`, nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "idempotencyKey", Rule: "string", Value: "null"}}},
		{"twice", "POST", account, `{"ownerId":"a","ownerId":"b"}`, nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "ownerId", Rule: "once", Value: `"b"`}}},
		{"the contracts' own spelling", "POST", account, `{"ownerId":"a","owner_id":"b"}`, nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "owner_id", Rule: "unknown", Value: `"b"`}}},
		{"path parameter in body", "PATCH", account + "/x/status", `{"accountId":"y"}`, nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "accountId", Rule: "not_in_body", Value: `"y"`}}},
		{"wait in body", "POST", topup, `{"wait":"5s"}`, nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "wait", Rule: "not_in_body", Value: `"5s"`}}},
		{"unknown parameter", "GET", account + "?colour=red", "", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "colour", Rule: "unknown", Value: "red"}}},
		{"unknown on post", "POST", account + "?wait=5s", "{}", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "wait", Rule: "unknown", Value: "5s"}}},
		{"parameter twice", "GET", account + "?ownerId=a&ownerId=b", "", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "ownerId", Rule: "once", Value: "a,b"}}},
		{"parameter no number", "GET", account + "?pageSize=ten", "", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "pageSize", Rule: "integer", Value: "ten"}}},
		{"parameter with a plus sign", "GET", account + "?pageSize=%2B10", "", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "pageSize", Rule: "integer", Value: "+10"}}},
		{"parameter out of range", "GET", account + "?pageSize=201", "", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "pageSize", Rule: "range:1..200", Value: "201"}}},
		{"parameter empty", "GET", account + "?ownerId=", "", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "ownerId", Rule: "required"}}},
		{"parameter too long", "GET", account + "?ownerType=" + strings.Repeat("x", 65), "", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "ownerType", Rule: "max_length:64", Value: strings.Repeat("x", 65)}}},
		{"parameter not of the set", "GET", account + "?accountType=user", "", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "accountType", Rule: "one_of:USER,EXTERNAL,SYSTEM", Value: "user"}}},
		{"parameter of another shape", "GET", account + "?currency=usd", "", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "currency", Rule: "pattern:^[A-Z][A-Z0-9]{1,11}$", Value: "usd"}}},
		{"parameter no uuid", "GET", transactions + "?accountId=x", "", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "accountId", Rule: "uuid", Value: "x"}}},
		{"parameter no boolean", "GET", transactions + "?stuck=1", "", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "stuck", Rule: "boolean", Value: "1"}}},
		{"parameters no timestamps", "GET", transactions + "?createdFrom=yesterday&createdTo=2025-01-01T00:00:00%2B01:00", "", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "createdFrom", Rule: "timestamp", Value: "yesterday"}}},
		{"timestamp with a comma", "GET", account + "/x/statement?from=2025-01-01T00:00:00,5Z", "", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "from", Rule: "timestamp", Value: "2025-01-01T00:00:00,5Z"}}},
		{"timestamp and version", "GET", account + "/x/balance?at=2025-02-30T00:00:00Z&version=0", "", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "at", Rule: "timestamp", Value: "2025-02-30T00:00:00Z"}, {Field: "version", Rule: "range:1..2147483647", Value: "0"}}},
		{"after of a watch", "GET", account + "/x/watch?after=-1", "", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "after", Rule: "range:0..2147483647", Value: "-1"}}},
		{"last event of a watch", "GET", account + "/x/watch?after=1", "", []string{"Last-Event-ID", "2x"}, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "Last-Event-ID", Rule: "integer", Value: "2x"}}},
		{"last event twice", "GET", "/api/v1/sagas/x/watch", "", []string{"Last-Event-ID", "1", "Last-Event-ID", "2"}, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "Last-Event-ID", Rule: "once", Value: "1,2"}}},
		{"parameter not utf-8", "GET", account + "?ownerId=%ff", "", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "ownerId", Rule: "utf8", Value: "\uFFFD"}}},
		{"bad escape", "GET", account + "?ownerId=%zz", "", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "query", Rule: "url_encoding", Value: "ownerId=%zz"}}},
		{"path not utf-8", "GET", account + "/%ff", "", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "path", Rule: "utf8", Value: account + "/\uFFFD"}}},
		{"wait too long", "POST", topup + "?wait=31s", "{}", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "wait", Rule: "range:0s..30s", Value: "31s"}}},
		{"wait negative", "POST", topup + "?wait=-1s", "{}", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "wait", Rule: "range:0s..30s", Value: "-1s"}}},
		{"wait no duration", "POST", topup + "?wait=soon", "{}", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "wait", Rule: "duration", Value: "soon"}}},
		{"wait with a sign", "POST", topup + "?wait=%2B1s", "{}", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "wait", Rule: "duration", Value: "+1s"}}},
		{"wait empty", "POST", topup + "?wait=", "{}", nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "wait", Rule: "duration"}}},
		{"key twice", "POST", topup, "{}", []string{"Idempotency-Key", "a", "Idempotency-Key", "b"}, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "idempotencyKey", Rule: "once", Value: "a,b"}}},
		{"key not ascii", "POST", topup, "{}", []string{"Idempotency-Key", "é"}, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "idempotencyKey", Rule: "printable_ascii", Value: "é"}}},
		{"no such read model", "GET", "/api/v1/readmodels/ledger/rebuild", "", nil, 404, "READ_MODEL_NOT_FOUND", nil},
		{"no such read model to rebuild", "POST", "/api/v1/readmodels/ledger/rebuild", "", nil, 404, "READ_MODEL_NOT_FOUND", nil},
		{"wait on a batch", "POST", batch + "?wait=1s", `{"transactions":[{}]}`, nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "wait", Rule: "unknown", Value: "1s"}}},
		{"empty batch", "POST", batch, `{"transactions":[]}`, nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "transactions", Rule: "items:1..1000", Value: "0"}}},
		{"no batch", "POST", batch, `{"items":[]}`, nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "items", Rule: "unknown", Value: "[]"}, {Field: "transactions", Rule: "required"}}},
		{"batch of the wrong type", "POST", batch, `{"transactions":{}}`, nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "transactions", Rule: "array", Value: "{}"}}},
		{"batch too long", "POST", batch, `{"transactions":[{}` + strings.Repeat(",{}", 1000) + `]}`, nil, 400, "INVALID_ARGUMENT", []gateway.FieldError{{Field: "transactions", Rule: "items:1..1000", Value: "1001"}}},
		{"no such service", "GET", "/api/v1/outbox/ledger/stats", "", nil, 404, "SERVICE_NOT_FOUND", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := problemIn(t, ask(t, tt.method, url+tt.path, tt.body, tt.headers...))
			if p.Status != tt.status || p.Reason != tt.reason || fmt.Sprint(p.Errors) != fmt.Sprint(tt.want) {
				t.Errorf("got %+v", p)
			}
			if b.called != 0 {
				t.Error("a service was asked")
			}
		})
	}
}

func TestAllowHeadAndOptions(t *testing.T) {
	url := start(t, &backend{})
	for path, want := range map[string]string{
		account: "GET, HEAD, OPTIONS, POST", topup: "OPTIONS, POST", account + "/x/status": "OPTIONS, PATCH", "/healthz": "GET, HEAD, OPTIONS",
	} {
		if a := ask(t, "OPTIONS", url+path, ""); a.status != 204 || a.header.Get("Allow") != want {
			t.Errorf("OPTIONS %s: %d %v", path, a.status, a.header)
		}
		if a := ask(t, "TRACE", url+path, ""); a.status != 405 || a.header.Get("Allow") != want {
			t.Errorf("TRACE %s: %d %v", path, a.status, a.header)
		}
	}
	if a := ask(t, "HEAD", url+account, ""); a.status != 200 || a.body != "" || a.header.Get("Content-Length") == "" {
		t.Errorf("HEAD: %+v", a)
	}
	if a := ask(t, "HEAD", url+topup, ""); a.status != 405 || a.body != "" {
		t.Errorf("HEAD on a POST: %+v", a)
	}
}

func TestBodyTooLarge(t *testing.T) {
	b := &backend{}
	url := start(t, b)
	for name, size := range map[string]int64{"a little": 1<<20 + 1, "much": 12 << 20} {
		body := func() io.Reader { return io.LimitReader(zeros{}, size) }
		chunked := askReader(t, "POST", url+account, body())
		if p := problemIn(t, chunked); p.Status != 413 || p.Reason != "BODY_TOO_LARGE" {
			t.Errorf("%s chunked: %+v", name, p)
		}
		declared := askReader(t, "POST", url+account, strings.NewReader(strings.Repeat("0", int(size))))
		if p := problemIn(t, declared); p.Status != 413 {
			t.Errorf("%s declared: %+v", name, p)
		}
		elsewhere := askReader(t, "POST", url+"/nothing", body())
		if p := problemIn(t, elsewhere); p.Status != 404 {
			t.Errorf("%s elsewhere: %+v", name, p)
		}
	}
	if b.called != 0 {
		t.Error("a service was asked")
	}
	// One that waits to be told to go on is told no instead.
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\nExpect: 100-continue\r\n\r\n", account)
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "413") {
		t.Errorf("got %q, %v", line, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '0'
	}
	return len(p), nil
}

func TestServiceErrors(t *testing.T) {
	tests := []struct {
		name   string
		err    error
		status int
		reason string
		retry  string
		errors []gateway.FieldError
	}{
		{"not found", rpc.Fail("ACCOUNT_NOT_FOUND", "No account a <1>."), 404, "ACCOUNT_NOT_FOUND", "", nil},
		{"refused", rpc.Fail("INSUFFICIENT_FUNDS", "Short by 1."), 422, "INSUFFICIENT_FUNDS", "", nil},
		{"conflict", rpc.Fail("IDEMPOTENCY_CONFLICT", "amount differs"), 409, "IDEMPOTENCY_CONFLICT", "", nil},
		{"invalid", rpc.Invalid(rpc.Violation{Field: "amount", Rule: "scale:2", Value: "1.005"}), 400, "INVALID_ARGUMENT", "", []gateway.FieldError{{Field: "amount", Rule: "scale:2", Value: "1.005"}}},
		{"overloaded", rpc.Fail("OVERLOADED", "Later.").After(1500 * time.Millisecond), 429, "OVERLOADED", "2", nil},
		{"unavailable", rpc.Fail("UNAVAILABLE", "Later."), 503, "UNAVAILABLE", "1", nil},
		{"deadline", context.DeadlineExceeded, 504, "DEADLINE_EXCEEDED", "", nil},
		{"defect", errors.New("secret"), 500, "INTERNAL", "", nil},
		{"bare status of a handler", status.Error(codes.Unimplemented, "secret"), 500, "INTERNAL", "", nil}, // a server of ours: a defect
		{"bare status", status.Error(codes.Unavailable, "secret"), 503, "UNAVAILABLE", "1", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := &backend{err: tt.err, replayed: true}
			url := start(t, b)
			for _, ask := range []func() answer{
				func() answer { return ask(t, "GET", url+account+"/a", "", "X-Correlation-ID", "c-1") },
				func() answer { return ask(t, "POST", url+topup, "{}", "X-Correlation-ID", "c-1") },
				func() answer { return ask(t, "GET", url+"/api/v1/outbox/saga/stats", "", "X-Correlation-ID", "c-1") },
			} {
				a := ask()
				p := problemIn(t, a)
				if p.Status != tt.status || p.Reason != tt.reason || a.header.Get("Retry-After") != tt.retry || fmt.Sprint(p.Errors) != fmt.Sprint(tt.errors) {
					t.Errorf("got %+v %v", p, a.header)
				}
				if p.CorrelationID != "c-1" || strings.Contains(a.body, "secret") || a.header.Get("Idempotency-Replayed") != "" || a.header.Get("Location") != "" {
					t.Errorf("got %v %s", a.header, a.body)
				}
				if tt.name == "not found" && p.Detail != "No account a <1>." {
					t.Errorf("detail %q", p.Detail)
				}
			}
		})
	}
}

// A service of an older version, which does not know the method yet: nothing was done, and the answer says which path it lacks.
func TestOlderService(t *testing.T) {
	url := start(t, &backend{older: "transaction"})
	for _, a := range []answer{ask(t, "GET", url+"/api/v1/holds/h-1", ""), ask(t, "POST", url+topup, "{}")} {
		if p := problemIn(t, a); p.Status != 404 || p.Reason != "ROUTE_NOT_FOUND" || !strings.HasPrefix(p.Detail, "The running version of the service offers nothing at /api/v1/") {
			t.Errorf("got %+v", p)
		}
	}
	if a := ask(t, "GET", url+account, ""); a.status != 200 {
		t.Errorf("the other services: %+v", a)
	}
}

func TestServiceGone(t *testing.T) {
	b := &backend{}
	url := start(t, b)
	b.servers["account"].Stop()
	a := ask(t, "GET", url+account+"/a", "")
	if p := problemIn(t, a); p.Status != http.StatusServiceUnavailable || a.header.Get("Retry-After") != "1" {
		t.Errorf("got %+v %v", p, a.header)
	}
}
