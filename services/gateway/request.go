package gateway

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"example.com/billing/pkg/rpc"
)

const (
	drainBytesMax     = 16 << 20
	drainTimeout      = 5 * time.Second
	idempotencyKeyMax = 128
	keyHeader         = "Idempotency-Key"
)

// prepare checks everything about a request that the contracts' JSON does not, and returns it as the mux shall see it, with how
// long the caller wants to wait.
func (g *gateway) prepare(r *http.Request, found *route, op *operation, segments []string) (*http.Request, time.Duration, *rpc.Error) {
	if op.query == nil {
		return r, 0, nil
	}
	caller := rpc.CallerFrom(r.Context())
	var v rpc.Fields
	if !utf8.ValidString(r.URL.Path) {
		v.Add("path", "utf8", r.URL.Path)
	} else {
		checkPath(&v, found, segments)
	}
	query := checkQuery(&v, r.URL.RawQuery, op.query)
	var wait time.Duration
	if op.waits && query.Has("wait") {
		wait = checkWait(&v, query.Get("wait"), &caller)
		query.Del("wait")
	}
	if op.keyed {
		caller.IdempotencyKey = checkIdempotencyKey(&v, r.Header.Values(keyHeader))
	}
	if absent := op.optional && r.ContentLength == 0; op.body && !absent {
		if failure := checkMediaType(r.Header); failure != nil {
			return nil, 0, failure
		}
	}
	if err := v.Err(); err != nil {
		return nil, 0, rpc.ErrorOf(err)
	}
	out := r.Clone(rpc.WithCaller(r.Context(), caller))
	if out.Method == http.MethodHead {
		out.Method = http.MethodGet
	}
	out.URL.RawQuery = query.Encode()
	// These two have a meaning for grpc-gateway's runtime that the API does not promise.
	out.Header.Del("Grpc-Timeout")
	out.Header.Del("Te")
	out.Body = http.NoBody
	if op.body {
		content, failure := readBody(r, found, op)
		if failure != nil {
			return nil, 0, failure
		}
		out.Body = content
	}
	return out, wait, nil
}

// checkIdempotencyKey refuses what could not travel on as it is: a key that got lost on the way would be no key at all.
func checkIdempotencyKey(v *rpc.Fields, values []string) string {
	switch {
	case len(values) == 0:
		return ""
	case len(values) > 1:
		v.Add("idempotencyKey", "once", strings.Join(values, ","))
	case len(values[0]) > idempotencyKeyMax:
		v.Add("idempotencyKey", "max_length:"+strconv.Itoa(idempotencyKeyMax), values[0])
	case values[0] == "" || strings.ContainsFunc(values[0], func(r rune) bool { return r < ' ' || r > '~' }):
		v.Add("idempotencyKey", "printable_ascii", values[0])
	}
	return values[0]
}

func checkMediaType(h http.Header) *rpc.Error {
	if encoding := h.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return rpc.Fail(reasonMediaType, "The body must be plain application/json, not in Content-Encoding %s.", shorten(encoding))
	}
	values := h.Values("Content-Type")
	if len(values) == 0 {
		return nil
	}
	media, params, err := mime.ParseMediaType(values[0])
	charset := params["charset"]
	if len(values) > 1 || err != nil || media != "application/json" || charset != "" && !strings.EqualFold(charset, "utf-8") {
		return rpc.Fail(reasonMediaType, "The body must be application/json, not %s.", shorten(strings.Join(values, ", ")))
	}
	return nil
}

// content is a body that was read and looked over: one JSON object within the limits. The marshaler leaves in it why the object
// does not fit the message, because the generated handlers keep only an error's text.
type content struct {
	*bytes.Reader
	raw     []byte
	taken   []string   // fields that come from elsewhere: the path's parameters, and wait
	failure *rpc.Error // why it does not fit the message
}

// Close does nothing: the connection's own body is net/http's.
func (c *content) Close() error { return nil }

func readBody(r *http.Request, found *route, op *operation) (*content, *rpc.Error) {
	if r.ContentLength > op.bytesMax {
		return nil, tooLarge(op)
	}
	raw, err := io.ReadAll(io.LimitReader(r.Body, op.bytesMax+1))
	if err != nil {
		return nil, rpc.Fail(rpc.ReasonInvalidArgument, "The body could not be read to its end.").Because(err)
	}
	if int64(len(raw)) > op.bytesMax {
		return nil, tooLarge(op)
	}
	if op.optional && len(raw) == 0 {
		raw = []byte("{}")
	}
	if failure := checkJSON(raw); failure != nil {
		return nil, failure
	}
	return &content{Reader: bytes.NewReader(raw), raw: raw, taken: append(found.params(), "wait")}, nil
}

func tooLarge(op *operation) *rpc.Error {
	return rpc.Fail(reasonBodyTooLarge, "The body is larger than %d bytes.", op.bytesMax)
}

// drain reads on, for a while, so that a client still sending gets to read the answer. One that asked first (Expect:
// 100-continue) has not begun.
func drain(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Expect") != "" {
		return
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(drainTimeout)) // where it cannot be set, the bytes are the limit
	if _, err := io.CopyN(io.Discard, r.Body, drainBytesMax); !errors.Is(err, io.EOF) {
		w.Header().Set("Connection", "close")
		return
	}
	_ = control.SetReadDeadline(time.Time{})
}
