package kafka

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
)

func claim(t *testing.T, cfg Config, topic string) *Claim {
	t.Helper()
	c, err := ClaimPartition(testContext(t), cfg, topic, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func texts(n int, prefix string) []Message {
	var out []Message
	for i := range n {
		out = append(out, Message{Key: []byte("k"), Value: fmt.Appendf(nil, "%s%d", prefix, i), Headers: []Header{{Key: "h", Value: []byte(prefix)}}})
	}
	return out
}

func commitAll(t *testing.T, c *Claim, messages []Message) int64 {
	t.Helper()
	offsets, err := c.Commit(testContext(t), messages)
	if err != nil || len(offsets) != len(messages) {
		t.Fatal(offsets, err)
	}
	return offsets[0]
}

// readTo reads what is committed before an offset.
func readTo(t *testing.T, cfg Config, topic string, from, end int64) []Message {
	t.Helper()
	tail, err := NewTail(cfg, topic, 0, from)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	var all []Message
	for ctx := testContext(t); tail.Next() < end; {
		messages, err := tail.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, messages...)
	}
	return all
}

func values(messages []Message) (out []string) {
	for _, m := range messages {
		out = append(out, string(m.Value))
	}
	return out
}

// Whoever claims a partition last is the only one who can write to it, and knows where what was written before ends.
func TestTheLastClaimIsTheOnlyWriter(t *testing.T) {
	cfg := testConfig(t)
	topic := testTopic(t, cfg, 1)
	a := claim(t, cfg, topic)
	if a.End() != 0 {
		t.Errorf("an empty log ends at %d", a.End())
	}
	if first := commitAll(t, a, texts(2, "a")); first != 0 {
		t.Errorf("the first offset is %d", first)
	}
	commitAll(t, a, texts(1, "a again "))
	if err := a.Held(testContext(t)); err != nil {
		t.Errorf("held: %v", err)
	}
	b := claim(t, cfg, topic)
	var fenced *FencedError
	if err := a.Held(testContext(t)); !errors.As(err, &fenced) || fenced.Topic != topic {
		t.Errorf("the earlier claim is said to be held: %v", err)
	}
	late := &Claim{}
	*late = *a
	late.over = nil // it has not asked
	if _, err := late.Commit(testContext(t), texts(1, "late ")); !errors.As(err, &fenced) {
		t.Errorf("the earlier claim commits: %v", err)
	}
	if _, err := late.Commit(testContext(t), texts(1, "later ")); !errors.As(err, &fenced) || late.Over() == nil {
		t.Errorf("after its end: %v", err)
	}
	if got := fmt.Sprint(values(readTo(t, cfg, topic, 0, b.End()))); got != "[a0 a1 a again 0]" {
		t.Errorf("before the end of the second claim: %s", got)
	}
	first := commitAll(t, b, texts(2, "b"))
	got := readTo(t, cfg, topic, first, first+2)
	if fmt.Sprint(values(got)) != "[b0 b1]" || got[0].Offset != first || got[1].Header("h") != "b" || string(got[0].Key) != "k" {
		t.Errorf("from %d: %+v", first, got)
	}
}

// A transaction that its writer left open is decided by the next claim: nobody ever sees it, and readers get past it.
func TestWhatWasLeftOpenIsAborted(t *testing.T) {
	cfg := testConfig(t)
	topic := testTopic(t, cfg, 1)
	a := claim(t, cfg, topic)
	commitAll(t, a, texts(1, "a"))
	if err := a.begin(testContext(t)); err != nil {
		t.Fatal(err)
	}
	batch, n, err := a.batch(texts(3, "open "))
	if err != nil || n != 3 {
		t.Fatal(n, err)
	}
	if _, err := a.produce(batch); err != nil {
		t.Fatal(err)
	}
	b := claim(t, cfg, topic)
	if b.End() < 5 {
		t.Errorf("the log ends at %d, with 4 messages and a marker at least", b.End())
	}
	first := commitAll(t, b, texts(1, "b"))
	if got := fmt.Sprint(values(readTo(t, cfg, topic, 0, first+1))); got != "[a0 b0]" {
		t.Errorf("committed are %s", got)
	}
}

// What does not fit into one batch is one transaction all the same, without a gap; what fits into none is refused, and nothing is written.
func TestACommitOfSeveralBatches(t *testing.T) {
	cfg := testConfig(t)
	topic := testTopic(t, cfg, 1)
	a := claim(t, cfg, topic)
	var large []Message
	for i := range 7 {
		large = append(large, Message{Value: bytes.Repeat([]byte{byte('a' + i)}, 400<<10)})
	}
	first := commitAll(t, a, large)
	got := readTo(t, cfg, topic, 0, first+7)
	if len(got) != 7 {
		t.Fatalf("%d messages", len(got))
	}
	for i, m := range got {
		if m.Offset != first+int64(i) || !bytes.Equal(m.Value, large[i].Value) {
			t.Errorf("message %d is at %d", i, m.Offset)
		}
	}
	if _, err := a.Commit(testContext(t), []Message{{Value: []byte("small")}, {Value: make([]byte, partitionBytesMax)}}); err == nil {
		t.Error("a message that is too large was taken")
	}
	b := claim(t, cfg, topic)
	if got := readTo(t, cfg, topic, first+7, b.End()); len(got) != 0 {
		t.Errorf("%d messages were written of a commit that was refused", len(got))
	}
}

// Nothing is sent for a caller who has left, and the claim stands.
func TestNothingIsCommittedForACallerWhoHasLeft(t *testing.T) {
	cfg := testConfig(t)
	topic := testTopic(t, cfg, 1)
	a := claim(t, cfg, topic)
	ctx, cancel := context.WithCancel(testContext(t))
	cancel()
	if _, err := a.Commit(ctx, texts(1, "a")); !errors.Is(err, context.Canceled) || a.Over() != nil {
		t.Errorf("%v, then %v", err, a.Over())
	}
	if first := commitAll(t, a, texts(1, "a")); first != 0 {
		t.Errorf("the first offset is %d", first)
	}
	a.Close()
	if _, err := a.Commit(testContext(t), texts(1, "a")); !errors.Is(err, ErrClosed) {
		t.Errorf("a closed claim: %v", err)
	}
	if _, err := ClaimPartition(ctx, cfg, topic, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("claim: %v", err)
	}
	if _, err := ClaimPartition(testContext(t), Config{}, topic, 0); err == nil {
		t.Error("a claim without brokers")
	}
}

// A topic that is made anew under its name is another one.
func TestTopicID(t *testing.T) {
	cfg := testConfig(t)
	topic := testTopic(t, cfg, 1)
	ctx := testContext(t)
	id, err := TopicID(ctx, cfg, topic)
	if err != nil || len(id) != 22 { // 16 bytes in base64
		t.Fatalf("%q, %v", id, err)
	}
	if again, err := TopicID(ctx, cfg, topic); err != nil || again != id {
		t.Errorf("%q, %v; want %q", again, err, id)
	}
	if _, err := TopicID(ctx, cfg, topic+"-unknown"); err == nil {
		t.Error("an unknown topic has an id")
	}
	if err := testAdmin(t, cfg).DeleteTopic(topic); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the topic is made anew", func() bool { return EnsureTopics(ctx, cfg, Topic{Name: topic, Partitions: 1}) == nil })
	eventually(t, "it has another id", func() bool { other, err := TopicID(ctx, cfg, topic); return err == nil && other != id })
}

// What a writer that died had begun, and never committed, reaches no consumer.
func TestConsumersReadWhatIsCommitted(t *testing.T) {
	cfg := testConfig(t)
	topic := testTopic(t, cfg, 1)
	ctx := testContext(t)
	a := claim(t, cfg, topic)
	if err := a.begin(ctx); err != nil {
		t.Fatal(err)
	}
	batch, _, err := a.batch(texts(1, "begun "))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.produce(batch); err != nil {
		t.Fatal(err)
	}
	a.Close()
	commitAll(t, claim(t, cfg, topic), texts(1, "committed "))
	got := make(chan string, 10)
	c, err := NewConsumer(ConsumerConfig{Config: cfg, Group: topic, Topics: []string{topic}, Handle: func(_ context.Context, messages []Message) error {
		for _, m := range messages {
			got <- string(m.Value)
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- c.Run(running) }()
	select {
	case first := <-got:
		if first != "committed 0" {
			t.Errorf("a consumer reads %q", first)
		}
	case <-ctx.Done():
		t.Error("a consumer reads nothing")
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A note that arrives late, from a claim that is over, takes no newer one's place.
func TestALateNote(t *testing.T) {
	cfg := testConfig(t)
	topic := testTopic(t, cfg, 1)
	ctx := testContext(t)
	a := claim(t, cfg, topic)
	if texts, err := a.Noted(ctx); err != nil || len(texts) != 0 {
		t.Fatalf("of nobody: %q %v", texts, err)
	}
	if err := a.Note(ctx, "old"); err != nil {
		t.Fatal(err)
	}
	b := claim(t, cfg, topic)
	if err := b.Note(ctx, "new"); err != nil {
		t.Fatal(err)
	}
	if err := a.Note(ctx, "late"); err != nil {
		t.Fatal(err)
	}
	texts, err := claim(t, cfg, topic).Noted(ctx)
	slices.Sort(texts)
	if err != nil || fmt.Sprint(texts) != "[late new]" {
		t.Errorf("%q %v", texts, err)
	}
}
