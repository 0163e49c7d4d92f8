package kafka

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"time"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/kafka"
)

// The headers of an event's message: those that the outbox publishes with, and when the store took the event.
const (
	headerType        = "eventType"
	headerVersion     = "aggregateVersion"
	headerCorrelation = "correlationId"
	headerRecorded    = "recordedAt" // microseconds since 1970, 8 bytes, big endian
)

// message is an event as the log keeps it.
func message(topic string, e es.Event, payload []byte, recorded time.Time) kafka.Message {
	return kafka.Message{
		Topic: topic, Key: []byte(e.Stream.ID), Value: payload, Time: recorded,
		Headers: []kafka.Header{
			{Key: headerType, Value: []byte(e.Type)},
			{Key: headerVersion, Value: []byte(strconv.FormatInt(e.Version, 10))},
			{Key: headerCorrelation, Value: []byte(e.CorrelationID)},
			{Key: headerRecorded, Value: binary.BigEndian.AppendUint64(nil, uint64(recorded.UnixMicro()))},
		},
	}
}

// stored is an event as it was read from the log.
type stored struct {
	es.Event
	payload []byte
	offset  int64
}

// errForeign is of a message that somebody else has written to the topic. It is part of no stream.
var errForeign = fmt.Errorf("no header %s: not written by an event store", headerRecorded)

func read(m kafka.Message) (stored, error) {
	at := m.Header(headerRecorded)
	if len(at) != 8 {
		return stored{}, fmt.Errorf("%s/%d offset %d: %w", m.Topic, m.Partition, m.Offset, errForeign)
	}
	e, err := es.Decode(m.Value)
	if err != nil {
		return stored{}, fmt.Errorf("%s/%d offset %d: %w", m.Topic, m.Partition, m.Offset, err)
	}
	e.RecordedAt = time.UnixMicro(int64(binary.BigEndian.Uint64([]byte(at)))).UTC() //nolint:gosec // as message wrote it
	return stored{e, m.Value, m.Offset}, nil
}
