package kafka

import (
	"context"
	"errors"
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

// flights is a handler that keeps the version up to which each partition was handled, and checks that each
// partition has one call at a time, with its messages in order.
type flights struct {
	t    *testing.T
	keys map[int32]string
	// before is called ahead of each call, of one partition; an error fails it.
	before func(ctx context.Context, partition int32) error
	shared bool // another member may have handled messages in between

	mu      sync.Mutex
	flying  map[int32]bool
	next    map[int32]int64
	handled map[int32]int64
}

func newFlights(t *testing.T, keys map[int32]string, before func(context.Context, int32) error) *flights {
	return &flights{t: t, keys: keys, before: before, flying: map[int32]bool{}, next: map[int32]int64{}, handled: map[int32]int64{}}
}

func (f *flights) handle(ctx context.Context, batch []Message) error {
	of := batch[0].Partition
	f.mu.Lock()
	if f.flying[of] {
		f.t.Errorf("partition %d has two calls at the same time", of)
	}
	f.flying[of] = true
	f.mu.Unlock()
	err := f.before(ctx, of)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flying[of] = false
	if err != nil {
		return err
	}
	for _, m := range batch {
		if m.Partition != of {
			f.t.Errorf("a call has messages of partitions %d and %d", of, m.Partition)
		}
		if at, known := f.next[of]; known && m.Offset > at && !f.shared {
			f.t.Errorf("partition %d: offset %d, want %d", of, m.Offset, f.next[of])
		}
		f.next[of] = m.Offset + 1
		if string(m.Key) == f.keys[of] {
			f.handled[of] = max(f.handled[of], version(m))
		}
	}
	return nil
}

// shows tells whether these partitions have been handled up to a version.
func (f *flights) shows(v int64, partitions ...int32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range partitions {
		if f.handled[p] != v {
			return false
		}
	}
	return true
}

// A partition whose handler blocks, or fails again and again, delays no other one: each has a flight of its own.
func TestAStuckPartitionDelaysNoOther(t *testing.T) {
	t.Parallel()
	const stuck, versions = int32(2), 5
	for name, before := range map[string]func(well <-chan struct{}) error{
		"blocked": func(well <-chan struct{}) error { <-well; return nil },
		"failing": func(well <-chan struct{}) error {
			select {
			case <-well:
				return nil
			default:
				return errors.New("not this one")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(t)
			topic := testTopic(t, cfg, 4)
			keys := spread(t, cfg, topic, 4, versions)
			well := make(chan struct{})
			heal := sync.OnceFunc(func() { close(well) })
			t.Cleanup(heal)
			f := newFlights(t, keys, func(_ context.Context, partition int32) error {
				if partition != stuck {
					return nil
				}
				return before(well)
			})
			group := unique(t)
			c := testConsumer(t, cfg, group, topic, f.handle)
			eventually(t, "the others flow", func() bool { return f.shows(versions, 0, 1, 3) })
			p := testProducer(t, cfg)
			for _, key := range keys {
				if _, err := publishAll(testContext(t), p, []Message{versioned(topic, key, versions+1)}); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "what comes meanwhile flows too", func() bool { return f.shows(versions+1, 0, 1, 3) })
			if !f.shows(0, stuck) {
				t.Error("the stuck partition was handled")
			}
			heal()
			eventually(t, "it goes on where it was", func() bool { return f.shows(versions+1, stuck) })
			_ = c.Close()
			again := newFlights(t, keys, func(_ context.Context, partition int32) error {
				t.Errorf("partition %d is handled again", partition)
				return nil
			})
			second := testConsumer(t, cfg, group, topic, again.handle)
			eventually(t, "the next member joins", func() bool { return len(second.Assigned()[topic]) == 4 })
		})
	}
}

// A handler that does not return when its partition is lost does not keep the member from the group: the other
// partitions go on, here and at the other member.
func TestAHandlerThatDoesNotReturnIsLeftBehind(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	topic, group := testTopic(t, cfg, 4), unique(t)
	keys := spread(t, cfg, topic, 4, 1)
	well, blocked := make(chan struct{}), make(chan struct{}, 1)
	heal := sync.OnceFunc(func() { close(well) })
	t.Cleanup(heal)
	first := newFlights(t, keys, func(_ context.Context, partition int32) error {
		if partition == 0 {
			select {
			case blocked <- struct{}{}:
			default:
			}
			<-well // whatever its ctx says
		}
		return nil
	})
	first.shared = true
	a := testConsumer(t, cfg, group, topic, first.handle)
	<-blocked
	second := newFlights(t, keys, func(context.Context, int32) error { return nil })
	second.shared = true
	b := testConsumer(t, cfg, group, topic, second.handle)
	eventually(t, "they share", func() bool { return len(a.Assigned()[topic]) == 2 && len(b.Assigned()[topic]) == 2 })
	p := testProducer(t, cfg)
	for _, key := range keys {
		if _, err := publishAll(testContext(t), p, []Message{versioned(topic, key, 2)}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the partitions of both flow", func() bool {
		for partition := range int32(4) {
			mine := slices.Contains(a.Assigned()[topic], partition)
			if partition == 0 && mine {
				continue
			}
			if !first.shows(2, partition) && !second.shows(2, partition) {
				return false
			}
		}
		return true
	})
	heal()
	eventually(t, "the stuck one goes on", func() bool { return first.shows(2, 0) || second.shows(2, 0) })
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
