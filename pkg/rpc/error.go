package rpc

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// valueMax is the longest value, in characters, that a violation repeats.
const valueMax = 128

// messageMax is the longest message, in characters, that leaves.
const messageMax = 1024

// Violation is one thing wrong with a request's shape.
type Violation struct {
	Field string // the JSON name, such as "accountId"
	Rule  string // such as "required", "uuid" or "max_length:128"
	Value string // what was sent, cut to 128 characters
}

// Error is an error that a caller may see. Whatever is only for the log stands in Err.
type Error struct {
	Reason     string        // a name in the server's catalog
	Message    string        // one sentence for people
	Violations []Violation   // with INVALID_ARGUMENT: what is wrong where
	RetryAfter time.Duration // when it is worth asking again; 0 = not said
	Err        error         // the cause; never leaves the process
}

// Error has the reason first, then the message, the violations and the cause.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Reason)
	if e.Message != "" {
		b.WriteString(": " + e.Message)
	}
	for _, v := range e.Violations {
		fmt.Fprintf(&b, "; %s %s %q", v.Field, v.Rule, v.Value)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Fail makes an error with this reason and a message for the caller.
func Fail(reason, format string, args ...any) *Error {
	return &Error{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Invalid makes an INVALID_ARGUMENT error from what is wrong with the request.
func Invalid(violations ...Violation) *Error {
	e := &Error{Reason: ReasonInvalidArgument, Violations: make([]Violation, 0, len(violations))}
	fields := make([]string, 0, len(violations))
	for _, v := range violations {
		if v.Rule == "" {
			v.Rule = "valid"
		}
		v.Value, v.Field = cut(v.Value, valueMax), cut(v.Field, valueMax)
		e.Violations = append(e.Violations, v)
		fields = append(fields, v.Field+" ("+v.Rule+")")
	}
	e.Message = "Wrong in the request: " + strings.Join(fields, ", ") + "."
	return e
}

// After adds when it is worth asking again.
func (e *Error) After(d time.Duration) *Error {
	e.RetryAfter = d
	return e
}

// Because adds the cause, which only the log shows.
func (e *Error) Because(err error) *Error {
	e.Err = err
	return e
}

// ErrorOf turns a call's error back into an *[Error]; nil stays nil. A status without ErrorInfo, as gRPC itself makes them, gets
// its code's name as the reason and no message. Err is the error given, so that [errors.As] and status.Code still work.
func ErrorOf(err error) *Error {
	if err == nil {
		return nil
	}
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	st, ok := statusIn(err)
	if !ok {
		st = status.FromContextError(err)
	}
	out := &Error{Reason: CodeName(st.Code()), Err: err}
	var known bool
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			out.Reason, out.Message, known = d.GetReason(), st.Message(), true
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				out.Violations = append(out.Violations, violationFrom(v))
			}
		case *errdetails.RetryInfo:
			out.RetryAfter = d.GetRetryDelay().AsDuration()
		}
	}
	if !known && st.Code() == codes.Unknown {
		out.Reason = ReasonInternal
	}
	return out
}

// statusIn finds the gRPC status in the chain as it was sent; status.FromError would put the wrappers' text into its message.
func statusIn(err error) (*status.Status, bool) {
	var carrier interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &carrier) || carrier.GRPCStatus() == nil {
		return nil, false
	}
	return carrier.GRPCStatus(), true
}

// A violation travels as reason = rule and description = "rule: value", or "rule" where the value is empty: since the rule is
// known, the value comes back exactly.
func (v Violation) detail() *errdetails.BadRequest_FieldViolation {
	rule, value := clean(v.Rule), clean(v.Value)
	description := rule
	if value != "" {
		description += ": " + value
	}
	return &errdetails.BadRequest_FieldViolation{Field: clean(v.Field), Reason: rule, Description: description}
}

func violationFrom(d *errdetails.BadRequest_FieldViolation) Violation {
	if d.GetReason() == "" {
		return Violation{Field: d.GetField(), Rule: d.GetDescription()}
	}
	rest, _ := strings.CutPrefix(d.GetDescription(), d.GetReason())
	value, _ := strings.CutPrefix(rest, ": ")
	return Violation{Field: d.GetField(), Rule: d.GetReason(), Value: value}
}

// CodeName is a code's canonical name: NOT_FOUND for codes.NotFound.
func CodeName(code codes.Code) string {
	if code == codes.OK {
		return "OK"
	}
	if code == codes.Canceled {
		return ReasonCancelled
	}
	var b strings.Builder
	for i, r := range code.String() {
		if i > 0 && r >= 'A' && r <= 'Z' {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	return strings.ToUpper(b.String())
}

// clean makes text fit for a protobuf string, which must be UTF-8.
func clean(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// cut shortens to longest characters.
func cut(s string, longest int) string {
	s = clean(s)
	if utf8.RuneCountInString(s) <= longest {
		return s
	}
	return string([]rune(s)[:longest])
}
