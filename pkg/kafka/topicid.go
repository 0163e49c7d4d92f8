package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/IBM/sarama"
)

// TopicID is what a topic is told by from another one of the same name, before it or after it.
func TopicID(ctx context.Context, cfg Config, topic string) (string, error) {
	cfg, err := cfg.prepared()
	if err != nil {
		return "", err
	}
	type result struct {
		id  string
		err error
	}
	done := make(chan result, 1)
	go func() { // ends by sarama's timeouts
		id, err := topicID(cfg, topic)
		done <- result{id, err}
	}()
	select {
	case r := <-done:
		return r.id, wrap("identify "+topic, r.err)
	case <-ctx.Done():
		return "", wrap("identify "+topic, ctx.Err())
	}
}

func topicID(cfg Config, topic string) (string, error) {
	client, err := sarama.NewClient(cfg.Brokers, cfg.sarama())
	if err != nil {
		return "", fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = client.Close() }()
	return topicIDOf(client, topic)
}

func topicIDOf(client sarama.Client, topic string) (string, error) {
	broker := client.LeastLoadedBroker()
	if broker == nil {
		return "", sarama.ErrOutOfBrokers
	}
	answer, err := broker.GetMetadata(&sarama.MetadataRequest{Version: 10, Topics: []string{topic}})
	if err != nil {
		return "", err
	}
	for _, t := range answer.Topics {
		if t.Name != topic {
			continue
		}
		if !errors.Is(t.Err, sarama.ErrNoError) {
			return "", t.Err
		}
		return t.Uuid.String(), nil
	}
	return "", sarama.ErrIncompleteResponse
}
