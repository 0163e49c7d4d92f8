package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/IBM/sarama"
)

const (
	// A leader that has just changed may answer with an older end for a moment, so an end before the committed offset
	// is believed only after this many looks.
	endLooks     = 4
	endLookPause = 500 * time.Millisecond
)

// Losses returns how often the consumer found that messages were lost before it had handled them.
func (c *Consumer) Losses() int64 { return c.losses.Load() }

// passLost moves the committed offsets of a new session past what the topic has lost: deleted records, a topic that ended
// earlier than the group had read, or another topic of the same name. The group goes on at the oldest retained message,
// says so in the log and counts it. The readers' own stores have what is lost.
func (c *Consumer) passLost(s sarama.ConsumerGroupSession) error {
	client := c.client
	admin, err := sarama.NewClusterAdminFromClient(client)
	if err != nil {
		return fmt.Errorf("find lost messages: %w", err)
	}
	committed, err := admin.ListConsumerGroupOffsets(c.cfg.Group, s.Claims())
	if err != nil {
		return fmt.Errorf("read the group's offsets: %w", err)
	}
	for topic, partitions := range s.Claims() {
		id, err := topicIDOf(client, topic)
		if err != nil {
			return fmt.Errorf("identify %s: %w", topic, err)
		}
		c.noteTopic(topic, id)
		for _, p := range partitions {
			at := committed.GetBlock(topic, p)
			if at == nil || !errors.Is(at.Err, sarama.ErrNoError) || at.Offset < 0 {
				continue // a group without an offset begins at the oldest message
			}
			lost, oldest, err := c.lost(s.Context(), client, source{topic, p}, at.Offset)
			if err != nil {
				return fmt.Errorf("find the ends of %s: %w", topic, err)
			}
			other := at.Metadata != "" && at.Metadata != id
			if !lost && !other {
				continue
			}
			c.losses.Add(1)
			c.cfg.Log.Error("kafka: messages were lost before they were handled; going on at the oldest one", "group", c.cfg.Group,
				"topic", topic, "partition", p, "committed", at.Offset, "oldest", oldest, "recreated", other)
			s.MarkOffset(topic, p, oldest, id) // forward
			s.ResetOffset(topic, p, oldest, id)
		}
	}
	return nil
}

// lost tells whether a partition does not have the offset that comes next, and where its oldest message is.
func (c *Consumer) lost(ctx context.Context, client sarama.Client, of source, next int64) (lost bool, oldest int64, err error) {
	for look := 1; ; look++ {
		if oldest, err = client.GetOffset(of.topic, of.partition, sarama.OffsetOldest); err != nil {
			return false, 0, err
		}
		newest, err := client.GetOffset(of.topic, of.partition, sarama.OffsetNewest)
		if err != nil {
			return false, 0, err
		}
		if next < oldest {
			return true, oldest, nil
		}
		if next <= newest {
			return false, oldest, nil
		}
		if look == endLooks {
			return true, oldest, nil
		}
		if !pause(ctx, endLookPause) {
			return false, 0, ctx.Err()
		}
	}
}

// noteTopic keeps a topic's id: offsets are committed together with it.
func (c *Consumer) noteTopic(topic, id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.topicIDs[topic] = id
}

// topicID is the id of a topic, as it was when the session began.
func (c *Consumer) topicID(topic string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.topicIDs[topic]
}
