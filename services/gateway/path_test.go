package gateway_test

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// pathParameter is a parameter in a path of the OpenAPI document.
var pathParameter = regexp.MustCompile(`\{[^}]*\}`)

// operationsOf are the methods and paths that the gateway's own document lists.
func operationsOf(t *testing.T, url string) map[string][]string {
	t.Helper()
	var document struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.Unmarshal([]byte(ask(t, "GET", url+"/openapi.json", "").body), &document); err != nil {
		t.Fatal(err)
	}
	operations := map[string][]string{}
	for path, item := range document.Paths {
		for method := range item {
			if method = strings.ToUpper(method); method == http.MethodGet || method == http.MethodPost || method == http.MethodPatch ||
				method == http.MethodPut || method == http.MethodDelete {
				operations[path] = append(operations[path], method)
			}
		}
	}
	if len(operations) < 30 {
		t.Fatalf("the document lists %d paths only", len(operations))
	}
	return operations
}

// hostile are values of a path parameter that another parser could read as several segments, or as none.
var hostile = []string{
	"a%2Fbalance", "a%2fbalance", "a%2Fstatement", "a%2Fhistory", "a%2Fwatch", "a%2Fstatus", "a%2Flimits", "a%2Fcapture", "a%2Fvoid",
	"a%2Fretry", "a%2Fskip", "a%2Fcompensate", "a%2Fresume", "a%2Fresolve", "a%2Ftimeline", "a%2Fparked", "a%2Fstats", "a%2Frebuild",
	"%2Fbalance", "a%2F", "%2F", "a%2F..%2Fb", "..", ".", "%2e%2e", "%2E", "..%2F..", ".%2e", "%2e%2e%2f", "..;",
	"a%252Fbalance", "a%25252Fbalance", "%252e%252e", "a%5Cbalance", "a%255Cbalance", "a%00", "a%0d%0ab", "a%3Fb", "a%23b", "a;b", "a%3Bb", "a:b", "a%20b", "a%ff",
}

func TestPathParameterIsOneSegment(t *testing.T) {
	b := &backend{}
	url := start(t, b)
	for path, methods := range operationsOf(t, url) {
		for _, method := range methods {
			for _, at := range pathParameter.FindAllStringIndex(path, -1) {
				for _, value := range hostile {
					before := pathParameter.ReplaceAllString(path[:at[0]], "x")
					after := pathParameter.ReplaceAllString(path[at[1]:], "x")
					a := ask(t, method, url+before+value+after, "{}")
					if a.status != 400 && a.status != 404 || b.called != 0 {
						t.Fatalf("%s %s%s%s: %d %s, %d calls", method, before, value, after, a.status, a.body, b.called)
					}
					problemIn(t, a)
				}
			}
		}
	}
}

func TestEncodedSlashSeparatesNothing(t *testing.T) {
	b := &backend{}
	url := start(t, b)
	for path, methods := range operationsOf(t, url) {
		path = pathParameter.ReplaceAllString(path, "x")
		for at := 1; at < len(path); at++ {
			if path[at] != '/' {
				continue
			}
			for _, slash := range []string{"%2F", "%2f", "%252F", "%5C", "//", "/./", "/%2e/", "/x/../"} {
				asked := path[:at] + slash + path[at+1:]
				a := ask(t, methods[0], url+asked, "{}")
				if a.status != 400 && a.status != 404 && a.status != 405 || b.called != 0 {
					t.Fatalf("%s %s: %d %s, %d calls", methods[0], asked, a.status, a.body, b.called)
				}
			}
		}
	}
}

func TestPathParameterViolation(t *testing.T) {
	url := start(t, &backend{})
	p := problemIn(t, ask(t, "GET", url+account+"/a%2Fbalance", ""))
	if p.Status != 400 || len(p.Errors) != 1 || p.Errors[0].Field != "accountId" || p.Errors[0].Rule != "path_segment" || p.Errors[0].Value != "a/balance" {
		t.Errorf("got %+v", p)
	}
	if a := ask(t, "GET", url+"/api/v1/%61ccounts/%61", ""); a.status != 200 {
		t.Errorf("an encoded letter is the letter: %+v", a)
	}
}

// Every route that the document lists is served: the mux finds the route that was checked.
func TestEveryRouteReachesItsService(t *testing.T) {
	b := &backend{}
	url := start(t, b)
	for path, methods := range operationsOf(t, url) {
		for _, method := range methods {
			if strings.HasSuffix(path, "/watch") {
				continue // tested with the watches
			}
			asked := strings.NewReplacer("{service}", "account", "{name}", "accounts").Replace(path)
			body := "{}"
			if method == http.MethodGet || strings.Contains(path, "/readmodels/") || strings.HasSuffix(path, "/reconcile") {
				body = ""
			}
			if strings.HasSuffix(path, "/batch") {
				body = `{"transactions":[{}]}`
			}
			if a := ask(t, method, url+pathParameter.ReplaceAllString(asked, "x"), body); strings.Contains(a.body, "There is nothing at") {
				t.Errorf("%s %s: %d %s", method, asked, a.status, a.body)
			}
		}
	}
}
