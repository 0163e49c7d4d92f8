package cqrs

import (
	"context"
	"fmt"
	"slices"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/kafka"
)

// Kind says how an event handler sees events. Between services every handler has a consumer group of its own, so that a
// slow one holds up nobody.
type Kind string

// The kinds.
const (
	// SagaHandler: coordination. It comes before all projections, and what it records is readable at once.
	SagaHandler Kind = "saga"
	// ProjectionHandler: read models. They follow at their own pace.
	ProjectionHandler Kind = "projection"
)

// EventHandler handles events of one or several streams; events of one stream come in order, some perhaps twice. An error
// has the whole batch handled again later: nothing is skipped.
type EventHandler func(ctx context.Context, events []es.Event) error

// Subscription is a registered event handler.
type Subscription struct {
	Name   string
	Kind   Kind
	Types  []string // event types; none = all of the aggregate type
	Source string   // aggregate type the events are of
	Handle EventHandler
}

// Wants reports whether the subscription is for this event.
func (s Subscription) Wants(e es.Event) bool {
	return e.Stream.Type == s.Source && (len(s.Types) == 0 || slices.Contains(s.Types, e.Type))
}

// EventBus knows who handles which events. Register everything before the first Publish; then it is safe for concurrent
// use.
type EventBus struct {
	// Void tells of a message whose event is not part of its source's log any more, so that no handler sees it; nil = of none.
	Void func(m kafka.Message) bool

	subscriptions []Subscription
}

// OnSaga registers a saga handler for these event types of an aggregate type.
func (b *EventBus) OnSaga(name, source string, types []string, h EventHandler) {
	b.add(Subscription{Name: name, Kind: SagaHandler, Source: source, Types: types, Handle: h})
}

// OnProjection registers a projection handler for all events of an aggregate type.
func (b *EventBus) OnProjection(name, source string, h EventHandler) {
	b.add(Subscription{Name: name, Kind: ProjectionHandler, Source: source, Handle: h})
}

func (b *EventBus) add(s Subscription) {
	for _, other := range b.subscriptions {
		if other.Name == s.Name {
			panic(fmt.Sprintf("cqrs: event handler %s is registered already", s.Name))
		}
	}
	b.subscriptions = append(b.subscriptions, s)
}

// Subscriptions lists what is registered, saga handlers first.
func (b *EventBus) Subscriptions() []Subscription {
	out := slices.Clone(b.subscriptions)
	slices.SortStableFunc(out, func(a, c Subscription) int {
		return rank(a.Kind) - rank(c.Kind)
	})
	return out
}

// Publish hands events to their handlers in this process: saga handlers first, and it returns the first error. Between
// services events travel through Kafka instead (Consumers).
func (b *EventBus) Publish(ctx context.Context, events ...es.Event) error {
	for _, s := range b.Subscriptions() {
		if err := s.Deliver(ctx, events); err != nil {
			return err
		}
	}
	return nil
}

// Deliver hands the events that the subscription wants to its handler, in order.
func (s Subscription) Deliver(ctx context.Context, events []es.Event) error {
	var wanted []es.Event
	for _, e := range events {
		if s.Wants(e) {
			wanted = append(wanted, e)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	if err := s.Handle(ctx, wanted); err != nil {
		return fmt.Errorf("%s %s: %w", s.Kind, s.Name, err)
	}
	return nil
}

func rank(k Kind) int {
	if k == SagaHandler {
		return 0
	}
	return 1
}
