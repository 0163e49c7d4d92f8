package cqrs

import (
	"context"
	"fmt"
	"time"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/inbox"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/outbox"
)

// projectionLinger is how long an event waits for others on its way into a read model, which writes a row once for all of them.
const projectionLinger = 50 * time.Millisecond

// Consumers makes one Kafka consumer for each subscription of the bus: group "<service>.<name>", topic of the
// subscription's source. What cannot be handled is parked in the box; without one it stops its partition, visibly.
// decode reads an event's JSON, as es.Decode.
func (b *EventBus) Consumers(cfg kafka.Config, prefix, service string, box *inbox.Inbox, decode func([]byte) (es.Event, error)) ([]*kafka.Consumer, error) {
	var consumers []*kafka.Consumer
	for _, s := range b.Subscriptions() {
		wants := func(m kafka.Message) bool { return s.wantsMessage(m) && (b.Void == nil || !b.Void(m)) }
		handle := func(ctx context.Context, batch []kafka.Message) error { return s.consume(ctx, batch, wants, decode) }
		if box != nil {
			handle = box.Subscribe(inbox.Subscription{Name: s.Name, Source: s.Source, Wants: wants, Handle: handle})
		}
		var wait time.Duration
		if s.Kind == ProjectionHandler {
			wait = projectionLinger
		}
		c, err := kafka.NewConsumer(kafka.ConsumerConfig{
			Linger: wait,
			Config: cfg, Group: prefix + "." + service + "." + s.Name, Topics: []string{outbox.Topic(prefix, s.Source)},
			Handle: handle,
		})
		if err != nil {
			return nil, fmt.Errorf("consumer of %s %s: %w", s.Kind, s.Name, err)
		}
		consumers = append(consumers, c)
	}
	return consumers, nil
}

// wantsMessage tells by the eventType header whether the subscription wants a message; without the header it has to be read.
func (s Subscription) wantsMessage(m kafka.Message) bool {
	name := m.Header("eventType")
	return name == "" || s.Wants(es.Event{Type: name, Stream: es.Stream{Type: s.Source}})
}

// consume decodes the messages that the subscription wants, and delivers them. A message that is no event is an error, rather
// than skipped.
func (s Subscription) consume(ctx context.Context, batch []kafka.Message, wants func(kafka.Message) bool, decode func([]byte) (es.Event, error)) error {
	events := make([]es.Event, 0, len(batch))
	for _, m := range batch {
		if !wants(m) {
			continue
		}
		e, err := decode(m.Value)
		if err != nil {
			return fmt.Errorf("%s partition %d offset %d: %w: %w", m.Topic, m.Partition, m.Offset, inbox.ErrUnreadable, err)
		}
		events = append(events, e)
	}
	return s.Deliver(ctx, events)
}
