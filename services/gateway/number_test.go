package gateway_test

import (
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/structpb"

	"example.com/billing/services/gateway"
)

// takesMetadata are the paths whose body has metadata.
func takesMetadata(t *testing.T, url string) []string {
	t.Helper()
	var document struct {
		Paths map[string]map[string]struct {
			RequestBody struct {
				Content map[string]struct{ Schema map[string]any }
			}
		}
		Components struct {
			Schemas map[string]struct{ Properties map[string]any }
		}
	}
	if err := json.Unmarshal([]byte(ask(t, "GET", url+"/openapi.json", "").body), &document); err != nil {
		t.Fatal(err)
	}
	var paths []string
	for path, item := range document.Paths {
		schema := item["post"].RequestBody.Content["application/json"].Schema
		properties, _ := schema["properties"].(map[string]any)
		if ref, ok := schema["$ref"].(string); ok {
			properties = document.Components.Schemas[ref[strings.LastIndex(ref, "/")+1:]].Properties
		}
		if _, ok := properties["metadata"]; ok {
			paths = append(paths, pathParameter.ReplaceAllString(path, "x"))
		}
	}
	if len(paths) != 8 { // accounts, holds, captures, top-ups, withdrawals, transfers, payments, refunds
		t.Fatalf("metadata is taken by %v", paths)
	}
	return paths
}

func TestMetadataNumbersAreKeptOrRefused(t *testing.T) {
	b := &backend{}
	url := start(t, b)
	const refused = `{"orderId":9007199254740993,"fine":[1,0.1,-9007199254740991,"9007199254740993"],"deep":[{"rate":0.1234567890123456789},1e400]}`
	const rule = "range:-9007199254740991..9007199254740991"
	want := []gateway.FieldError{
		{Field: "metadata.deep[0].rate", Rule: "exact_double", Value: "0.1234567890123456789"},
		{Field: "metadata.deep[1]", Rule: rule, Value: "1e400"},
		{Field: "metadata.orderId", Rule: rule, Value: "9007199254740993"},
	}
	for _, path := range takesMetadata(t, url) {
		p := problemIn(t, ask(t, "POST", url+path, `{"metadata":`+refused+`}`))
		if p.Status != 400 || len(p.Errors) != 3 || p.Errors[0] != want[0] || p.Errors[1] != want[1] || p.Errors[2] != want[2] || b.called != 0 {
			t.Errorf("%s: %+v", path, p)
		}
	}
	a := ask(t, "POST", url+batch, `{"transactions":[{"metadata":`+refused+`}]}`)
	if a.status != 200 || !strings.Contains(a.body, `"field":"metadata.orderId","rule":"`+rule+`","value":"9007199254740993"`) || b.called != 0 {
		t.Errorf("batch: %+v", a)
	}
	if a := ask(t, "POST", url+topup, `{"metadata":{"orderId":9007199254740991,"rate":0.1,"n":1e3}}`); a.status != 200 {
		t.Fatalf("kept: %+v", a)
	}
	sent := b.request.(interface{ GetMetadata() *structpb.Struct }).GetMetadata().AsMap()
	if sent["orderId"] != 9007199254740991.0 || sent["rate"] != 0.1 || sent["n"] != 1000.0 {
		t.Errorf("sent on: %v", sent)
	}
}
