package kafka

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/IBM/sarama"

	"example.com/billing/pkg/failpoint"
)

const (
	claimTimeout  = 10 * time.Second // of a transaction: what a writer that died leaves open ends after it
	claimWaitMax  = 30 * time.Second // for another claim's last transaction to be decided
	claimPauseMax = 250 * time.Millisecond
	beginPause    = 250 * time.Microsecond // for the last transaction's end to be marked
	beginPauseMax = 2 * time.Millisecond
	txnVersion    = 3 // of AddPartitionsToTxn and EndTxn: the newest that sarama speaks
)

// FencedError says that another process has claimed the partition since.
type FencedError struct {
	Topic     string
	Partition int32
	Err       error // as the broker put it
}

// Error names the partition.
func (e *FencedError) Error() string {
	return fmt.Sprintf("kafka: %s/%d has another writer now: %v", e.Topic, e.Partition, e.Err)
}

// Unwrap returns the broker's error.
func (e *FencedError) Unwrap() error { return e.Err }

// UnknownError says that nobody answered whether a commit happened. Who claims the partition anew finds out, by reading it to its end.
type UnknownError struct {
	Topic     string
	Partition int32
	Err       error
}

// Error names the partition.
func (e *UnknownError) Error() string {
	return fmt.Sprintf("kafka: %s/%d: it is not known whether the commit happened: %v", e.Topic, e.Partition, e.Err)
}

// Unwrap returns what broke.
func (e *UnknownError) Unwrap() error { return e.Err }

// Claim is the sole right to write to a partition, until another process claims it: Kafka has no conditional produce, so whoever decides
// what may follow what must know that nobody else writes. A transactional id belongs to each partition, and claiming gives its next
// epoch out: brokers refuse everything of the epoch before from then on, whenever it arrives.
//
// A claim is over with its first error. A commit that was asked for twice under one epoch could end the transaction after the one it was
// meant for (KIP-890), so nothing is asked for twice: the next claim's epoch settles what was left open.
//
// Not safe for concurrent use.
type Claim struct {
	cfg       Config
	topic     string
	partition int32
	txn       string

	client      sarama.Client
	coordinator *sarama.Broker
	id          int64
	epoch       int16
	sequence    int32
	end         int64 // where the log ended when it was claimed
	over        error // what ended the claim; nil = it stands, as far as it knows
}

// transactionalID is the partition's: whoever uses it claims the partition.
func transactionalID(topic string, partition int32) string {
	return topic + "/" + strconv.Itoa(int(partition))
}

// ClaimPartition makes the caller the only writer of a partition. It waits until the transaction that the writer before may have left is
// decided. Everything that any earlier claim committed, or will ever turn out to have committed, lies before End.
func ClaimPartition(ctx context.Context, cfg Config, topic string, partition int32) (*Claim, error) {
	cfg, err := cfg.prepared()
	if err != nil {
		return nil, err
	}
	c := &Claim{cfg: cfg, topic: topic, partition: partition, txn: transactionalID(topic, partition)}
	if err := c.claim(ctx); err != nil {
		c.Close()
		return nil, wrap("claim "+c.txn, err)
	}
	return c, nil
}

func (c *Claim) claim(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	conf := c.cfg.sarama()
	conf.Net.MaxOpenRequests = 1
	client, err := sarama.NewClient(c.cfg.Brokers, conf)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	c.client = client
	if c.coordinator, err = client.TransactionCoordinator(c.txn); err != nil {
		return fmt.Errorf("find the coordinator: %w", err)
	}
	began, wait := time.Now(), newBackoff()
	wait.InitialInterval, wait.MaxInterval = claimPauseMax/16, claimPauseMax
	for {
		err := c.initID()
		if err == nil {
			break
		}
		undecided := errors.Is(err, sarama.ErrConcurrentTransactions) || starting(err)
		if !undecided || time.Since(began) > claimWaitMax || !pause(ctx, wait.NextBackOff()) {
			return err
		}
		if starting(err) {
			if err := client.RefreshTransactionCoordinator(c.txn); err != nil {
				return fmt.Errorf("find the coordinator: %w", err)
			}
			if c.coordinator, err = client.TransactionCoordinator(c.txn); err != nil {
				return fmt.Errorf("find the coordinator: %w", err)
			}
		}
	}
	failpoint.Hit("kafka.claimed")
	if c.end, err = client.GetOffset(c.topic, c.partition, sarama.OffsetNewest); err != nil {
		return fmt.Errorf("find the end: %w", err)
	}
	return nil
}

func (c *Claim) initID() error {
	answer, err := c.coordinator.InitProducerID(&sarama.InitProducerIDRequest{
		Version: 4, TransactionalID: &c.txn, TransactionTimeout: claimTimeout, ProducerID: -1, ProducerEpoch: -1,
	})
	if err == nil && !errors.Is(answer.Err, sarama.ErrNoError) {
		err = answer.Err
	}
	if err != nil {
		return fmt.Errorf("take the next epoch: %w", err)
	}
	c.id, c.epoch, c.sequence = answer.ProducerID, answer.ProducerEpoch, 0
	return nil
}

// End is the offset at which the log ended when it was claimed.
func (c *Claim) End() int64 { return c.end }

// Over is what ended the claim; nil = nothing has, as far as this process knows.
func (c *Claim) Over() error { return c.over }

// Commit writes messages to the partition, all of them or none, and returns their offsets, which have gaps where somebody else writes too.
// They are durable once it returns: all in-sync replicas have them. An error ends the claim: a *FencedError and any other one but
// *UnknownError mean that none of them is committed, nor ever will be. It does not end with ctx once it has begun, but by the timeouts of its
// requests, 10 seconds each.
func (c *Claim) Commit(ctx context.Context, messages []Message) (offsets []int64, err error) {
	if err := errors.Join(c.over, ctx.Err()); err != nil {
		return nil, err
	}
	offsets, c.over = c.commit(ctx, messages)
	return offsets, c.over
}

func (c *Claim) commit(ctx context.Context, messages []Message) (offsets []int64, err error) {
	failpoint.Hit("kafka.before_begin")
	if err := c.begin(ctx); err != nil {
		return nil, c.refused("begin", err)
	}
	failpoint.Hit("kafka.before_produce")
	offsets = make([]int64, 0, len(messages))
	for len(messages) > 0 {
		batch, n, err := c.batch(messages)
		if err != nil {
			return nil, err
		}
		at, err := c.produce(batch)
		if err != nil {
			return nil, c.refused("produce", err)
		}
		for i := range n {
			offsets = append(offsets, at+int64(i))
		}
		messages = messages[n:]
	}
	failpoint.Hit("kafka.before_end")
	err = c.endTxn()
	failpoint.Hit("kafka.after_end")
	var code sarama.KError
	switch {
	case err == nil:
		return offsets, nil
	case errors.As(err, &code) && fencing(code):
		// Whoever fenced this writer has had its transaction decided first: committed it was not by this request, and nobody else asked.
		return nil, c.refused("commit", err)
	default:
		return nil, &UnknownError{c.topic, c.partition, err}
	}
}

// begin makes the partition part of the transaction. Until the brokers have marked the end of the one before they say that it is not over
// yet; they have not begun this one then, and are asked again.
func (c *Claim) begin(ctx context.Context) error {
	wait := newBackoff()
	wait.InitialInterval, wait.MaxInterval = beginPause, beginPauseMax
	for began := time.Now(); ; {
		err := c.addPartition()
		if !errors.Is(err, sarama.ErrConcurrentTransactions) || time.Since(began) > claimTimeout || !pause(ctx, wait.NextBackOff()) {
			return err
		}
	}
}

func (c *Claim) addPartition() error {
	answer, err := c.coordinator.AddPartitionsToTxn(&sarama.AddPartitionsToTxnRequest{
		Version: txnVersion, TransactionalID: c.txn, ProducerID: c.id, ProducerEpoch: c.epoch, TopicPartitions: map[string][]int32{c.topic: {c.partition}},
	})
	if err != nil {
		return err
	}
	for _, of := range answer.Errors {
		for _, p := range of {
			if !errors.Is(p.Err, sarama.ErrNoError) {
				return p.Err
			}
		}
	}
	return nil
}

// batch is a record batch of as many messages as fit into one.
func (c *Claim) batch(messages []Message) (*sarama.RecordBatch, int, error) {
	s := &set{bytes: batchOverhead, batch: &sarama.RecordBatch{Version: 2, ProducerID: c.id, ProducerEpoch: c.epoch, FirstSequence: c.sequence, IsTransactional: true}}
	n := 0
	for n < len(messages) {
		m := &messages[n]
		size := recordOverhead + len(m.Key) + len(m.Value)
		for _, h := range m.Headers {
			size += recordOverhead + len(h.Key) + len(h.Value)
		}
		if s.bytes+size > partitionBytesMax {
			break
		}
		s.add(m)
		s.bytes += size
		n++
	}
	if n == 0 {
		return nil, 0, wrap("commit to "+c.txn, sarama.ErrMessageSizeTooLarge)
	}
	s.batch.LastOffsetDelta = int32(n - 1)                             // a batch is below 1 MiB
	c.sequence = int32((int64(c.sequence) + int64(n)) & math.MaxInt32) // it wraps around to 0
	return s.batch, n, nil
}

// produce sends a batch, once, and returns its first offset.
func (c *Claim) produce(batch *sarama.RecordBatch) (int64, error) {
	leader, err := c.client.Leader(c.topic, c.partition)
	if err != nil {
		return 0, err
	}
	req := &sarama.ProduceRequest{TransactionalID: &c.txn, Version: 9, RequiredAcks: sarama.WaitForAll, Timeout: int32(produceTimeout / time.Millisecond)}
	req.AddBatch(c.topic, c.partition, batch)
	answer, err := leader.Produce(req)
	if err != nil {
		return 0, err
	}
	block := answer.GetBlock(c.topic, c.partition)
	switch {
	case block == nil:
		return 0, sarama.ErrIncompleteResponse
	case !errors.Is(block.Err, sarama.ErrNoError):
		return 0, block.Err
	}
	return block.Offset, nil
}

func (c *Claim) endTxn() error {
	answer, err := c.coordinator.EndTxn(&sarama.EndTxnRequest{
		Version: txnVersion, TransactionalID: c.txn, ProducerID: c.id, ProducerEpoch: c.epoch, TransactionResult: true,
	})
	if err == nil && !errors.Is(answer.Err, sarama.ErrNoError) {
		err = answer.Err
	}
	return err
}

// Held asks the coordinator whether the claim still stood when it was asked, and ends the claim if not. Whoever reads what was committed
// before, and then asks, has read what is newest.
func (c *Claim) Held(ctx context.Context) error {
	if c.over != nil {
		return c.over
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	c.over = c.held()
	return c.over
}

func (c *Claim) held() error {
	answer, err := c.coordinator.DescribeTransactions(&sarama.DescribeTransactionsRequest{TransactionalIDs: []string{c.txn}})
	if err != nil {
		return wrap("ask for the claim of "+c.txn, err)
	}
	for _, s := range answer.TransactionStates {
		if s.TransactionalID != c.txn {
			continue
		}
		if !errors.Is(s.ErrorCode, sarama.ErrNoError) {
			return c.refused("ask for the claim", s.ErrorCode)
		}
		if s.ProducerID != c.id || s.ProducerEpoch != c.epoch {
			return &FencedError{c.topic, c.partition, fmt.Errorf("producer %d of epoch %d", s.ProducerID, s.ProducerEpoch)}
		}
		return nil
	}
	return wrap("ask for the claim of "+c.txn, sarama.ErrIncompleteResponse)
}

// refused tells a claim that another one has taken from all else.
func (c *Claim) refused(op string, err error) error {
	var code sarama.KError
	if errors.As(err, &code) && fencing(code) {
		return &FencedError{c.topic, c.partition, err}
	}
	return wrap(op+" on "+c.txn, err)
}

// fencing reports whether a broker's answer says that there is a newer epoch.
func fencing(code sarama.KError) bool {
	return code == sarama.ErrProducerFenced || code == sarama.ErrInvalidProducerEpoch || code == sarama.ErrInvalidProducerIDMapping
}

// Close closes the connections; the claim itself stays until the next one.
func (c *Claim) Close() {
	if c.over == nil {
		c.over = ErrClosed
	}
	if c.client != nil {
		_ = c.client.Close()
	}
}
