package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"strings"

	"example.com/billing/pkg/rpc"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Problem is the body of every error: RFC 9457, application/problem+json.
type Problem struct {
	Type          string       `json:"type"`   // "urn:billing:problem:" and the reason, lower case with hyphens
	Title         string       `json:"title"`  // the reason's sentence, always the same
	Status        int          `json:"status"` // the HTTP status
	Detail        string       `json:"detail"` // what happened to this request
	Reason        string       `json:"reason"` // a reason of billing.error.v1
	CorrelationID string       `json:"correlationId"`
	Errors        []FieldError `json:"errors,omitempty"` // with INVALID_ARGUMENT: what is wrong where
}

// FieldError is one thing wrong with a request.
type FieldError struct {
	Field string `json:"field"`
	Rule  string `json:"rule"`
	Value string `json:"value"`
}

// onError answers with what a service, or the decoding of the request, came back with.
func (g *gateway) onError(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	if body, ok := r.Body.(*content); ok && body.failure != nil {
		g.problem(w, r, body.failure)
		return
	}
	failure := rpc.ErrorOf(err)
	if failure.Reason == rpc.ReasonCancelled && r.Context().Err() == nil && status.Code(err) == codes.Canceled {
		failure = rpc.Fail(rpc.ReasonUnavailable, "").Because(err) // the caller is there; the connection to the service went
	}
	switch failure.Reason {
	case "RESOURCE_EXHAUSTED":
		failure.Reason = reasonOverloaded
	case "UNIMPLEMENTED": // an older version of the service, which does not know the method: nothing was done
		failure = rpc.Fail(reasonRouteNotFound, "The running version of the service offers nothing at %s.", shorten(r.URL.Path)).Because(err)
	}
	g.problem(w, r.WithContext(ctx), failure)
}

// onRoutingError answers what the mux cannot route. Routing is done before it, so this is the last resort.
func (g *gateway) onRoutingError(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, httpStatus int) {
	failure := rpc.Fail(reasonRouteNotFound, "There is nothing at %s.", shorten(r.URL.Path))
	if httpStatus == http.StatusMethodNotAllowed {
		failure = rpc.Fail(reasonMethodNotAllowed, "%s does not take this method.", shorten(r.URL.Path))
	}
	g.problem(w, r, failure)
}

// problem writes the error as a problem document. A reason that this build does not know, from a newer service, keeps its name
// and gets its gRPC code's HTTP status; anything else unknown is INTERNAL.
func (g *gateway) problem(w http.ResponseWriter, r *http.Request, e *rpc.Error) {
	caller := rpc.CallerFrom(r.Context())
	reason, known := g.catalog.Lookup(e.Reason)
	detail := e.Message
	if !known && detail != "" && e.Err != nil {
		code := status.Code(e.Err)
		reason = rpc.Reason{Name: e.Reason, HTTP: runtime.HTTPStatusFromCode(code)}
		reason.Title = http.StatusText(reason.HTTP)
		known = true
	}
	if !known {
		reason, _ = g.catalog.Lookup(rpc.ReasonInternal)
	}
	if reason.Name == rpc.ReasonInternal { // a service's own text may name the id of another call
		detail = rpc.BrokenMessage(caller.CorrelationID)
	}
	if reason.HTTP == http.StatusInternalServerError {
		g.log.LogAttrs(r.Context(), slog.LevelError, "http internal error",
			slog.Any("err", e), slog.String("path", r.URL.Path), slog.String("correlationId", caller.CorrelationID))
	}
	if detail == "" {
		detail = reason.Title
	}
	out := Problem{
		Type: problemType(reason.Name), Title: reason.Title, Status: reason.HTTP, Detail: detail, Reason: reason.Name, CorrelationID: caller.CorrelationID,
	}
	for _, v := range e.Violations {
		out.Errors = append(out.Errors, FieldError(v))
	}
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(out); err != nil {
		panic(err) // strings and numbers only
	}
	h := w.Header()
	for _, of := range []string{"Location", "Idempotency-Replayed", "X-Next-Page-Token", "X-Consistency-Token", "Trailer", "Transfer-Encoding"} {
		h.Del(of)
	}
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	if retryable(reason.HTTP) {
		h.Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(e.RetryAfter.Seconds())))))
	}
	w.WriteHeader(reason.HTTP)
	_, _ = w.Write(body.Bytes())
}

func problemType(reason string) string {
	return "urn:billing:problem:" + strings.ReplaceAll(strings.ToLower(reason), "_", "-")
}

// retryable says whether the answer tells when to ask again.
func retryable(status int) bool {
	return status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable
}

// plain is the document as an OpenAPI example has it.
func (p Problem) plain() any {
	raw, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings and numbers only
	}
	var out any
	_ = json.Unmarshal(raw, &out) // it was just made
	return out
}
