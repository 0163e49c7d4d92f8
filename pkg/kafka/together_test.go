package kafka

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// spread publishes n messages to each of a topic's partitions, and returns a key of each.
func spread(t *testing.T, cfg Config, topic string, partitions, n int) map[int32]string {
	t.Helper()
	keys := map[int32]string{}
	var mu sync.Mutex
	got := make(chan struct{})
	c := testConsumer(t, cfg, unique(t), topic, func(_ context.Context, batch []Message) error {
		mu.Lock()
		defer mu.Unlock()
		for _, m := range batch {
			if keys[m.Partition] == "" {
				keys[m.Partition] = string(m.Key)
				if len(keys) == partitions {
					close(got)
				}
			}
		}
		return nil
	})
	p := testProducer(t, cfg)
	all := make([]Message, 50)
	for k := range all {
		all[k] = versioned(topic, string(rune('a'+k)), 1)
	}
	if _, err := publishAll(testContext(t), p, all); err != nil {
		t.Fatal(err)
	}
	<-got
	_ = c.Close()
	for v := range int64(n - 1) {
		var more []Message
		for _, key := range keys {
			more = append(more, versioned(topic, key, v+2))
		}
		if _, err := publishAll(testContext(t), p, more); err != nil {
			t.Fatal(err)
		}
	}
	return keys
}

// ascending checks that messages of each partition go on where they were, and returns the partitions.
func ascending(t *testing.T, next map[int32]int64, batch []Message) (partitions []int32) {
	t.Helper()
	for _, m := range batch {
		if m.Offset != next[m.Partition] {
			t.Errorf("partition %d: offset %d, want %d", m.Partition, m.Offset, next[m.Partition])
		}
		next[m.Partition] = m.Offset + 1
		if !slices.Contains(partitions, m.Partition) {
			partitions = append(partitions, m.Partition)
		}
	}
	return partitions
}

// await polls a condition where a test cannot be ended; whoever relies on it fails.
func await(ok func() bool) {
	for late := time.Now().Add(20 * time.Second); !ok() && time.Now().Before(late); {
		pause(context.Background(), time.Millisecond)
	}
}

// What comes in from several partitions during a call is in the next one, each partition's in order; one call at a time.
func TestPartitionsAreHandledTogether(t *testing.T) {
	t.Parallel()
	const partitions, versions = 4, 20
	cfg := testConfig(t)
	topic := testTopic(t, cfg, partitions)
	keys := spread(t, cfg, topic, partitions, versions)
	var (
		calls, now atomic.Int32
		next       = map[int32]int64{}
		first      int
		together   = make(chan bool, 1)
		last       = map[int32]int64{}
		done       = make(chan struct{})
	)
	var c *Consumer
	ready := make(chan struct{})
	c, err := NewConsumer(ConsumerConfig{Config: cfg, Group: unique(t), Topics: []string{topic}, Handle: func(_ context.Context, batch []Message) error {
		<-ready
		if now.Add(1) > 1 {
			t.Error("two calls at the same time")
		}
		defer now.Add(-1)
		n := len(ascending(t, next, batch))
		switch calls.Add(1) {
		case 1: // of one partition, or of more that came in before it began
			if first = n; first == partitions { // perhaps there is no second one
				together <- true
			}
			await(func() bool { return c.calls.Len() == partitions-first })
		case 2:
			if first < partitions {
				together <- n == partitions-first
			}
		}
		for _, m := range batch {
			if string(m.Key) == keys[m.Partition] {
				last[m.Partition] = version(m)
			}
		}
		for _, v := range last {
			if v < versions {
				return nil
			}
		}
		if len(last) == partitions {
			select {
			case <-done:
			default:
				close(done)
			}
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	close(ready)
	go func() { _ = c.Run(context.Background()) }()
	t.Cleanup(func() { _ = c.Close() })
	if !<-together {
		t.Error("what waited was not handled together")
	}
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Error("not all has come")
	}
}

// Where a call for several partitions fails each is handled alone: the others do not wait for one that cannot be.
func TestOnePartitionHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	const partitions = 4
	cfg := testConfig(t)
	topic := testTopic(t, cfg, partitions)
	keys := spread(t, cfg, topic, partitions, 1)
	var (
		mu      sync.Mutex
		calls   [][]int32 // partitions of each
		merged  int       // the first call of several
		next    = map[int32]int64{}
		well    atomic.Bool
		sick    atomic.Int32
		handled = map[int32]int64{} // the latest version of a partition's key
	)
	of := func(number int32) int64 {
		mu.Lock()
		defer mu.Unlock()
		return handled[number]
	}
	var c *Consumer
	ready := make(chan struct{})
	sick.Store(-1)
	c, err := NewConsumer(ConsumerConfig{Config: cfg, Group: unique(t), Topics: []string{topic}, Handle: func(_ context.Context, batch []Message) error {
		<-ready
		mu.Lock()
		defer mu.Unlock()
		at := maps.Clone(next)
		of := ascending(t, at, batch)
		if calls = append(calls, of); len(calls) == 1 {
			await(func() bool { return c.calls.Len() == partitions-len(of) })
		}
		if sick.Load() < 0 && len(of) > 1 {
			sick.Store(of[0])
			merged = len(calls) - 1
		}
		if slices.Contains(of, sick.Load()) && !well.Load() {
			return errors.New("not this one")
		}
		next = at
		for _, m := range batch {
			if string(m.Key) == keys[m.Partition] {
				handled[m.Partition] = version(m)
			}
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	close(ready)
	go func() { _ = c.Run(context.Background()) }()
	t.Cleanup(func() { _ = c.Close() })
	p := testProducer(t, cfg)
	for v := int64(1); v <= 3; v++ {
		for number := range int32(partitions) {
			if v > 1 {
				if _, err := publishAll(testContext(t), p, []Message{versioned(topic, keys[number], v)}); err != nil {
					t.Fatal(err)
				}
			}
		}
		for number := range int32(partitions) {
			eventually(t, "the others flow", func() bool { return sick.Load() == number || of(number) == v })
		}
	}
	mu.Lock()
	for n, number := range calls[merged] {
		if alone := calls[merged+1+n]; len(alone) != 1 || alone[0] != number {
			t.Errorf("partitions of the calls: %v", calls)
			break
		}
	}
	mu.Unlock()
	if v := of(sick.Load()); v != 0 {
		t.Errorf("version %d of the partition that cannot be handled", v)
	}
	well.Store(true)
	eventually(t, "it goes on where it was", func() bool { return of(sick.Load()) == 3 })
}

// Messages that come one by one are carried together where they may wait.
func TestLinger(t *testing.T) {
	t.Parallel()
	const messages = 50
	cfg := testConfig(t)
	for _, linger := range []time.Duration{0, 500 * time.Millisecond} {
		topic := testTopic(t, cfg, 1)
		var calls, got atomic.Int32
		c, err := NewConsumer(ConsumerConfig{Config: cfg, Group: unique(t), Topics: []string{topic}, Linger: linger, Handle: func(_ context.Context, batch []Message) error {
			calls.Add(1)
			got.Add(int32(len(batch)))
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		if f := c.conf.Consumer; (f.MaxWaitTime == linger) != (linger > 0) || (f.Fetch.Min > 1) != (linger > 0) {
			t.Errorf("linger %v: fetches wait for %v or %d bytes", linger, f.MaxWaitTime, f.Fetch.Min)
		}
		go func() { _ = c.Run(context.Background()) }()
		eventually(t, "it has joined", c.Ready)
		p := testProducer(t, cfg)
		for v := range int64(messages) {
			if _, err := publishAll(testContext(t), p, []Message{versioned(topic, "k", v+1)}); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "all has come", func() bool { return got.Load() == messages })
		if n := calls.Load(); linger > 0 && n > messages/2 {
			t.Errorf("%d calls for %d messages", n, messages)
		}
		_ = c.Close()
	}
}
