// Package cqrs routes commands and queries to their one handler and events to their many, by type. Registration is typed;
// what every handler needs (validation, logging, metrics) is middleware.
package cqrs

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Info is what every command and query carries besides its body.
type Info struct {
	ID   string    // UUID: the commandId or queryId; a command's events carry it as their causationId
	Type string    // the body's type name, such as "RequestTransfer"
	At   time.Time // when it was given
	Origin
}

// Origin says where a command or query comes from.
type Origin struct {
	CorrelationID string
	TenantID      string
	Actor         string
}

// Metadata is the origin as the events of a command keep it.
func (o Origin) Metadata() map[string]any {
	m := map[string]any{}
	if o.TenantID != "" {
		m["tenantId"] = o.TenantID
	}
	if o.Actor != "" {
		m["actor"] = o.Actor
	}
	return m
}

// Message is a command or a query: Info and a body.
type Message[T any] struct {
	Info
	Body T
}

// New gives a body its id, type and time.
func New[T any](body T, from Origin) Message[T] {
	return Message[T]{
		Info: Info{ID: uuid.NewString(), Type: reflect.TypeFor[T]().Name(), At: time.Now().UTC(), Origin: from},
		Body: body,
	}
}

// Handler carries out one message and returns its result. Message and result are typed any only between middlewares.
type Handler func(ctx context.Context, info Info, body any) (any, error)

// Middleware wraps every handler of a bus; the first given is the outermost.
type Middleware func(Handler) Handler

// Bus routes each type of message to its one handler. Commands and queries have a bus each, so that what must not write
// cannot. Safe for concurrent use.
type Bus struct {
	middleware []Middleware
	mu         sync.RWMutex
	handlers   map[reflect.Type]Handler
}

// NewBus makes a bus.
func NewBus(mw ...Middleware) *Bus {
	return &Bus{middleware: mw, handlers: map[reflect.Type]Handler{}}
}

// Handle registers the handler of messages with body T. It panics on a second one: that is a wiring mistake.
func Handle[T, R any](b *Bus, h func(context.Context, Message[T]) (R, error)) {
	t := reflect.TypeFor[T]()
	var handler Handler = func(ctx context.Context, info Info, body any) (any, error) {
		return h(ctx, Message[T]{Info: info, Body: body.(T)}) //nolint:forcetypeassert // keyed by this type
	}
	for i := len(b.middleware) - 1; i >= 0; i-- {
		handler = b.middleware[i](handler)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.handlers[t] != nil {
		panic(fmt.Sprintf("cqrs: %s has a handler already", t))
	}
	b.handlers[t] = handler
}

// Execute sends a message to its handler and returns the handler's result.
func Execute[T, R any](ctx context.Context, b *Bus, m Message[T]) (R, error) {
	var none R
	b.mu.RLock()
	h := b.handlers[reflect.TypeFor[T]()]
	b.mu.RUnlock()
	if h == nil {
		return none, fmt.Errorf("cqrs: %s has no handler", m.Type)
	}
	result, err := h(ctx, m.Info, m.Body)
	if err != nil {
		return none, err
	}
	r, ok := result.(R)
	if !ok {
		return none, fmt.Errorf("cqrs: the handler of %s returns %T, not %T", m.Type, result, none)
	}
	return r, nil
}
