package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/IBM/sarama"
)

// Note keeps a short text for whoever claims the partition next, without writing to the partition: as the metadata of an offset that
// belongs to nobody. It says nothing about whether the claim stands; an error leaves the claim as it is.
func (c *Claim) Note(ctx context.Context, text string) error {
	group := c.noteGroup(int(c.epoch) % noteSlots)
	return c.withCoordinator(ctx, group, func(b *sarama.Broker) error {
		req := sarama.NewOffsetCommitRequest(c.client.Config(), group)
		req.AddBlockWithLeaderEpoch(c.topic, c.partition, 0, -1, 0, text)
		answer, err := b.CommitOffset(req)
		if err != nil {
			return err
		}
		for _, of := range answer.Errors {
			for _, code := range of {
				if !errors.Is(code, sarama.ErrNoError) {
					return code
				}
			}
		}
		return nil
	})
}

// noteSlots is how many claims in a row have a note of their own: one that arrives late, from a claim that is over, takes no newer one's place.
const noteSlots = 4

// Noted are the texts that the latest claims of the partition kept, in no particular order: this one's and those before.
func (c *Claim) Noted(ctx context.Context) (texts []string, err error) {
	for slot := range noteSlots {
		text, err := c.noted(ctx, c.noteGroup(slot))
		if err != nil {
			return nil, err
		}
		if text != "" {
			texts = append(texts, text)
		}
	}
	return texts, nil
}

func (c *Claim) noted(ctx context.Context, group string) (text string, err error) {
	err = c.withCoordinator(ctx, group, func(b *sarama.Broker) error {
		req := &sarama.OffsetFetchRequest{Version: 5, ConsumerGroup: group}
		req.AddPartition(c.topic, c.partition)
		answer, err := b.FetchOffset(req)
		if err != nil {
			return err
		}
		block := answer.GetBlock(c.topic, c.partition)
		switch {
		case errors.Is(answer.Err, sarama.ErrGroupIDNotFound), block != nil && errors.Is(block.Err, sarama.ErrGroupIDNotFound):
			return nil // nobody has kept one
		case !errors.Is(answer.Err, sarama.ErrNoError):
			return answer.Err
		case block == nil:
			return sarama.ErrIncompleteResponse
		case !errors.Is(block.Err, sarama.ErrNoError):
			return block.Err
		}
		text = block.Metadata
		return nil
	})
	return text, err
}

func (c *Claim) noteGroup(slot int) string { return fmt.Sprintf("%s.note.%d", c.txn, slot) }

// withCoordinator asks the note's coordinator, which may be another broker by now, or still starting.
func (c *Claim) withCoordinator(ctx context.Context, group string, ask func(*sarama.Broker) error) error {
	const attemptMax = 20
	for attempt := 1; ; attempt++ {
		b, err := c.client.Coordinator(group)
		if err == nil {
			err = ask(b)
		}
		if err == nil {
			return nil
		}
		if attempt == attemptMax || !starting(err) || !pause(ctx, claimPauseMax) {
			return fmt.Errorf("kafka: the note of %s: %w", c.txn, err)
		}
		_ = c.client.RefreshCoordinator(group)
	}
}
