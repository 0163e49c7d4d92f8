package cqrs

import (
	"context"
	"fmt"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/outbox"
)

// Consumers makes one Kafka consumer for each subscription of the bus: group "<service>.<name>", topic of the
// subscription's source.
func (b *EventBus) Consumers(cfg kafka.Config, prefix, service string) ([]*kafka.Consumer, error) {
	var consumers []*kafka.Consumer
	for _, s := range b.Subscriptions() {
		c, err := kafka.NewConsumer(kafka.ConsumerConfig{
			Config: cfg, Group: prefix + "." + service + "." + s.Name, Topics: []string{outbox.Topic(prefix, s.Source)},
			Handle: s.consume,
		})
		if err != nil {
			return nil, fmt.Errorf("consumer of %s %s: %w", s.Kind, s.Name, err)
		}
		consumers = append(consumers, c)
	}
	return consumers, nil
}

// consume decodes the messages that the subscription wants, told by their eventType header, and delivers them. A message
// that is no event stops its partition, visibly, rather than being skipped.
func (s Subscription) consume(ctx context.Context, batch []kafka.Message) error {
	events := make([]es.Event, 0, len(batch))
	for _, m := range batch {
		if name := m.Header("eventType"); name != "" && !s.Wants(es.Event{Type: name, Stream: es.Stream{Type: s.Source}}) {
			continue
		}
		e, err := es.Decode(m.Value)
		if err != nil {
			return fmt.Errorf("%s partition %d offset %d: %w", m.Topic, m.Partition, m.Offset, err)
		}
		events = append(events, e)
	}
	return s.Deliver(ctx, events)
}
