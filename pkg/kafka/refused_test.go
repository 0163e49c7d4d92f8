package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// smallTopic takes record batches up to 4 KiB.
func smallTopic(t *testing.T, cfg Config, partitions int32) string {
	t.Helper()
	topic, limit, forever := unique(t), "4096", "-1"
	detail := &sarama.TopicDetail{NumPartitions: partitions, ReplicationFactor: 1, ConfigEntries: map[string]*string{
		"max.message.bytes": &limit, "retention.ms": &forever, "retention.bytes": &forever,
	}}
	if err := testAdmin(t, cfg).CreateTopic(topic, detail, false); err != nil { // a setting that is changed later takes a moment to hold
		t.Fatal(err)
	}
	if err := EnsureTopics(testContext(t), cfg, Topic{Name: topic, Partitions: partitions}); err != nil {
		t.Fatal(err)
	}
	return topic
}

// A message that the topic never takes is named, wherever it stands, and what stands before it is acknowledged. What is only
// too much together goes through in smaller sets.
func TestARefusedMessageIsNamed(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	topic := smallTopic(t, cfg, 3)
	p := testProducer(t, cfg)
	const keys, versions, at = 10, 20, 137
	var batch []Message
	for v := range int64(versions) {
		for k := range keys {
			m := versioned(topic, fmt.Sprint("key", k), v+1)
			m.Headers = []Header{{"padding", make([]byte, 100)}}
			batch = append(batch, m)
		}
	}
	right := batch[at]
	batch[at].Headers = []Header{{"padding", make([]byte, 5000)}}
	rest := batch
	for tries := 0; len(rest) > keys*versions-at; tries++ { // an attempt may be cut short by another reason
		n, err := p.Publish(testContext(t), rest)
		var refused *RefusedError
		if rest = rest[n:]; errors.As(err, &refused) {
			if refused.Index != n || refused.Topic != topic || !errors.Is(err, sarama.ErrMessageSizeTooLarge) {
				t.Errorf("%d acknowledged, then %v: the error does not name the first message left", n, err)
			}
			break
		}
		if tries == 10 {
			t.Fatalf("%d acknowledged: %v", n, err)
		}
	}
	if len(rest) != keys*versions-at {
		t.Fatalf("%d messages are left, want %d: all before the refused one are acknowledged", len(rest), keys*versions-at)
	}
	rest[0] = right
	if _, err := publishAll(testContext(t), p, rest); err != nil {
		t.Fatal(err)
	}
	l := newLedger()
	testConsumer(t, cfg, unique(t), topic, func(_ context.Context, batch []Message) error { l.apply(batch); return nil })
	l.wait(t, keys*versions)
}

// Only an answer about the message itself is a refusal: whatever is wrong with the cluster is not.
func TestAnOutageIsNoRefusal(t *testing.T) {
	t.Parallel()
	cfg, fake := fakeConfig(t)
	topic := testTopic(t, cfg, 1)
	var code atomic.Int32
	fake.ControlKey(0, func(req kmsg.Request) (kmsg.Response, error, bool) {
		fake.KeepControl()
		return refuse(req, int16(code.Load()), func(int32) bool { return true }), nil, true
	})
	for _, c := range []struct {
		err  *kerr.Error
		want bool
	}{
		{kerr.MessageTooLarge, true}, {kerr.InvalidRecord, true}, {kerr.RecordListTooLarge, true},
		{kerr.InvalidTimestamp, false}, {kerr.CorruptMessage, false}, {kerr.NotEnoughReplicas, false}, {kerr.RequestTimedOut, false}, {kerr.NotLeaderForPartition, false},
		{kerr.TopicAuthorizationFailed, false}, {kerr.InvalidProducerEpoch, false}, {kerr.UnknownServerError, false}, {kerr.OutOfOrderSequenceNumber, false},
	} {
		code.Store(int32(c.err.Code))
		_, err := testProducer(t, cfg).Publish(testContext(t), []Message{versioned(topic, "a", 1), versioned(topic, "b", 1)})
		var refused *RefusedError
		if got := errors.As(err, &refused); got != c.want || err == nil || got && refused.Index != 0 {
			t.Errorf("%s: %v, a refusal: %v", c.err.Message, err, got)
		}
	}
}

// A time that the topic does not take is the message's fault where the caller set it. Where the producer did, a clock is wrong.
func TestATimeIsRefused(t *testing.T) {
	t.Parallel()
	cfg, fake := fakeConfig(t)
	topic := testTopic(t, cfg, 1)
	fake.ControlKey(0, func(req kmsg.Request) (kmsg.Response, error, bool) {
		fake.KeepControl()
		return refuse(req, kerr.InvalidTimestamp.Code, func(int32) bool { return true }), nil, true
	})
	set := func(version int64) Message {
		m := versioned(topic, "a", version)
		m.Time = time.UnixMilli(1)
		return m
	}
	for name, c := range map[string]struct {
		batch []Message
		want  bool
	}{
		"set by the caller":      {[]Message{set(1), set(2)}, true},
		"set by the producer":    {[]Message{versioned(topic, "a", 1), versioned(topic, "a", 2)}, false},
		"the first is the clock": {[]Message{versioned(topic, "a", 1), set(2)}, false},
		"the second is":          {[]Message{set(1), versioned(topic, "a", 2)}, true},
	} {
		n, err := testProducer(t, cfg).Publish(testContext(t), c.batch)
		var refused *RefusedError
		if got := errors.As(err, &refused); n != 0 || !errors.Is(err, sarama.ErrInvalidTimestamp) || got != c.want || got && refused.Index != 0 {
			t.Errorf("%s: %d, %v, a refusal: %v", name, n, err, got)
		}
	}
}
