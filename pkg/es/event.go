// Package es is the core of event sourcing: events, streams, aggregates as pure deciders, and the contract of an event
// store. It imports no driver and no network; the stores are in its subpackages.
package es

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// TimeFormat is how a timestamp is written in an event: RFC 3339, UTC, milliseconds.
const TimeFormat = "2006-01-02T15:04:05.000Z"

// Stream names the events of one aggregate.
type Stream struct {
	Type string // aggregate type, such as "Account"
	ID   string // aggregate id
}

// String is the stream as people read it: "Account 7f3c…".
func (s Stream) String() string { return s.Type + " " + s.ID }

// Event is one recorded fact. Its JSON (Encode) has exactly ten keys, in this order: eventId, eventType, aggregateId,
// aggregateType, aggregateVersion, timestamp, correlationId, causationId, metadata, data; causationId and metadata are
// absent when unset.
type Event struct {
	ID            string // UUID, unique in the store
	Type          string
	Stream        Stream
	Version       int64     // of the stream after this event; the first is 1
	At            time.Time // when it occurred; kept to the millisecond, UTC
	CorrelationID string    // the request it belongs to
	CausationID   string    // the command or event that caused it
	Metadata      map[string]any
	Data          json.RawMessage // a JSON object

	// SchemaVersion is the shape of Data that Schemas.Record wrote; 0 means 1. In the JSON it stands in the metadata, under
	// schemaVersion, where it is above 1; in Metadata it never is.
	SchemaVersion int

	// Position and RecordedAt are set by a store when it reads the event back; they are not part of the JSON.
	Position   int64     // place among all events of the store, without gaps, in commit order
	RecordedAt time.Time // when the store took it; never decreases with Position

	recorded *recorded // nil = read from JSON
}

// recorded is a fact as it was decided, with the JSON it was encoded to.
type recorded struct {
	fact Fact
	data json.RawMessage
}

// Encode writes the event's JSON. The bytes are stable: equal events give equal bytes.
func (e Event) Encode() (b []byte, err error) {
	if !json.Valid(e.Data) {
		return nil, fmt.Errorf("encode event %s %s: data is not JSON", e.Type, e.ID)
	}
	b = make([]byte, 0, 320+len(e.Data))
	b = appendField(b, '{', "eventId", e.ID)
	b = appendField(b, ',', "eventType", e.Type)
	b = appendField(b, ',', "aggregateId", e.Stream.ID)
	b = appendField(b, ',', "aggregateType", e.Stream.Type)
	b = append(b, `,"aggregateVersion":`...)
	b = strconv.AppendInt(b, e.Version, 10)
	b = append(b, `,"timestamp":"`...)
	b = e.At.UTC().AppendFormat(b, TimeFormat)
	b = append(b, '"')
	b = appendField(b, ',', "correlationId", e.CorrelationID)
	if e.CausationID != "" {
		b = appendField(b, ',', "causationId", e.CausationID)
	}
	if b, err = e.appendMetadata(b); err != nil {
		return nil, fmt.Errorf("encode event %s %s: metadata: %w", e.Type, e.ID, err)
	}
	b = append(append(b, `,"data":`...), e.Data...)
	return append(b, '}'), nil
}

// schemaKey is where the schema version stands in the metadata.
const schemaKey = "schemaVersion"

// appendMetadata appends the metadata, the schema version first, if there is any.
func (e Event) appendMetadata(b []byte) ([]byte, error) {
	if len(e.Metadata) == 0 && e.SchemaVersion <= 1 {
		return b, nil
	}
	if _, taken := e.Metadata[schemaKey]; taken {
		return nil, fmt.Errorf("%s: is written from the event's schema version only", schemaKey)
	}
	b = append(b, `,"metadata":{`...)
	if e.SchemaVersion > 1 {
		b = append(append(append(b, '"'), schemaKey...), '"', ':')
		b = strconv.AppendInt(b, int64(e.SchemaVersion), 10)
	}
	if len(e.Metadata) == 0 {
		return append(b, '}'), nil
	}
	m, err := Marshal(e.Metadata)
	if err != nil {
		return nil, err
	}
	if e.SchemaVersion > 1 {
		b = append(b, ',')
	}
	return append(b, m[1:]...), nil
}

// takeSchemaVersion takes the schema version out of the metadata.
func (v *envelope) takeSchemaVersion() (int, error) {
	written, ok := v.Metadata[schemaKey]
	if !ok {
		return 0, nil
	}
	n, ok := written.(float64)
	if !ok || n < 1 || n > math.MaxInt32 || n != math.Trunc(n) {
		return 0, fmt.Errorf("metadata.%s must be a whole number from 1: %v", schemaKey, written)
	}
	if delete(v.Metadata, schemaKey); len(v.Metadata) == 0 {
		v.Metadata = nil
	}
	if n == 1 {
		return 0, nil
	}
	return int(n), nil
}

// envelope mirrors the JSON for decoding.
type envelope struct {
	EventID          string          `json:"eventId"`
	EventType        string          `json:"eventType"`
	AggregateID      string          `json:"aggregateId"`
	AggregateType    string          `json:"aggregateType"`
	AggregateVersion int64           `json:"aggregateVersion"`
	Timestamp        time.Time       `json:"timestamp"`
	CorrelationID    string          `json:"correlationId"`
	CausationID      string          `json:"causationId"`
	Metadata         map[string]any  `json:"metadata"`
	Data             json.RawMessage `json:"data"`
}

// Decode reads what Encode wrote. It fails on JSON that is not an event; unknown keys are ignored, so that an older
// reader survives a newer writer.
func Decode(b []byte) (Event, error) {
	var v envelope
	if err := json.Unmarshal(b, &v); err != nil {
		return Event{}, fmt.Errorf("decode event: %w", err)
	}
	if v.EventID == "" || v.EventType == "" || v.AggregateID == "" || v.AggregateType == "" || v.AggregateVersion < 1 || len(v.Data) == 0 {
		return Event{}, fmt.Errorf("decode event: eventId, eventType, aggregateId, aggregateType, aggregateVersion and data must be set: %.200s", b)
	}
	schema, err := v.takeSchemaVersion()
	if err != nil {
		return Event{}, fmt.Errorf("decode event %s (%s): %w", v.EventID, v.EventType, err)
	}
	return Event{
		ID: v.EventID, Type: v.EventType, Stream: Stream{Type: v.AggregateType, ID: v.AggregateID}, Version: v.AggregateVersion,
		At: v.Timestamp, CorrelationID: v.CorrelationID, CausationID: v.CausationID, Metadata: v.Metadata, Data: v.Data, SchemaVersion: schema,
	}, nil
}

// Marshal is json.Marshal without the escaping of <, > and &, which event JSON does not need.
func Marshal(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimRight(buf.Bytes(), "\n"), nil
}

// eventIDSpace is the UUID name space of derived event ids.
var eventIDSpace = uuid.MustParse("6f1c3f54-0c0e-5d0b-9c83-0d2f3c1f8a11")

// EventID derives the id of a command's n-th event (from 0) on a stream. A command that is repeated with the same key
// derives the same ids, and a store takes an id only once: that makes each key a write-once register of the stream.
func EventID(s Stream, key string, n int) string {
	return uuid.NewSHA1(eventIDSpace, []byte(s.Type+"\x00"+s.ID+"\x00"+key+"\x00"+strconv.Itoa(n))).String()
}

// appendField appends lead, the key and the value as JSON.
func appendField(b []byte, lead byte, key, value string) []byte {
	b = append(append(append(b, lead, '"'), key...), '"', ':')
	for i := range len(value) {
		if c := value[i]; c < 0x20 || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			quoted, _ := Marshal(value) // a string always marshals
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), value...), '"')
}

// UnknownTypeError is an event of a type that this code does not know: a newer version wrote it. That is no fault of the event's:
// an instance of that version can read it, so whatever needs it is to be asked again.
type UnknownTypeError struct{ Type string }

// Error names the type.
func (e *UnknownTypeError) Error() string { return fmt.Sprintf("unknown event type %q", e.Type) }

// Unavailable tells the edge, and consumers, that asking again can help.
func (e *UnknownTypeError) Unavailable() bool { return true }
