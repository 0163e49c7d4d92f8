package gateway_test

import (
	"context"
	"encoding/json"
	"os"
	"reflect"
	"regexp"
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
		post := op("POST", "/api/v1/transactions/"+path)
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
