package e2e

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
)

// seen records what the tests ask over REST: every path of proto/gateway.yaml needs a normal answer and a refusal.
type seen struct {
	mu      sync.Mutex
	answers map[string][2]bool // "GET /api/v1/accounts/{account_id}": a normal answer, a refusal
}

// RoundTrip is http.RoundTripper's.
func (s *seen) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return res, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
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
