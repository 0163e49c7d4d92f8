package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/IBM/sarama"
)

const (
	fetchBytesMax = 4 << 20
	tailWait      = 500 * time.Millisecond // of the broker, for something new
	fetchVersion  = 11
)

// Tail reads one partition from an offset on, what is committed only, and knows how far it is: past the markers of transactions and past
// what was aborted too, which a consumer does not tell. Not safe for concurrent use.
type Tail struct {
	cfg       Config
	topic     string
	partition int32
	client    sarama.Client
	next      int64
}

// NewTail opens no connection.
func NewTail(cfg Config, topic string, partition int32, from int64) (*Tail, error) {
	cfg, err := cfg.prepared()
	if err != nil {
		return nil, err
	}
	return &Tail{cfg: cfg, topic: topic, partition: partition, next: from}, nil
}

// Next is the offset behind what was read: everything that is committed before it was returned by Read.
func (t *Tail) Next() int64 { return t.next }

// Read returns what follows, in order; it waits for half a second at most where there is nothing new. After an error it may be asked again.
func (t *Tail) Read(ctx context.Context) ([]Message, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	messages, next, err := t.read()
	if err != nil {
		t.Close()
		return nil, wrap(fmt.Sprintf("read %s/%d", t.topic, t.partition), err)
	}
	t.next = next
	return messages, nil
}

func (t *Tail) read() (messages []Message, next int64, err error) {
	if t.client == nil {
		client, err := sarama.NewClient(t.cfg.Brokers, t.cfg.sarama())
		if err != nil {
			return nil, 0, fmt.Errorf("connect: %w", err)
		}
		t.client = client
	}
	leader, err := t.client.Leader(t.topic, t.partition)
	if err != nil {
		return nil, 0, err
	}
	req := &sarama.FetchRequest{
		Version: fetchVersion, MinBytes: 1, MaxBytes: fetchBytesMax, MaxWaitTime: int32(tailWait / time.Millisecond), Isolation: sarama.ReadCommitted, SessionEpoch: -1,
	}
	req.AddBlock(t.topic, t.partition, t.next, fetchBytesMax, -1)
	answer, err := leader.Fetch(req)
	if err != nil {
		return nil, 0, err
	}
	block := answer.GetBlock(t.topic, t.partition)
	switch {
	case block == nil:
		return nil, 0, sarama.ErrIncompleteResponse
	case !errors.Is(block.Err, sarama.ErrNoError):
		return nil, 0, block.Err
	}
	return t.take(block)
}

// take reads a block's batches, and leaves out what was aborted.
func (t *Tail) take(block *sarama.FetchResponseBlock) (messages []Message, next int64, err error) {
	aborted := slices.Clone(block.AbortedTransactions)
	slices.SortFunc(aborted, func(a, b *sarama.AbortedTransaction) int { return int(a.FirstOffset - b.FirstOffset) })
	open := map[int64]bool{} // producers whose transaction at this place was aborted
	next = t.next
	for _, records := range block.RecordsSet {
		b := records.RecordBatch
		if b == nil {
			return nil, 0, errors.New("a message of the format before Kafka 0.11")
		}
		if b.PartialTrailingRecord {
			break
		}
		for len(aborted) > 0 && aborted[0].FirstOffset <= b.LastOffset() {
			open[aborted[0].ProducerID] = true
			aborted = aborted[1:]
		}
		switch {
		case b.Control:
			commits, err := committed(b)
			if err != nil {
				return nil, 0, err
			}
			if !commits {
				delete(open, b.ProducerID)
			}
		case b.IsTransactional && open[b.ProducerID]:
		default:
			messages = append(messages, t.messages(b)...)
		}
		next = max(next, b.LastOffset()+1)
	}
	return messages, next, nil
}

// committed reads a control batch: its one record's key is a version and 1 for commit, 0 for abort.
func committed(b *sarama.RecordBatch) (bool, error) {
	if len(b.Records) != 1 || len(b.Records[0].Key) < 4 {
		return false, fmt.Errorf("a marker that cannot be read at offset %d", b.FirstOffset)
	}
	return binary.BigEndian.Uint16(b.Records[0].Key[2:]) == 1, nil
}

func (t *Tail) messages(b *sarama.RecordBatch) []Message {
	var out []Message
	for _, r := range b.Records {
		offset := b.FirstOffset + r.OffsetDelta
		if offset < t.next {
			continue // before what was asked for, in the same batch
		}
		m := Message{Topic: t.topic, Partition: t.partition, Offset: offset, Key: r.Key, Value: r.Value, Time: b.FirstTimestamp.Add(r.TimestampDelta)}
		for _, h := range r.Headers {
			m.Headers = append(m.Headers, Header{Key: string(h.Key), Value: h.Value})
		}
		out = append(out, m)
	}
	return out
}

// Close closes the connections. Read opens them again.
func (t *Tail) Close() {
	if t.client != nil {
		_ = t.client.Close()
		t.client = nil
	}
}
