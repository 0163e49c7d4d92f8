package e2e

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
)

// seen records what the tests ask over REST: every path of proto/gateway.yaml needs a normal answer and a refusal, and no answer
// may have a status or a header that the served OpenAPI document does not tell of.
type seen struct {
	document document

	mu      sync.Mutex
	answers map[string][2]bool // "GET /api/v1/accounts/{account_id}": a normal answer, a refusal
	untold  map[string]bool    // what the document does not tell of
}

// document is what the OpenAPI document tells of answers: the headers of each status of each "GET /api/v1/accounts/{accountId}".
type document map[string]map[string]map[string]bool

func readDocument(url string) (document, error) {
	res, err := http.Get(url)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var doc struct {
		Paths map[string]map[string]struct {
			Responses map[string]struct{ Headers map[string]any }
		}
	}
	if err := json.NewDecoder(res.Body).Decode(&doc); err != nil {
		return nil, fmt.Errorf("read %s: %w", url, err)
	}
	told := document{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			statuses := map[string]map[string]bool{}
			for status, response := range op.Responses {
				statuses[status] = map[string]bool{}
				for name := range response.Headers {
					statuses[status][http.CanonicalHeaderKey(name)] = true
				}
			}
			told[strings.ToUpper(method)+" "+path] = statuses
		}
	}
	if len(told) == 0 {
		return nil, fmt.Errorf("%s has no paths", url)
	}
	return told, nil
}

// plainHeaders are those that HTTP itself brings.
var plainHeaders = map[string]bool{
	"Allow": true, "Cache-Control": true, "Content-Length": true, "Content-Type": true, "Date": true, "Vary": true, "X-Accel-Buffering": true, "X-Content-Type-Options": true,
}

// untold is what of an answer the document does not tell of; nothing for paths that it does not have.
func (d document) untold(r *http.Request, res *http.Response) (what []string) {
	for route, statuses := range d {
		if !matches(route, r.Method+" "+r.URL.Path) {
			continue
		}
		headers, ok := statuses[strconv.Itoa(res.StatusCode)]
		if !ok {
			what = append(what, fmt.Sprintf("%s answers %d", route, res.StatusCode))
			continue
		}
		for name := range res.Header {
			if !headers[name] && !plainHeaders[name] {
				what = append(what, fmt.Sprintf("%s answers %d with %s", route, res.StatusCode, name))
			}
		}
	}
	return what
}

// RoundTrip is http.RoundTripper's.
func (s *seen) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return res, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, what := range s.document.untold(r, res) {
		s.untold[what] = true
	}
	for route, a := range s.answers {
		if matches(route, r.Method+" "+r.URL.Path) {
			a[0], a[1] = a[0] || res.StatusCode < 300, a[1] || res.StatusCode >= 400
			s.answers[route] = a
		}
	}
	return res, nil
}

// matches: a parameter stands for one segment.
func matches(route, path string) bool {
	a, b := strings.Split(route, "/"), strings.Split(path, "/")
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] && !strings.HasPrefix(a[i], "{") {
			return false
		}
	}
	return true
}

// routes are the paths of the REST mapping.
func routes() (map[string][2]bool, error) {
	raw, err := os.ReadFile("../../proto/gateway.yaml")
	if err != nil {
		return nil, err
	}
	var doc struct {
		HTTP struct{ Rules []map[string]string } `yaml:"http"`
	}
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return nil, err
	}
	found := map[string][2]bool{}
	for _, r := range doc.HTTP.Rules {
		for _, verb := range []string{"get", "post", "patch", "put", "delete"} {
			if path, ok := r[verb]; ok {
				found[strings.ToUpper(verb)+" "+path] = [2]bool{}
			}
		}
	}
	if len(found) == 0 {
		return nil, errors.New("proto/gateway.yaml has no rules")
	}
	return found, nil
}

// neverRefused are paths that take nothing which could be wrong.
var neverRefused = map[string]bool{"GET /api/v1/currencies": true, "GET /api/v1/books": true, "GET /api/v1/books/reconcile": true}

// missing says what no test has asked for, in a run of all tests.
func (s *seen) missing() (out []string) {
	if flag.Lookup("test.run").Value.String() != "" || flag.Lookup("test.skip").Value.String() != "" {
		return nil
	}
	for route, a := range s.answers {
		if !a[0] {
			out = append(out, fmt.Sprintf("%s has had no normal answer", route))
		}
		if !a[1] && !neverRefused[route] {
			out = append(out, fmt.Sprintf("%s has had no refusal", route))
		}
	}
	slices.Sort(out)
	return out
}
