package kafka

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"
)

const (
	// partitionBytesMax bounds one record batch, below the brokers' and topics'
	// default max.message.bytes of 1 MiB + 12.
	partitionBytesMax = 1 << 20
	requestBytesMax   = 8 << 20 // one round of requests
	batchOverhead     = 61      // bytes of a record batch's frame
	recordOverhead    = 40      // more than a record's or a header's lengths and deltas take
	sendRetryMax      = 3       // of one request, under the same sequence numbers
	produceTimeout    = 5 * time.Second
	startingMax       = 5 * time.Second // a broker that has just started gives out no producer ids at first
	startingPauseMax  = time.Second
)

// Producer publishes in order: idempotent, acknowledged by all in-sync replicas,
// one request in flight for each broker, partition by FNV-1a hash of the key.
//
// sarama's own producers are not used: after a message fails for good they still
// send those queued behind it, under a new epoch, so that a key's version 3 may
// enter the log before version 2 is resent. Here a call's messages become one
// record batch for each partition, which the broker takes or refuses as a whole,
// and nothing follows a batch that failed. It is also one round trip rather than
// several.
//
// Safe for concurrent use; calls take turns. A writer that needs its own pace
// has its own Producer.
type Producer struct {
	cfg    Config
	conf   *sarama.Config
	turn   chan struct{} // holds one token while a call talks to the brokers; guards what follows
	closed bool
	client sarama.Client // nil = not connected

	startingMax time.Duration

	partitioner sarama.Partitioner
	id          int64 // producer id, -1 = none yet
	epoch       int16
	sequences   map[topicPartition]int32 // next sequence number under id and epoch
}

type topicPartition struct {
	topic     string
	partition int32
}

// NewProducer checks the configuration. It opens no connection.
func NewProducer(cfg Config) (*Producer, error) {
	cfg, err := cfg.prepared()
	if err != nil {
		return nil, err
	}
	conf := cfg.sarama()
	conf.Net.MaxOpenRequests = 1
	conf.Producer.RequiredAcks = sarama.WaitForAll
	conf.Producer.Timeout = produceTimeout
	if err := conf.Validate(); err != nil {
		return nil, wrap("producer config", err)
	}
	return &Producer{
		cfg: cfg, conf: conf, turn: make(chan struct{}, 1), startingMax: startingMax,
		partitioner: sarama.NewHashPartitioner(""), id: -1,
	}, nil
}

// Publish sends the batch and returns how many of its leading messages were
// acknowledged, and the first error. Blocks until every message has an answer or
// ctx ends. After an error the caller resends from the first unacknowledged
// message: at least once, and within a partition never out of order except for
// repetitions. Transient failures are retried for about a second without
// duplicates, and a broker that answers but is still starting for 5 seconds.
// Keys, values and headers must not change afterwards: an abandoned call may
// still be writing them. A message over 1 MiB is refused before sending.
//
// A message that the brokers refuse for its own sake is a *RefusedError, which
// names it; every other error is about the cluster or about all messages.
func (p *Producer) Publish(ctx context.Context, batch []Message) (acked int, err error) {
	if len(batch) == 0 {
		return 0, nil
	}
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return 0, wrap("publish", ctx.Err())
	}
	if p.closed {
		<-p.turn
		return 0, wrap("publish", ErrClosed)
	}
	// sarama's calls take no context but end by their timeouts. The turn is held
	// until they do, so an abandoned request cannot race with the next call.
	var count atomic.Int64
	done := make(chan error, 1)
	go func() {
		done <- p.publish(ctx, batch, &count)
		<-p.turn
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	return int(count.Load()), wrap("publish", err)
}

// Close waits for the call in progress and closes the connections. Later calls
// of Publish return ErrClosed.
func (p *Producer) Close() error {
	p.turn <- struct{}{}
	defer func() { <-p.turn }()
	p.closed = true
	if p.client == nil {
		return nil
	}
	err := p.client.Close()
	p.client = nil
	return wrap("close producer", err)
}

// publish sends round after round; count follows the acknowledged prefix.
func (p *Producer) publish(ctx context.Context, batch []Message, count *atomic.Int64) error {
	o := &order{batch: batch, acked: make([]bool, len(batch)), recordsMax: map[topicPartition]int{}}
	for o.start() < len(batch) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := p.connect(ctx); err != nil {
			p.disconnect()
			return err
		}
		r, err := p.fill(o)
		if err != nil && len(r.sets) == 0 { // nothing left to send before it
			p.disconnect() // its metadata may be to blame
			return err
		}
		err = p.send(ctx, r)
		o.take(r)
		count.Store(int64(o.start()))
		if err != nil {
			p.startAfresh(err)
			if err = o.refused(r, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// connect makes sure of a client and a producer id.
func (p *Producer) connect(ctx context.Context) error {
	if p.client == nil {
		client, err := sarama.NewClient(p.cfg.Brokers, p.conf)
		if err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		p.client = client
	}
	if p.id >= 0 {
		return nil
	}
	began, wait := time.Now(), newBackoff()
	wait.MaxInterval = startingPauseMax
	for attempt := 1; ; attempt++ {
		err := p.initID()
		if err == nil {
			return nil
		}
		next := wait.NextBackOff()
		if !starting(err) || time.Since(began)+next > p.startingMax {
			return err
		}
		p.cfg.Log.Warn("kafka: publish waits for a broker that is starting", "attempt", attempt, "error", err)
		if !pause(ctx, next) {
			return errors.Join(ctx.Err(), err)
		}
	}
}

// initID asks any broker for a producer id.
func (p *Producer) initID() error {
	broker := p.client.LeastLoadedBroker()
	if broker == nil {
		return fmt.Errorf("connect: %w", sarama.ErrOutOfBrokers)
	}
	answer, err := broker.InitProducerID(&sarama.InitProducerIDRequest{Version: 4, ProducerID: -1, ProducerEpoch: -1})
	if err == nil && !errors.Is(answer.Err, sarama.ErrNoError) {
		err = answer.Err
	}
	if err != nil {
		return fmt.Errorf("init producer id: %w", err)
	}
	p.id, p.epoch, p.sequences = answer.ProducerID, answer.ProducerEpoch, map[topicPartition]int32{}
	return nil
}

// starting reports whether the error is a broker's answer that it is not ready
// yet: it fetches its first producer ids from the controller.
func starting(err error) bool {
	return errors.Is(err, sarama.ErrOffsetsLoadInProgress) || // COORDINATOR_LOAD_IN_PROGRESS
		errors.Is(err, sarama.ErrConsumerCoordinatorNotAvailable) ||
		errors.Is(err, sarama.ErrNotCoordinatorForConsumer)
}

func (p *Producer) disconnect() {
	if p.client != nil {
		_ = p.client.Close() // it failed already
		p.client = nil
	}
}

// startAfresh leaves nothing of a failed round behind. A higher epoch begins its
// sequences at 0 and makes brokers refuse what is still on its way under the old one.
func (p *Producer) startAfresh(err error) {
	p.sequences = map[topicPartition]int32{}
	var code sarama.KError
	if refused := errors.As(err, &code) && !retriable(code); refused || p.epoch == math.MaxInt16 {
		p.id = -1
	} else {
		p.epoch++
	}
	p.disconnect()
}

// round is what one exchange with the brokers carries.
type round struct{ sets map[topicPartition]*set }

// set is the record batch for one partition.
type set struct {
	topicPartition
	batch    *sarama.RecordBatch
	messages []int // which of the batch they are, in order
	bytes    int
	acked    bool
	err      error // the latest answer; nil = none yet
}

// fill builds a round of what is not acknowledged yet. With an error, the round
// ends before the message that caused it.
func (p *Producer) fill(o *order) (*round, error) {
	r := &round{sets: map[topicPartition]*set{}}
	defer func() {
		for _, s := range r.sets {
			p.seal(s)
		}
	}()
	total := 0
	for i := o.start(); i < len(o.batch); i++ {
		if o.acked[i] {
			continue
		}
		m := &o.batch[i]
		size := recordOverhead + len(m.Key) + len(m.Value)
		for _, h := range m.Headers {
			size += recordOverhead + len(h.Key) + len(h.Value)
		}
		if size+batchOverhead > partitionBytesMax {
			return r, &RefusedError{Index: i, Topic: m.Topic, Err: fmt.Errorf("%d bytes are more than %d: %w",
				size, partitionBytesMax, sarama.ErrMessageSizeTooLarge)}
		}
		tp, err := p.place(m)
		if err != nil {
			return r, err
		}
		s := r.sets[tp]
		if total+size > requestBytesMax || s != nil && (s.bytes+size > partitionBytesMax || len(s.messages) == o.recordsMax[tp]) {
			return r, nil
		}
		if s == nil {
			s = &set{topicPartition: tp, bytes: batchOverhead, batch: &sarama.RecordBatch{
				Version: 2, ProducerID: p.id, ProducerEpoch: p.epoch, FirstSequence: p.sequences[tp],
			}}
			r.sets[tp] = s
		}
		s.add(m)
		s.messages = append(s.messages, i)
		s.bytes += size
		total += size
	}
	return r, nil
}

// place returns the partition a message belongs to.
func (p *Producer) place(m *Message) (topicPartition, error) {
	partitions, err := p.client.Partitions(m.Topic)
	if err != nil {
		return topicPartition{}, fmt.Errorf("partitions of %s: %w", m.Topic, err)
	}
	var pm sarama.ProducerMessage
	if m.Key != nil {
		pm.Key = sarama.ByteEncoder(m.Key)
	}
	partition, err := p.partitioner.Partition(&pm, int32(len(partitions))) //nolint:gosec // a topic has few
	return topicPartition{m.Topic, partition}, err
}

// add appends a message to the set.
func (s *set) add(m *Message) {
	at := m.Time
	if at.IsZero() {
		at = time.Now()
	}
	at = at.Truncate(time.Millisecond)
	b := s.batch
	if len(b.Records) == 0 {
		b.FirstTimestamp, b.MaxTimestamp = at, at
	}
	if at.After(b.MaxTimestamp) {
		b.MaxTimestamp = at
	}
	rec := &sarama.Record{
		OffsetDelta: int64(len(b.Records)), TimestampDelta: at.Sub(b.FirstTimestamp), Key: m.Key, Value: m.Value,
	}
	if len(m.Headers) > 0 {
		headers := make([]sarama.RecordHeader, len(m.Headers))
		rec.Headers = make([]*sarama.RecordHeader, len(m.Headers))
		for i, h := range m.Headers {
			headers[i] = sarama.RecordHeader{Key: []byte(h.Key), Value: h.Value}
			rec.Headers[i] = &headers[i]
		}
	}
	b.Records = append(b.Records, rec)
}

// seal takes the set's sequence numbers; they wrap around to 0 after MaxInt32.
func (p *Producer) seal(s *set) {
	n := len(s.batch.Records)
	s.batch.LastOffsetDelta = int32(n - 1) //nolint:gosec // a batch is below 1 MiB
	p.sequences[s.topicPartition] = int32((int64(s.batch.FirstSequence) + int64(n)) & math.MaxInt32)
}
