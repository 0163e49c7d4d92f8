package gateway

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"example.com/billing/pkg/rpc"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
)

// segmentsOf takes a path apart and decodes each segment once. An encoded slash stays inside of its segment.
func segmentsOf(u *url.URL) []string {
	segments := strings.Split(strings.TrimPrefix(u.EscapedPath(), "/"), "/")
	for i, s := range segments {
		if decoded, err := url.PathUnescape(s); err == nil { // net/url has decoded the whole path already
			segments[i] = decoded
		}
	}
	return segments
}

// checkPath wants path parameters that every parser reads as one segment: of unreserved characters (RFC 3986), and
// neither "." nor "..". Whoever decodes the path once more, or tidies it up, still finds the same route.
func checkPath(v *rpc.Fields, found *route, segments []string) {
	for i, want := range found.segments {
		if parameter(want) && !plainSegment(segments[i]) {
			v.Add(strings.Trim(want, "{}"), "path_segment", segments[i])
		}
	}
}

func plainSegment(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '-', c == '.', c == '_', c == '~':
		default:
			return false
		}
	}
	return s != "" && s != "." && s != ".."
}

type routeKey struct{}

// withRoute remembers the route whose checks the request has passed.
func withRoute(ctx context.Context, found *route) context.Context {
	return context.WithValue(ctx, routeKey{}, found)
}

// onlyChecked has the mux of grpc-gateway, which parses the path by itself, run no other route than the one whose
// checks the request has passed.
func (g *gateway) onlyChecked(next runtime.HandlerFunc) runtime.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request, params map[string]string) {
		pattern, _ := runtime.HTTPPattern(r.Context())
		checked, ok := r.Context().Value(routeKey{}).(*route)
		if !ok || !checked.is(pattern) {
			g.problem(w, r, rpc.Fail(reasonRouteNotFound, "There is nothing at %s.", shorten(r.URL.Path)))
			return
		}
		next(w, r, params)
	}
}

// is says whether a pattern of grpc-gateway has the same literals and parameters in the same places.
func (r *route) is(pattern runtime.Pattern) bool {
	segments := strings.Split(pattern.String(), "/")[1:]
	if len(segments) != len(r.segments) {
		return false
	}
	for i, want := range r.segments {
		if parameter(want) != parameter(segments[i]) || !parameter(want) && want != segments[i] {
			return false
		}
	}
	return true
}
