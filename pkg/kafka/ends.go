package kafka

import (
	"context"
	"fmt"

	"github.com/IBM/sarama"
)

// Ends are the offsets behind the newest message of each partition of a topic.
func Ends(ctx context.Context, cfg Config, topic string) ([]int64, error) {
	cfg, err := cfg.prepared()
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, wrap("find the ends of "+topic, err)
	}
	ends, err := ends(cfg, topic)
	return ends, wrap("find the ends of "+topic, err)
}

func ends(cfg Config, topic string) ([]int64, error) {
	client, err := sarama.NewClient(cfg.Brokers, cfg.sarama())
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = client.Close() }()
	partitions, err := client.Partitions(topic)
	if err != nil {
		return nil, err
	}
	ends := make([]int64, len(partitions))
	for _, p := range partitions {
		if int(p) >= len(ends) {
			return nil, sarama.ErrIncompleteResponse
		}
		if ends[p], err = client.GetOffset(topic, p, sarama.OffsetNewest); err != nil {
			return nil, err
		}
	}
	return ends, nil
}
