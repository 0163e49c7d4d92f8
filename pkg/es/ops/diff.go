package ops

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/outbox"
)

// Topics are where a service's events are published.
type Topics struct {
	Kafka  kafka.Config
	Prefix string   // of the topics, such as "billing"
	Types  []string // of aggregates

	Incarnation int64 // of the database, for what is published
	// Void tells of a message whose event the database lost with an older history; nil = of none.
	Void func(m kafka.Message) bool
}

// Difference is one between what is committed and what is published.
type Difference struct {
	Kind  string // Missing, Changed or Unknown
	Event es.Event
	Where string // topic, partition and offset, where there is something
}

// The kinds of a difference.
const (
	Missing = "missing" // committed, and not on its topic
	Changed = "changed" // on its topic with other bytes
	Unknown = "unknown" // on a topic, and not committed
	Lost    = "lost"    // on a topic, committed in an older history of the database, and not in the present one
)

// Diff says how what is published differs from what is committed: what is missing or changed by position, then what is unknown or lost. It keeps what it
// has read in files below dir, so that memory is bounded. What is committed while it runs, and published by then or not, it may tell of.
func Diff(ctx context.Context, log Log, topics Topics, dir string, tell func(Difference) error, say Progress) error {
	seen, err := pebble.Open(dir, &pebble.Options{Logger: quiet{}})
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	defer func() { _ = seen.Close() }()
	if err := topics.read(ctx, seen, say); err != nil {
		return err
	}
	n := int64(0)
	for e, err := range log.ReadAll(ctx, "", es.From{}) {
		if err != nil {
			return err
		}
		if n++; !slices.Contains(topics.Types, e.Stream.Type) {
			continue
		}
		found, err := compare(seen, e)
		if err != nil {
			return err
		}
		if found != "" {
			if err := tell(Difference{Kind: found, Event: e}); err != nil {
				return err
			}
		}
		say.at("compared", n)
	}
	return unknown(seen, tell)
}

// read notes each message's digest by the event's id, and where it was.
func (t Topics) read(ctx context.Context, seen *pebble.DB, say Progress) error {
	n := int64(0)
	for _, aggregateType := range t.Types {
		topic := outbox.Topic(t.Prefix, aggregateType)
		ends, err := kafka.Ends(ctx, t.Kafka, topic)
		if err != nil {
			return err
		}
		for p, end := range ends {
			tail, err := kafka.NewTail(t.Kafka, topic, int32(p), 0)
			if err != nil {
				return err
			}
			for tail.Next() < end && err == nil {
				var messages []kafka.Message
				if messages, err = tail.Read(ctx); err == nil {
					err = t.note(seen, messages)
				}
				for range messages {
					n++
					say.at("read from Kafka", n)
				}
			}
			tail.Close()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// lostKey precedes the ids of events that are lost.
const lostKey = "lost/"

func (t Topics) note(seen *pebble.DB, messages []kafka.Message) error {
	b := seen.NewBatch()
	defer func() { _ = b.Close() }()
	for _, m := range messages {
		where := fmt.Sprintf("%s/%d offset %d", m.Topic, m.Partition, m.Offset)
		id := where // of what is no event
		if e, err := es.Decode(m.Value); err == nil {
			id = e.ID
			where += fmt.Sprintf(", version %d of %s, %s", e.Version, e.Stream, e.Type)
		}
		if p, ok := outbox.PlaceOf(m); ok {
			where += fmt.Sprintf(", from position %d of incarnation %d", p.Position, p.Incarnation)
		}
		kind := Unknown
		if t.Void != nil && t.Void(m) {
			kind, id = Lost, lostKey+id // a repeat of its command in the present history has its id too
		}
		sum := sha256.Sum256(m.Value)
		if err := b.Set([]byte(id), append(sum[:], kind+" "+where...), nil); err != nil {
			return err
		}
	}
	return b.Commit(pebble.NoSync)
}

// compare looks an event up, and takes it away.
func compare(seen *pebble.DB, e es.Event) (kind string, err error) {
	payload, err := e.Encode()
	if err != nil {
		return "", err
	}
	value, closer, err := seen.Get([]byte(e.ID))
	if errors.Is(err, pebble.ErrNotFound) {
		return Missing, nil
	}
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(payload)
	if !bytes.Equal(value[:len(sum)], sum[:]) {
		kind = Changed
	}
	if err := closer.Close(); err != nil {
		return "", err
	}
	return kind, seen.Delete([]byte(e.ID), pebble.NoSync)
}

// unknown tells what is left.
func unknown(seen *pebble.DB, tell func(Difference) error) error {
	it, err := seen.NewIter(nil)
	if err != nil {
		return err
	}
	defer func() { _ = it.Close() }()
	for ok := it.First(); ok; ok = it.Next() {
		kind, where, _ := strings.Cut(string(it.Value()[sha256.Size:]), " ")
		if err := tell(Difference{Kind: kind, Event: es.Event{ID: strings.TrimPrefix(string(it.Key()), lostKey)}, Where: where}); err != nil {
			return err
		}
	}
	return it.Error()
}

// quiet keeps Pebble's own log to what it panics with.
type quiet struct{}

func (quiet) Infof(string, ...any)              {}
func (quiet) Errorf(string, ...any)             {}
func (quiet) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// Republish publishes events that a topic lacks, in their order. A consumer that has had them already, in a repaired stream, drops them by
// their versions.
func Republish(ctx context.Context, topics Topics, events []es.Event) error {
	producer, err := kafka.NewProducer(topics.Kafka)
	if err != nil {
		return err
	}
	defer func() { _ = producer.Close() }()
	const pageMax = 500
	for len(events) > 0 {
		page := events[:min(len(events), pageMax)]
		events = events[len(page):]
		messages := make([]kafka.Message, len(page))
		for i, e := range page {
			if messages[i], err = outbox.Message(topics.Prefix, e, topics.Incarnation); err != nil {
				return err
			}
		}
		if n, err := producer.Publish(ctx, messages); err != nil {
			return fmt.Errorf("publish position %d: %w", page[n].Position, err)
		}
	}
	return nil
}
