package gateway_test

import (
	"context"
	"encoding/json"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"example.com/billing/services/gateway"

	"github.com/getkin/kin-openapi/openapi3"
	"go.yaml.in/yaml/v3"
)

// served is the document as a client gets it.
func served(t *testing.T) *openapi3.T {
	t.Helper()
	a := ask(t, "GET", start(t, &backend{})+"/openapi.json", "")
	if a.status != 200 || a.header.Get("Content-Type") != "application/json" {
		t.Fatalf("got %d %v", a.status, a.header)
	}
	document, err := openapi3.NewLoader().LoadFromData([]byte(a.body))
	if err != nil {
		t.Fatal(err)
	}
	return document
}

func TestOpenAPIIsValid(t *testing.T) {
	document := served(t)
	if err := document.Validate(context.Background()); err != nil {
		t.Error(err)
	}
	for _, tag := range document.Tags {
		if strings.Contains(tag.Description, "Internal") {
			t.Errorf("internal service %s", tag.Name)
		}
	}
	for _, gone := range []string{"CreateAccountResponse", "NullValue", "ListSagasResponse"} {
		if document.Components.Schemas[gone] != nil {
			t.Errorf("schema %s is of no use", gone)
		}
	}
	example := map[string]any{}
	if err := json.Unmarshal([]byte(seedSaga), &example); err != nil {
		t.Fatal(err)
	}
	if err := document.Components.Schemas["Saga"].Value.VisitJSON(example); err != nil {
		t.Errorf("the seed's example: %v", err)
	}
	delete(example, "steps")
	if err := document.Components.Schemas["Saga"].Value.VisitJSON(example); err == nil {
		t.Error("a saga without steps is valid")
	}
}

var parameterName = regexp.MustCompile(`_([a-z])`)

func TestOpenAPIHasEveryRouteAndNoOther(t *testing.T) {
	raw, err := os.ReadFile("../../proto/gateway.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		HTTP struct {
			Rules []map[string]string `yaml:"rules"`
		} `yaml:"http"`
	}
	if err := yaml.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, rule := range config.HTTP.Rules {
		for _, method := range []string{"get", "post", "put", "patch", "delete"} {
			if path, ok := rule[method]; ok {
				path = parameterName.ReplaceAllStringFunc(path, func(s string) string { return strings.ToUpper(s[1:]) })
				want = append(want, strings.ToUpper(method)+" "+path)
			}
		}
	}
	for path, item := range served(t).Paths.Map() {
		for method := range item.Operations() {
			got = append(got, method+" "+path)
		}
	}
	if len(want) == 0 || !reflect.DeepEqual(sorted(got), sorted(want)) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

func TestOpenAPISaysWhatHTTPAdds(t *testing.T) {
	document := served(t)
	op := func(method, path string) *openapi3.Operation { return document.Paths.Value(path).GetOperation(method) }
	for _, path := range []string{"topup", "withdraw", "transfer"} {
		post := op("POST", transactions+"/"+path)
		if post.Parameters.GetByInAndName("query", "wait") == nil || post.Parameters.GetByInAndName("header", "Idempotency-Key") == nil {
			t.Errorf("%s: parameters", path)
		}
		for _, status := range []string{"200", "202", "400", "409", "413", "415", "422", "429", "503"} {
			if post.Responses.Value(status) == nil {
				t.Errorf("%s: no %s", path, status)
			}
		}
		if post.Responses.Value("202").Value.Headers["Location"] == nil || post.Responses.Value("503").Value.Content["application/problem+json"] == nil {
			t.Errorf("%s: headers or problem", path)
		}
		body := post.RequestBody.Value.Content["application/json"].Schema.Value
		if body.Properties["wait"] != nil || !reflect.DeepEqual(body.Required, []string{"amount", "currency", "destinationAccountId", "sourceAccountId"}) {
			t.Errorf("%s: body %v", path, body.Required)
		}
	}
	if created := op("POST", "/api/v1/accounts").Responses; created.Value("201") == nil || created.Value("200") == nil {
		t.Error("accounts: no 201 or no 200")
	}
	if op("GET", "/api/v1/sagas").Responses.Value("200").Value.Headers["X-Next-Page-Token"] == nil {
		t.Error("sagas: no X-Next-Page-Token")
	}
	if op("GET", "/api/v1/sagas/{sagaId}").Parameters.GetByInAndName("header", "X-Correlation-ID") == nil {
		t.Error("no X-Correlation-ID")
	}
}

// Every operation has an example of what it takes and of each answer, and each fits its schema.
func TestOpenAPIExamples(t *testing.T) {
	document := served(t)
	uuids := openapi3.WithStringFormatValidator("uuid", openapi3.NewRegexpFormatValidator(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`))
	check := func(name string, content openapi3.Content) {
		for media, of := range content {
			all := map[string]any{"": of.Example}
			if of.Example == nil {
				all = map[string]any{}
			}
			for key, example := range of.Examples {
				all[key] = example.Value.Value
			}
			if len(all) == 0 {
				t.Errorf("%s %s: no example", name, media)
			}
			for key, example := range all {
				if err := of.Schema.Value.VisitJSON(example, openapi3.EnableFormatValidation(), uuids); err != nil {
					t.Errorf("%s %s %s: %v", name, media, key, err)
				}
			}
		}
	}
	for path, item := range document.Paths.Map() {
		for method, op := range item.Operations() {
			name := method + " " + path
			if op.RequestBody != nil {
				check(name, op.RequestBody.Value.Content)
			}
			for status, response := range op.Responses.Map() {
				if len(response.Value.Content) == 0 && status != "204" {
					t.Errorf("%s %s: no content", name, status)
				}
				check(name+" "+status, response.Value.Content)
				if *response.Value.Description == "" || response.Value.Headers["X-Correlation-ID"] == nil {
					t.Errorf("%s %s: no description or no X-Correlation-ID", name, status)
				}
			}
		}
	}
}

// Whatever the catalog has can be answered somewhere, but for what only the routing, the sagas or the services themselves see.
func TestOpenAPIHasEveryReason(t *testing.T) {
	elsewhere := []string{
		"ROUTE_NOT_FOUND", "METHOD_NOT_ALLOWED", "CANCELLED", "INSUFFICIENT_FUNDS", "MIN_BALANCE", "MAX_BALANCE", "TRANSACTION_ENDED", "POSTING_CANCELLED", "SAGA_TIMED_OUT",
		"SAGA_STOPPED",
	}
	seen := map[string]bool{}
	document := served(t)
	for _, item := range document.Paths.Map() {
		for _, op := range item.Operations() {
			for _, response := range op.Responses.Map() {
				if media := response.Value.Content["application/problem+json"]; media != nil {
					for reason := range media.Examples {
						seen[reason] = true
					}
				}
			}
		}
	}
	for _, reason := range catalog(t).All() {
		if seen[reason.Name] == slices.Contains(elsewhere, reason.Name) {
			t.Errorf("%s: in an operation: %v", reason.Name, seen[reason.Name])
		}
	}
}

// The document says who takes a key and who waits; the rest of the requests has a body that cannot be absent.
func TestOpenAPIParameters(t *testing.T) {
	type takes struct{ key, wait, mayBeEmpty bool }
	want := map[string]takes{
		account: {key: true}, account + "/{accountId}/status": {key: true}, account + "/{accountId}/limits": {key: true},
		topup: {true, true, false}, transactions + "/withdraw": {true, true, false}, transactions + "/transfer": {true, true, false},
		transactions + "/payment": {true, true, false}, transactions + "/refund": {true, true, false}, batch: {},
		"/api/v1/holds": {true, true, false}, "/api/v1/holds/{holdId}/capture": {true, true, false}, "/api/v1/holds/{holdId}/void": {false, true, true},
		"/api/v1/books/reconcile": {false, true, true}, "/api/v1/readmodels/{name}/rebuild": {false, true, true},
	}
	document := served(t)
	for path, item := range document.Paths.Map() {
		for method, op := range item.Operations() {
			got := takes{
				op.Parameters.GetByInAndName("header", "Idempotency-Key") != nil, op.Parameters.GetByInAndName("query", "wait") != nil,
				op.RequestBody != nil && !op.RequestBody.Value.Required,
			}
			if method == "GET" && got != (takes{}) || method != "GET" && got != want[path] {
				t.Errorf("%s %s takes %+v", method, path, got)
			}
			if method != "GET" {
				delete(want, path)
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
	for _, path := range []string{account + "/{accountId}", transactions + "/{transactionId}", "/api/v1/sagas/{sagaId}"} {
		op := document.Paths.Value(path + "/watch").Get
		if op.Responses.Value("200").Value.Content["text/event-stream"] == nil || op.Parameters.GetByInAndName("header", "Last-Event-ID") == nil {
			t.Errorf("%s: not a watch", path)
		}
	}
	if document.Components.Schemas["SagaEntry"] == nil || document.Components.Schemas["RecordedEvent"] == nil {
		t.Error("the watches' data have no schema")
	}
}

// Every operation that can be shed says so, with the header that tells when to ask again.
func TestOpenAPITellsOfOverload(t *testing.T) {
	document := served(t)
	for _, path := range []string{
		topup, transactions + "/withdraw", transactions + "/transfer", transactions + "/payment", transactions + "/refund", batch,
		"/api/v1/holds", "/api/v1/holds/{holdId}/capture", "/api/v1/holds/{holdId}/void",
	} {
		shed := document.Paths.Value(path).Post.Responses.Value("429")
		if shed == nil || shed.Value.Headers["Retry-After"] == nil || shed.Value.Content["application/problem+json"].Examples["OVERLOADED"] == nil {
			t.Errorf("%s: not documented", path)
		}
	}
}

func TestDocumentIsStable(t *testing.T) {
	first, second := documentJSON(t), documentJSON(t)
	if first != second {
		t.Error("the document differs from one time to the next")
	}
}

func documentJSON(t *testing.T) string {
	t.Helper()
	document, err := gateway.OpenAPI(catalog(t))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := document.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
