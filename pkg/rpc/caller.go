package rpc

import (
	"context"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/metadata"
)

// Metadata keys of requests and responses.
const (
	keyCorrelationID  = "x-correlation-id"
	keyActor          = "x-actor"
	keyIdempotencyKey = "idempotency-key"
	keyWait           = "x-wait"
)

const (
	// AnonymousActor is the actor of a request that names none.
	AnonymousActor = "anonymous"
	// DefaultTenant is every request's tenant until callers are authenticated.
	DefaultTenant = "default"

	callerTextMax = 128
)

// Caller is who asks and how, as it travels with a request.
type Caller struct {
	CorrelationID  string // 1 to 128 visible ASCII characters
	Actor          string // who asks
	TenantID       string // whose data it is about
	IdempotencyKey string // empty = none was given in the metadata
	Wait           string // how long the caller wants to wait for the end, such as "5s"; empty = not at all
}

type callerKey struct{}

// WithCaller puts the caller into the context.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerFrom takes the caller from the context. Where there is none, as outside of a request, it makes one up: anonymous, of the
// default tenant, with a correlation id of its own.
func CallerFrom(ctx context.Context) Caller {
	if c, ok := ctx.Value(callerKey{}).(Caller); ok {
		return c
	}
	return Caller{CorrelationID: uuid.NewString(), Actor: AnonymousActor, TenantID: DefaultTenant}
}

// WaitFor is how long the caller wants to wait: 0 to longest, and a violation of the field wait where it is no such duration.
func (c Caller) WaitFor(longest time.Duration) (time.Duration, error) {
	if c.Wait == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(c.Wait)
	if err != nil {
		return 0, Invalid(Violation{Field: "wait", Rule: "duration", Value: c.Wait})
	}
	if d < 0 || d > longest {
		return 0, Invalid(Violation{Field: "wait", Rule: "range:0s.." + longest.String(), Value: c.Wait})
	}
	return d, nil
}

// Metadata is the caller as outgoing metadata, with the idempotency key and the wait that belong to this one request.
func (c Caller) Metadata() metadata.MD {
	md := metadata.MD{}
	for key, value := range map[string]string{
		keyCorrelationID: c.CorrelationID, keyActor: c.Actor, keyIdempotencyKey: c.IdempotencyKey, keyWait: c.Wait,
	} {
		if value != "" {
			md.Set(key, value)
		}
	}
	return md
}

// ValidCorrelationID says whether the text may be a correlation id: 1 to 128 visible ASCII characters, no spaces.
func ValidCorrelationID(s string) bool { return printable(s, '!') }

// CorrelationIDOr returns the text if it may be a correlation id, else a new UUID.
func CorrelationIDOr(s string) string {
	if ValidCorrelationID(s) {
		return s
	}
	return uuid.NewString()
}

// ActorOr returns the text if it may be an actor, 1 to 128 printable ASCII characters, else [AnonymousActor].
func ActorOr(s string) string {
	if printable(s, ' ') {
		return s
	}
	return AnonymousActor
}

func printable(s string, lowest byte) bool {
	if len(s) == 0 || len(s) > callerTextMax {
		return false
	}
	for i := range len(s) {
		if s[i] < lowest || s[i] > '~' {
			return false
		}
	}
	return true
}

// incoming reads the caller from a request's metadata. A tenant is not accepted from outside until callers are authenticated.
func incoming(ctx context.Context) Caller {
	md, _ := metadata.FromIncomingContext(ctx)
	first := func(key string) string {
		if values := md.Get(key); len(values) > 0 {
			return values[0]
		}
		return ""
	}
	return Caller{
		CorrelationID:  CorrelationIDOr(first(keyCorrelationID)),
		Actor:          ActorOr(first(keyActor)),
		TenantID:       DefaultTenant,
		IdempotencyKey: first(keyIdempotencyKey),
		Wait:           first(keyWait),
	}
}

// outgoing adds the caller's correlation id and actor to a call, unless the call has its own. The idempotency key and the wait
// belong to the request that came in, not to the calls it causes.
func outgoing(ctx context.Context) context.Context {
	caller, ok := ctx.Value(callerKey{}).(Caller)
	if !ok {
		return ctx
	}
	md, _ := metadata.FromOutgoingContext(ctx)
	if len(md.Get(keyCorrelationID)) == 0 && caller.CorrelationID != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, keyCorrelationID, caller.CorrelationID)
	}
	if len(md.Get(keyActor)) == 0 && caller.Actor != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, keyActor, caller.Actor)
	}
	return ctx
}
