package rpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// retryAfterUnavailable is said to callers when a service behind this one cannot be reached.
const retryAfterUnavailable = time.Second

// refused is how a domain says no; the type itself lives with the domain.
type refused interface {
	error
	Refused() (reason, message string)
}

// unavailable is an error of a part that did not answer; overloaded one of a queue that is full.
type (
	unavailable interface {
		error
		Unavailable() bool
	}
	overloaded interface {
		error
		Overloaded() bool
	}
)

// statusOf makes the status that leaves for err, which is not nil. What is not meant for callers stays behind.
func (c *Catalog) statusOf(ctx context.Context, correlationID string, err error) *status.Status {
	var own *Error
	if errors.As(err, &own) {
		return c.status(correlationID, own)
	}
	var no refused
	if errors.As(err, &no) {
		reason, message := no.Refused()
		return c.status(correlationID, Fail(reason, "%s", message))
	}
	var (
		full overloaded
		away unavailable
	)
	if errors.As(err, &full) && full.Overloaded() {
		return c.status(correlationID, Fail(ReasonOverloaded, "Too many requests wait already.").After(retryAfterUnavailable))
	}
	if errors.As(err, &away) && away.Unavailable() && ctx.Err() == nil {
		return c.status(correlationID, withoutReason(codes.Unavailable))
	}
	if st, ok := statusIn(err); ok {
		if c.ours(st) {
			return c.correlated(st, correlationID)
		}
		code := st.Code()
		if code == codes.Canceled && ctx.Err() == nil {
			code = codes.Unavailable // not this caller went away, but the connection behind
		}
		return c.status(correlationID, withoutReason(code))
	}
	return c.status(correlationID, withoutReason(status.FromContextError(err).Code()))
}

// BrokenMessage is what an INTERNAL error says: where to look.
func BrokenMessage(correlationID string) string {
	return fmt.Sprintf("Something is broken on our side; see the log under correlation id %s.", correlationID)
}

// correlated is a status from a service behind this one under the correlation id of the request that is answered. A call
// that serves several requests, or none, has another id: the caller does not know it, and the log of this request shows it.
func (c *Catalog) correlated(st *status.Status, correlationID string) *status.Status {
	out := st.Proto()
	for i, detail := range st.Details() {
		info, ok := detail.(*errdetails.ErrorInfo)
		if !ok || info.GetDomain() != c.domain || info.GetMetadata()["correlationId"] == correlationID {
			continue
		}
		if info.Metadata == nil {
			info.Metadata = map[string]string{}
		}
		info.Metadata["correlationId"] = correlationID
		if changed, err := anypb.New(info); err == nil {
			out.Details[i] = changed
		}
		if info.GetReason() == ReasonInternal {
			out.Message = BrokenMessage(correlationID)
		}
	}
	return status.FromProto(out)
}

// ours says whether a status was made from this catalog's domain.
func (c *Catalog) ours(st *status.Status) bool {
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == c.domain {
			return true
		}
	}
	return false
}

// withoutReason judges a code that came without a reason, from gRPC itself or from a context.
func withoutReason(code codes.Code) *Error {
	switch code {
	case codes.DeadlineExceeded:
		return Fail(ReasonDeadlineExceeded, "The time allowed ran out; what was asked may have happened.")
	case codes.Canceled:
		return Fail(ReasonCancelled, "The request was cancelled; what was asked may have happened.")
	case codes.Unavailable:
		return Fail(ReasonUnavailable, "A service that the answer needs is not available.").After(retryAfterUnavailable)
	}
	return Fail(ReasonInternal, "")
}

func (c *Catalog) status(correlationID string, e *Error) *status.Status {
	reason, ok := c.Lookup(e.Reason)
	if !ok {
		reason = c.byName[ReasonInternal]
	}
	message := cut(e.Message, messageMax)
	if reason.Name == ReasonInternal {
		message = BrokenMessage(correlationID)
	}
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{
		Reason: reason.Name, Domain: c.domain, Metadata: map[string]string{"correlationId": correlationID},
	}}
	if len(e.Violations) > 0 && reason.Name != ReasonInternal {
		bad := &errdetails.BadRequest{}
		for _, v := range e.Violations[:min(len(e.Violations), violationsMax)] {
			bad.FieldViolations = append(bad.FieldViolations, v.detail())
		}
		details = append(details, bad)
	}
	if e.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)})
	}
	st, err := status.New(reason.Code, message).WithDetails(details...)
	if err != nil {
		return status.New(reason.Code, message) // cannot be: the details are clean UTF-8
	}
	return st
}
