package e2e

import (
	"encoding/json"
	"net/http"
	"testing"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
)

func TestHealth(t *testing.T) {
	must(t, http.StatusOK, "GET", "/healthz", nil)
	must(t, http.StatusOK, "GET", "/readyz", nil)
	for name, addr := range map[string]string{"account": now.account, "transaction": now.transaction, "saga": now.saga} {
		res, err := healthv1.NewHealthClient(dial(t, addr)).Check(t.Context(), &healthv1.HealthCheckRequest{})
		if err != nil || res.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("%s: %v %v", name, res, err)
		}
	}
}

func TestReflection(t *testing.T) {
	for addr, service := range map[string]string{
		now.account: "billing.account.v1.AccountService", now.transaction: "billing.transaction.v1.TransactionService", now.saga: "billing.saga.v1.SagaService",
	} {
		stream, err := reflectionv1.NewServerReflectionClient(dial(t, addr)).ServerReflectionInfo(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil {
			t.Fatal(err)
		}
		res, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]bool{}
		for _, s := range res.GetListServicesResponse().GetService() {
			found[s.GetName()] = true
		}
		for _, want := range []string{service, "billing.outbox.v1.OutboxService", "grpc.health.v1.Health"} {
			if !found[want] {
				t.Errorf("%s does not list %s: %v", addr, want, found)
			}
		}
	}
}

func TestOpenAPI(t *testing.T) {
	a := call(t, "GET", "/openapi.json", nil)
	var doc struct {
		OpenAPI string         `json:"openapi"`
		Paths   map[string]any `json:"paths"`
	}
	if err := json.Unmarshal(a.raw, &doc); err != nil || a.status != http.StatusOK || doc.OpenAPI == "" {
		t.Fatalf("%d %v %.200s", a.status, err, a.raw)
	}
	for _, path := range []string{"/api/v1/accounts", "/api/v1/transactions/transfer", "/api/v1/sagas/{sagaId}", "/api/v1/outbox/{service}/stats"} {
		if doc.Paths[path] == nil {
			t.Errorf("no %s", path)
		}
	}
}

// The correlation id travels from the request through every answer.
func TestCorrelation(t *testing.T) {
	a := call(t, "GET", "/api/v1/accounts", nil, "X-Correlation-ID", "abc-123")
	if a.header.Get("X-Correlation-ID") != "abc-123" {
		t.Errorf("given: %q", a.header.Get("X-Correlation-ID"))
	}
	if a = call(t, "GET", "/api/v1/accounts", nil); len(a.header.Get("X-Correlation-ID")) != 36 {
		t.Errorf("made: %q", a.header.Get("X-Correlation-ID"))
	}
}
