package kafka

import (
	"errors"
	"fmt"
	"slices"

	"github.com/IBM/sarama"
)

// RefusedError says that one message of a batch was refused for its own sake: it
// is too large, is not a valid record, or has a time that the topic does not take.
// The cluster is well, and sending the same message again meets the same answer until somebody changes
// the topic's settings.
type RefusedError struct {
	Index int // of the message in the batch given to Publish
	Topic string
	Err   error
}

// Error names the message by its index and topic.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("message %d to %s is refused: %v", e.Index, e.Topic, e.Err)
}

// Unwrap returns the broker's answer.
func (e *RefusedError) Unwrap() error { return e.Err }

// refusal reports whether a broker's answer is about the records of a set, and
// so about one of its messages or their number, and not about the cluster. A
// damaged message (CORRUPT_MESSAGE) is not one: it was damaged on the way. Nor is
// a time that the producer itself wrote: a clock is wrong, and will be set.
func (o *order) refusal(s *set) bool {
	var code sarama.KError
	if !errors.As(s.err, &code) {
		return false
	}
	switch code {
	case sarama.ErrMessageSizeTooLarge, sarama.ErrMessageSetSizeTooLarge, sarama.ErrInvalidRecord:
		return true
	case sarama.ErrInvalidTimestamp:
		return slices.ContainsFunc(s.messages, func(i int) bool { return !o.batch[i].Time.IsZero() })
	}
	return false
}

// order is one call of Publish on its way.
type order struct {
	batch []Message
	acked []bool
	first int // everything before it is acknowledged
	// recordsMax bounds the sets of partitions of which one was refused as a
	// whole: it is sent in halves until the message at fault stands alone.
	recordsMax map[topicPartition]int
}

// start is the first message without an acknowledgement.
func (o *order) start() int {
	for o.first < len(o.acked) && o.acked[o.first] {
		o.first++
	}
	return o.first
}

// take notes what a round got acknowledged.
func (o *order) take(r *round) {
	for _, s := range r.sets {
		for _, i := range s.messages {
			o.acked[i] = s.acked
		}
	}
}

// refused looks for what a failed round says of single messages: nil means that
// smaller sets are worth a try, a *RefusedError that a message alone was
// refused, and any other error is the round's own.
func (o *order) refused(r *round, err error) error {
	var alone *RefusedError
	smaller := false
	for tp, s := range r.sets {
		switch n := len(s.messages); {
		case s.acked || !o.refusal(s):
		case n > 1:
			o.recordsMax[tp], smaller = n/2, true
		case alone == nil || s.messages[0] < alone.Index:
			alone = &RefusedError{Index: s.messages[0], Topic: s.topic, Err: s.err}
		}
	}
	switch {
	case alone != nil:
		return alone
	case smaller:
		return nil
	}
	return err
}
