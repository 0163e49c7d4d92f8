package gateway

import (
	"cmp"
	"maps"
	"net/http"
	"slices"
	"strings"

	"example.com/billing/pkg/rpc"

	"github.com/getkin/kin-openapi/openapi3"
)

// Reasons that only the gateway answers with.
const (
	reasonRouteNotFound    = "ROUTE_NOT_FOUND"
	reasonMethodNotAllowed = "METHOD_NOT_ALLOWED"
	reasonBodyTooLarge     = "BODY_TOO_LARGE"
	reasonMediaType        = "MEDIA_TYPE_NOT_SUPPORTED"
	reasonServiceNotFound  = "SERVICE_NOT_FOUND"
	reasonOverloaded       = "OVERLOADED"
)

// operation is one method on one path.
type operation struct {
	query map[string]string // the parameters it takes and their types; nil = whatever comes is ignored
	body  bool              // it takes a JSON document
	waits bool              // it takes the query parameter wait
	serve http.Handler
}

// route is one path.
type route struct {
	segments   []string // "{accountId}" matches anything but the empty segment
	operations map[string]*operation
}

// routes are all paths, those with the fewest parameters first, so that a literal segment wins over a parameter.
type routes []*route

// newRoutes takes the paths, methods and query parameters from the document; the handler serves them all.
func newRoutes(document *openapi3.T, handler http.Handler) routes {
	var all routes
	for path, item := range document.Paths.Map() {
		for method, described := range item.Operations() {
			op := &operation{query: map[string]string{}, body: described.RequestBody != nil, serve: handler}
			for _, p := range described.Parameters {
				if p.Value != nil && p.Value.In == openapi3.ParameterInQuery {
					op.query[p.Value.Name] = strings.Join(p.Value.Schema.Value.Type.Slice(), "|")
				}
			}
			_, op.waits = op.query["wait"]
			all.add(path, method, op)
		}
	}
	return all
}

func (all *routes) add(path, method string, op *operation) {
	segments := strings.Split(path, "/")[1:]
	for _, r := range *all {
		if slices.Equal(r.segments, segments) {
			r.operations[method] = op
			return
		}
	}
	*all = append(*all, &route{segments: segments, operations: map[string]*operation{method: op}})
	slices.SortStableFunc(*all, func(a, b *route) int { return cmp.Compare(len(a.params()), len(b.params())) })
}

// find returns the path's route, if there is one, and the operation, or why there is none.
func (all routes) find(method, path string) (*route, *operation, *rpc.Error) {
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	at := slices.IndexFunc(all, func(r *route) bool { return r.matches(segments) })
	if at < 0 {
		return nil, nil, rpc.Fail(reasonRouteNotFound, "There is nothing at %s.", shorten(path))
	}
	found := all[at]
	if method == http.MethodHead {
		method = http.MethodGet // net/http leaves out the body
	}
	op, ok := found.operations[method]
	if !ok {
		return found, nil, rpc.Fail(reasonMethodNotAllowed, "%s takes %s.", shorten(path), found.allow())
	}
	return found, op, nil
}

func (r *route) matches(segments []string) bool {
	if len(segments) != len(r.segments) {
		return false
	}
	for i, want := range r.segments {
		if parameter(want) && segments[i] == "" || !parameter(want) && segments[i] != want {
			return false
		}
	}
	return true
}

// params are the names of the path's parameters.
func (r *route) params() []string {
	var names []string
	for _, s := range r.segments {
		if parameter(s) {
			names = append(names, strings.Trim(s, "{}"))
		}
	}
	return names
}

func parameter(segment string) bool { return strings.HasPrefix(segment, "{") }

// allow is the Allow header's value.
func (r *route) allow() string {
	methods := append(slices.Collect(maps.Keys(r.operations)), http.MethodOptions)
	if _, ok := r.operations[http.MethodGet]; ok {
		methods = append(methods, http.MethodHead)
	}
	slices.Sort(methods)
	return strings.Join(methods, ", ")
}

// shorten keeps what a caller sent from filling the answer.
func shorten(s string) string {
	const longest = 128
	s = strings.ToValidUTF8(s, "\uFFFD")
	if runes := []rune(s); len(runes) > longest {
		return string(runes[:longest]) + "…"
	}
	return s
}
