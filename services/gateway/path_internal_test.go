package gateway

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"example.com/billing/pkg/rpc"
	errorv1 "example.com/billing/proto/gen/go/billing/error/v1"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
)

// The mux of grpc-gateway decodes the path by itself. Here it finds another route than the one that was checked.
func TestOnlyTheCheckedRouteRuns(t *testing.T) {
	catalog, err := rpc.NewCatalog("billing", errorv1.Reason(0).Descriptor(), errorv1.E_Mapping)
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{catalog: catalog}
	ran := 0
	mux := runtime.NewServeMux(runtime.WithMiddlewares(g.onlyChecked))
	for _, path := range []string{"/api/v1/accounts/{account_id}", "/api/v1/accounts/{account_id}/balance"} {
		if err := mux.HandlePath(http.MethodGet, path, func(http.ResponseWriter, *http.Request, map[string]string) { ran++ }); err != nil {
			t.Fatal(err)
		}
	}
	account := &route{segments: []string{"api", "v1", "accounts", "{accountId}"}}
	for _, tt := range []struct {
		path    string
		checked *route
		runs    bool
	}{
		{"/api/v1/accounts/a", account, true},
		{"/api/v1/accounts/a%2Fbalance", account, false},
		{"/api/v1/accounts/a/balance", account, false},
		{"/api/v1/accounts/a", nil, false},
	} {
		ran = 0
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, tt.path, http.NoBody)
		if tt.checked != nil {
			r = r.WithContext(withRoute(r.Context(), tt.checked))
		}
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		if (ran == 1) != tt.runs || !tt.runs && w.Code != http.StatusNotFound {
			t.Errorf("%s: ran %d times, status %d", tt.path, ran, w.Code)
		}
	}
}
