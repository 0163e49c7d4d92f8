package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

type object = map[string]any

// answer is a REST answer.
type answer struct {
	status int
	header http.Header
	raw    []byte
	body   object // nil if the body is no object
}

// call sends a REST request. body may be nil, a string sent as it is, or anything that marshals to JSON.
func call(t testing.TB, method, path string, body any, headers ...string) answer {
	t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = bytes.NewReader([]byte(b))
	default:
		j, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		r = bytes.NewReader(j)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, now.http+path, r)
	if err != nil {
		t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{status: res.StatusCode, header: res.Header, raw: raw}
	_ = json.Unmarshal(raw, &a.body) // an array stays raw
	return a
}

// must is call that fails the test unless the answer has this status.
func must(t testing.TB, status int, method, path string, body any, headers ...string) object {
	t.Helper()
	a := call(t, method, path, body, headers...)
	if a.status != status {
		t.Fatalf("%s %s: status %d, want %d: %s", method, path, a.status, status, a.raw)
	}
	return a.body
}

// open opens an account; more are further keys and values of the request.
func open(t testing.TB, kind string, more ...string) string {
	t.Helper()
	body := object{"ownerId": uuid.NewString(), "ownerType": "person", "accountType": kind, "currency": "USD"}
	for i := 0; i < len(more); i += 2 {
		body[more[i]] = more[i+1]
	}
	return must(t, http.StatusCreated, "POST", "/api/v1/accounts", body)["accountId"].(string)
}

// funded opens a USER account and tops it up.
func funded(t testing.TB, amount string, more ...string) string {
	t.Helper()
	id := open(t, "USER", more...)
	if got := move(t, "topup", open(t, "EXTERNAL"), id, amount); got["status"] != "completed" {
		t.Fatalf("top-up: %v", got)
	}
	return id
}

func order(source, destination, amount string) object {
	return object{
		"idempotencyKey": uuid.NewString(), "sourceAccountId": source, "destinationAccountId": destination, "amount": amount, "currency": "USD",
	}
}

// move asks for a transaction and waits for its end.
func move(t testing.TB, kind, source, destination, amount string) object {
	t.Helper()
	return must(t, http.StatusOK, "POST", "/api/v1/transactions/"+kind+"?wait=30s", order(source, destination, amount))
}

func balance(t testing.TB, account string) string {
	t.Helper()
	return must(t, http.StatusOK, "GET", "/api/v1/accounts/"+account+"/balance", nil)["balance"].(string)
}

func wantBalance(t testing.TB, account, want string) {
	t.Helper()
	if got := balance(t, account); got != want {
		t.Errorf("account %s has %s, want %s", account, got, want)
	}
}

// wantBooks fails the test unless the books balance with nothing in transit.
func wantBooks(t testing.TB) {
	t.Helper()
	for _, x := range must(t, http.StatusOK, "GET", "/api/v1/books", nil)["currencies"].([]any) {
		c := x.(object)
		for _, key := range []string{"difference", "inTransit"} {
			for _, r := range c[key].(string) {
				if r != '0' && r != '.' {
					t.Errorf("books of %s: %v", c["currency"], c)
					return
				}
			}
		}
	}
}

// eventually looks until f says yes.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		if f() {
			return
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
	t.Fatalf("not in time: %s", what)
}

func dial(t testing.TB, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// position is how many events a service's database holds.
func position(t testing.TB, database string) (n int64) {
	t.Helper()
	query(t, database, "SELECT count(*) FROM es_event", &n)
	return n
}

func query(t testing.TB, database, sql string, into ...any) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), now.dsn(database))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if err := conn.QueryRow(t.Context(), sql).Scan(into...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}
