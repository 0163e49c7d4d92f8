package gateway

import (
	"cmp"
	"fmt"
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
	reasonReadModel        = "READ_MODEL_NOT_FOUND"
	reasonOverloaded       = "OVERLOADED"
)

// operation is one method on one path.
type operation struct {
	query    map[string]check // the parameters it takes and what they have to be; nil = whatever comes is ignored
	body     bool             // it takes a JSON document
	optional bool             // the document may be absent, which means {}
	keyed    bool             // it takes the header Idempotency-Key
	waits    bool             // it takes the query parameter wait
	bytesMax int64            // the largest body
	watch    *watch           // it answers with a stream of events, not by serve
	serve    http.Handler
}

// route is one path.
type route struct {
	segments   []string // "{accountId}" matches anything but the empty segment
	operations map[string]*operation
}

// routes are all paths, those with the fewest parameters first, so that a literal segment wins over a parameter.
type routes []*route

// newRoutes takes the paths, methods, parameters and bodies from the document; the handler serves them all, but for those that
// special names by their operation.
func newRoutes(document *openapi3.T, handler http.Handler, special map[string]operation) (routes, error) {
	var all routes
	for path, item := range document.Paths.Map() {
		for method, described := range item.Operations() {
			op := &operation{query: map[string]check{}, bytesMax: bodyBytesMax, serve: handler}
			if by, ok := special[described.OperationID]; ok {
				op.watch, op.serve, op.bytesMax = by.watch, by.serve, cmp.Or(by.bytesMax, op.bytesMax)
				delete(special, described.OperationID)
			}
			if body := described.RequestBody; body != nil {
				op.body, op.optional = true, !body.Value.Required
			}
			op.keyed = described.Parameters.GetByInAndName(openapi3.ParameterInHeader, keyHeader) != nil
			for _, p := range described.Parameters {
				if p.Value != nil && p.Value.In == openapi3.ParameterInQuery {
					var err error
					if op.query[p.Value.Name], err = checkOf(p.Value.Schema.Value); err != nil {
						return nil, fmt.Errorf("%s %s: parameter %s: %w", method, path, p.Value.Name, err)
					}
				}
			}
			_, op.waits = op.query["wait"]
			all.add(path, method, op)
		}
	}
	if len(special) > 0 {
		return nil, fmt.Errorf("the document has no %v", slices.Collect(maps.Keys(special)))
	}
	return all, nil
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

// find returns the route of a path's segments, if there is one, and the operation, or why there is none.
func (all routes) find(method, path string, segments []string) (*route, *operation, *rpc.Error) {
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

// value is what the path's segments have in place of the first parameter.
func (r *route) value(segments []string) string {
	for i, s := range r.segments {
		if parameter(s) {
			return segments[i]
		}
	}
	return ""
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
