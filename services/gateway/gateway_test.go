package gateway_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"sort"
	"strings"
	"testing"
	"time"

	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	outboxv1 "example.com/billing/proto/gen/go/billing/outbox/v1"
	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/gateway"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// seedSaga is the example response of the saga state API.
const seedSaga = `{"sagaId":"uuid","sagaType":"transfer","status":"completed","currentStep":3,"totalSteps":3,` +
	`"steps":["debit_source","credit_destination","complete_transaction"],` +
	`"results":{"credit_destination":{"destinationNewBalance":"150.00"},"debit_source":{"sourceNewBalance":"50.00"}},` +
	`"createdAt":"2025-12-09T12:00:00Z","updatedAt":"2025-12-09T12:00:01Z"}`

func exampleSaga(t *testing.T) *sagav1.Saga {
	t.Helper()
	result := func(key, value string) *structpb.Struct {
		return &structpb.Struct{Fields: map[string]*structpb.Value{key: structpb.NewStringValue(value)}}
	}
	at := time.Date(2025, 12, 9, 12, 0, 0, 0, time.UTC)
	return &sagav1.Saga{
		SagaId: "uuid", SagaType: "transfer", Status: "completed", CurrentStep: 3, TotalSteps: 3,
		Steps: []string{"debit_source", "credit_destination", "complete_transaction"},
		Results: map[string]*structpb.Struct{
			"debit_source": result("sourceNewBalance", "50.00"), "credit_destination": result("destinationNewBalance", "150.00"),
		},
		CreatedAt: timestamppb.New(at), UpdatedAt: timestamppb.New(at.Add(time.Second)),
	}
}

func TestSagaIsTheSeedsExample(t *testing.T) {
	b := &backend{sagas: []*sagav1.Saga{exampleSaga(t)}, next: "more"}
	url := start(t, b)
	if a := ask(t, "GET", url+"/api/v1/sagas/uuid", ""); a.status != 200 || a.body != seedSaga || a.header.Get("Content-Type") != "application/json" {
		t.Errorf("got %+v\nwant %s", a, seedSaga)
	}
	if a := ask(t, "GET", url+"/api/v1/sagas?status=completed&type=transfer&pageSize=2", ""); a.body != "["+seedSaga+"]" || a.header.Get("X-Next-Page-Token") != "more" {
		t.Errorf("got %+v", a)
	}
	if r, ok := b.request.(*sagav1.ListSagasRequest); !ok || r.GetStatus() != "completed" || r.GetType() != "transfer" || r.GetPageSize() != 2 {
		t.Errorf("asked %v", b.request)
	}
}

func TestSagaLists(t *testing.T) {
	b := &backend{}
	url := start(t, b)
	if a := ask(t, "GET", url+"/api/v1/sagas", ""); a.status != 200 || a.body != "[]" || len(a.header.Values("X-Next-Page-Token")) != 0 {
		t.Errorf("empty: %+v", a)
	}
	undone := exampleSaga(t)
	undone.ErrorReason = proto.String("MAX_BALANCE")
	undone.CompensationActions = []*sagav1.CompensationAction{{Action: "credit_source_rollback", Timestamp: undone.GetCreatedAt()}}
	b.sagas = []*sagav1.Saga{{SagaId: "new", Status: "in_progress"}, undone}
	a := ask(t, "GET", url+"/api/v1/sagas", "")
	if want := `[{"sagaId":"new","sagaType":"","status":"in_progress","currentStep":0,"totalSteps":0,"steps":[],"results":{}},{`; !strings.HasPrefix(a.body, want) {
		t.Errorf("empty fields: %s", a.body)
	}
	if want := `"compensationActions":[{"action":"credit_source_rollback","timestamp":"2025-12-09T12:00:00Z"}]`; !strings.Contains(a.body, want) {
		t.Errorf("compensation: %s", a.body)
	}
}

func TestCreateAccount(t *testing.T) {
	b := &backend{account: &accountv1.Account{AccountId: "a-1", OwnerId: "<o>", Status: "active"}}
	url := start(t, b)
	a := ask(t, "POST", url+account, `{"ownerId":"o","minBalance":"-5","metadata":{"a":[1,{"b":null}]}}`, "-Content-Type", "", "Idempotency-Key", "k-1", "X-Actor", "ann")
	want := `{"accountId":"a-1","ownerId":"<o>","ownerType":"","accountType":"","currency":"","balance":"","status":"active","version":0,"heldBalance":"","availableBalance":""}`
	if a.status != http.StatusCreated || a.header.Get("Location") != "/api/v1/accounts/a-1" || a.body != want {
		t.Errorf("got %+v", a)
	}
	if b.caller.IdempotencyKey != "k-1" || b.caller.Actor != "ann" || b.caller.TenantID != "default" || !b.deadline {
		t.Errorf("caller %+v, deadline %v", b.caller, b.deadline)
	}
	if r, ok := b.request.(*accountv1.CreateAccountRequest); !ok || r.GetMinBalance() != "-5" || r.MaxBalance != nil {
		t.Errorf("asked %v", b.request)
	}
	b.replayed = true
	a = ask(t, "POST", url+account, `{}`, "Content-Type", "", "-Content-Type", "", "Content-Type", "Application/JSON; charset=UTF-8")
	if a.status != http.StatusOK || a.header.Get("Idempotency-Replayed") != "true" || a.header.Get("Location") != "/api/v1/accounts/a-1" {
		t.Errorf("replayed: %+v", a)
	}
	for name := range a.header {
		if strings.HasPrefix(name, "Grpc-") || name == "X-Internal" {
			t.Errorf("leaked %s", name)
		}
	}
	if a = ask(t, "PATCH", url+account+"/a-2/status", `{"status":"closed","expectedVersion":3}`); a.status != 200 || a.header.Get("Location") != "" {
		t.Errorf("status: %+v", a)
	}
	if r, ok := b.request.(*accountv1.ChangeAccountStatusRequest); !ok || r.GetAccountId() != "a-2" || r.GetExpectedVersion() != 3 {
		t.Errorf("asked %v", b.request)
	}
}

func TestTransactions(t *testing.T) {
	b := &backend{}
	url := start(t, b)
	for _, path := range []string{
		"transactions/topup", "transactions/withdraw", "transactions/transfer", "transactions/payment", "transactions/refund", "holds/h-1/capture",
	} {
		for state, status := range map[string]int{"pending": 202, "completed": 200, "failed": 200, "compensated": 200} {
			b.transaction = &transactionv1.Transaction{TransactionId: "t-1", Status: state}
			a := ask(t, "POST", url+"/api/v1/"+path+"?wait=1.5s", `{"amount":"1.00"}`, "Idempotency-Key", "k")
			if a.status != status || a.header.Get("Location") != "/api/v1/transactions/t-1" || !strings.Contains(a.body, `"status":"`+state+`"`) {
				t.Errorf("%s %s: %+v", path, state, a)
			}
			if b.caller.Wait != "1.5s" || b.caller.IdempotencyKey != "k" {
				t.Errorf("%s: caller %+v", path, b.caller)
			}
		}
	}
}

func TestCorrelationID(t *testing.T) {
	b := &backend{}
	url := start(t, b)
	for sent, kept := range map[string]bool{"c-1": true, "": false, "with space": false, strings.Repeat("c", 129): false, "é": false} {
		for _, path := range []string{"/api/v1/books", "/api/v1/outbox/saga/stats"} {
			got := ask(t, "GET", url+path, "", "X-Correlation-ID", sent).header.Get("X-Correlation-ID")
			if got == "" || (got == sent) != kept || got != b.caller.CorrelationID {
				t.Errorf("%s: sent %q, got %q, the service %q", path, sent, got, b.caller.CorrelationID)
			}
		}
	}
	// What a client puts into metadata by the runtime's own prefixes goes nowhere.
	ask(t, "GET", url+"/api/v1/books", "", "Grpc-Metadata-X-Actor", "root", "X-Tenant-Id", "other", "Grpc-Timeout", "1n", "X-Wait", "9s")
	if b.caller.Actor != "anonymous" || b.caller.TenantID != "default" || b.caller.Wait != "" {
		t.Errorf("caller %+v", b.caller)
	}
}

func TestOutbox(t *testing.T) {
	url := start(t, &backend{})
	for _, name := range []string{"account", "transaction", "saga"} {
		want := fmt.Sprintf(`{"service":%q,"pending":3,"delivered":0,"failed":0,"retries":0,"oldestPendingMs":0,"parkedOutgoing":0,"parkedIncoming":0,"parkedLanes":0,"oldestParkedMs":0}`, name)
		if a := ask(t, "GET", url+"/api/v1/outbox/"+name+"/stats", ""); a.status != 200 || a.body != want {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

func TestParked(t *testing.T) {
	b := &backend{next: "more"}
	url := start(t, b)
	empty := `"direction":"","eventId":%q,"eventType":"","aggregateType":"","aggregateId":"","aggregateVersion":0,"attempts":0,"lastError":"","status":""}`
	for _, name := range []string{"account", "transaction", "saga"} {
		path := url + "/api/v1/outbox/" + name + "/parked"
		want := fmt.Sprintf(`{"parked":[{"id":"of %s",`+empty+`],"nextPageToken":"more"}`, name, "")
		a := ask(t, "GET", path+"?direction=incoming&pageSize=7&pageToken=abc", "")
		if r, ok := b.request.(*outboxv1.ListParkedRequest); a.status != 200 || a.body != want || !ok || r.GetService() != name ||
			r.GetDirection() != "incoming" || r.GetPageSize() != 7 || r.GetPageToken() != "abc" {
			t.Errorf("%s: %+v, asked %v", name, a, b.request)
		}
		const id = "5d3e8f1a-2b4c-4d6e-8f90-a1b2c3d4e5f6"
		for _, verb := range []string{"requeue", "discard"} {
			want := fmt.Sprintf(`{"id":%q,`+empty, id, "of "+name)
			a := ask(t, "POST", path+"/"+id+"/"+verb, `{"reason":"mended"}`, "X-Actor", "ann")
			r, ok := b.request.(interface {
				GetService() string
				GetReason() string
			})
			if a.status != 200 || a.body != want || !ok || r.GetService() != name || r.GetReason() != "mended" || b.caller.Actor != "ann" {
				t.Errorf("%s %s: %+v\nwant %s\nasked %v by %+v", verb, name, a, want, b.request, b.caller)
			}
		}
	}
	for _, path := range []string{"/parked", "/parked/id/requeue", "/parked/id/discard"} {
		method, body := "GET", ""
		if path != "/parked" {
			method, body = "POST", `{"reason":"mended"}`
		}
		if p := problemIn(t, ask(t, method, url+"/api/v1/outbox/nobody"+path, body)); p.Status != 404 || p.Reason != "SERVICE_NOT_FOUND" {
			t.Errorf("%s: %+v", path, p)
		}
	}
	if p := problemIn(t, ask(t, "GET", url+"/api/v1/outbox/saga/parked?direction=up", "")); p.Status != 400 {
		t.Errorf("%+v", p)
	}
}

func TestHealth(t *testing.T) {
	b := &backend{}
	url := start(t, b)
	if a := ask(t, "GET", url+"/healthz", ""); a.status != 200 || a.body != `{"status":"ok"}` {
		t.Errorf("healthz: %+v", a)
	}
	ready := func() (int, map[string]any) {
		a := ask(t, "GET", url+"/readyz", "")
		var body map[string]any
		if err := json.Unmarshal([]byte(a.body), &body); err != nil {
			t.Fatal(err)
		}
		return a.status, body
	}
	if code, body := ready(); code != 200 || body["status"] != "ok" {
		t.Errorf("ready: %d %v", code, body)
	}
	b.servers["saga"].Health.Shutdown()
	b.servers["account"].Stop()
	code, body := ready()
	want := map[string]any{"account": "UNREACHABLE", "transaction": "SERVING", "saga": "NOT_SERVING"}
	if code != 503 || body["status"] != "unavailable" || !reflect.DeepEqual(body["services"], want) {
		t.Errorf("not ready: %d %v", code, body)
	}
}

func TestPanicAndDraining(t *testing.T) {
	var conn grpc.ClientConnInterface = (*grpc.ClientConn)(nil) // calls on it panic
	stopping := make(chan struct{})
	close(stopping)
	handler, err := gateway.New(gateway.Config{
		Account: conn, Transaction: conn, Saga: conn, Catalog: catalog(t), Log: slog.New(slog.DiscardHandler),
		Stopping: stopping,
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	defer server.Close()
	if p := problemIn(t, ask(t, "GET", server.URL+"/api/v1/books", "")); p.Status != 500 || p.Reason != rpc.ReasonInternal {
		t.Errorf("got %+v", p)
	}
	if a := ask(t, "GET", server.URL+"/readyz", ""); a.status != 503 || a.header.Get("Retry-After") != "1" || strings.TrimSpace(a.body) != `{"status":"draining"}` {
		t.Errorf("got %+v", a)
	}
	if _, err := gateway.New(gateway.Config{}); err == nil {
		t.Error("an empty configuration was accepted")
	}
}

func sorted(values []string) []string {
	sort.Strings(values)
	return values
}
