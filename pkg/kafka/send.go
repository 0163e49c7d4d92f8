package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/IBM/sarama"
)

// retriable reports whether a broker's answer may change by asking again.
func retriable(code sarama.KError) bool {
	switch code {
	case sarama.ErrInvalidMessage, sarama.ErrUnknownTopicOrPartition, sarama.ErrLeaderNotAvailable,
		sarama.ErrNotLeaderForPartition, sarama.ErrRequestTimedOut, sarama.ErrNotEnoughReplicas,
		sarama.ErrNotEnoughReplicasAfterAppend, sarama.ErrKafkaStorageError, sarama.ErrNetworkException:
		return true
	}
	return false
}

// send delivers the round, asking again about the sets that failed and may yet
// succeed. Sequence numbers stay, so what a broker has already is not written twice.
func (p *Producer) send(ctx context.Context, r *round) error {
	left := make([]*set, 0, len(r.sets))
	for _, s := range r.sets {
		left = append(left, s)
	}
	wait := retryPause
	for attempt := 0; ; attempt++ {
		var err error
		left, err = p.exchange(left)
		if len(left) == 0 {
			return nil
		}
		var code sarama.KError
		if errors.As(err, &code) && !retriable(code) || attempt == sendRetryMax {
			return err
		}
		p.cfg.Log.Warn("kafka: publish is tried again", "attempt", attempt+1, "partitions", len(left), "error", err)
		if !pause(ctx, wait) {
			return errors.Join(ctx.Err(), err)
		}
		wait *= 2
		topics := map[string]bool{}
		for _, s := range left {
			topics[s.topic] = true
		}
		for topic := range topics {
			_ = p.client.RefreshMetadata(topic) // the next attempt tells
		}
	}
}

// answer is one broker's reply to one request.
type answer struct {
	broker   *sarama.Broker
	sets     []*set
	response *sarama.ProduceResponse
	err      error
}

// exchange sends each set to its leader once and waits for all answers. It
// returns the sets without acknowledgement and the error that weighs most: one
// that asking again cannot change goes first.
func (p *Producer) exchange(sets []*set) (left []*set, err error) {
	fail := func(s *set, e error) {
		left = append(left, s)
		s.err = e
		var code sarama.KError
		if err == nil || errors.As(e, &code) && !retriable(code) {
			err = fmt.Errorf("%s/%d: %w", s.topic, s.partition, e)
		}
	}
	byLeader := map[*sarama.Broker][]*set{}
	for _, s := range sets {
		leader, e := p.client.Leader(s.topic, s.partition)
		if e != nil {
			fail(s, e)
			continue
		}
		byLeader[leader] = append(byLeader[leader], s)
	}
	answers := make(chan answer, len(byLeader))
	for leader, sets := range byLeader {
		req := &sarama.ProduceRequest{
			Version: 9, RequiredAcks: sarama.WaitForAll, Timeout: int32(produceTimeout / time.Millisecond),
		}
		for _, s := range sets {
			req.AddBatch(s.topic, s.partition, s.batch)
		}
		e := leader.AsyncProduce(req, func(res *sarama.ProduceResponse, e error) {
			answers <- answer{leader, sets, res, e}
		})
		if e != nil { // not sent, and not called back
			answers <- answer{leader, sets, nil, e}
		}
	}
	for range byLeader {
		a := <-answers
		if a.err != nil {
			_ = a.broker.Close() // Leader opens it again
		}
		for _, s := range a.sets {
			if e := a.of(s); e != nil {
				fail(s, e)
			} else {
				s.acked = true
			}
		}
	}
	return left, err
}

// of returns the outcome for one set.
func (a answer) of(s *set) error {
	if a.err != nil {
		return a.err
	}
	block := a.response.GetBlock(s.topic, s.partition)
	switch {
	case block == nil:
		return sarama.ErrIncompleteResponse
	case block.Err == sarama.ErrNoError, block.Err == sarama.ErrDuplicateSequenceNumber:
		return nil
	}
	return block.Err
}
