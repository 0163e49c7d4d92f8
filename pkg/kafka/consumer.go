package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"
)

const (
	batchMaxDefault = 256

	sessionTimeout = 10 * time.Second // a member that died is noticed after this
	// A rebalance is noticed on a heartbeat, so the interval is also how long a
	// new member waits for the others. A second of it costs next to nothing.
	heartbeatInterval = time.Second
	rebalanceTimeout  = 15 * time.Second       // to join again after a rebalance began
	handleGrace       = 5 * time.Second        // Handle is waited for after its ctx ended; well within rebalanceTimeout
	fetchWait         = 250 * time.Millisecond // an empty fetch; data ends it at once
	commitInterval    = time.Second
	lingerBytes       = 256 << 10 // as much is fetched without waiting
	// Failing to rejoin for this long, the member starts from scratch. Not before:
	// a new member waits for the session timeout of the one it was.
	rejoinMax    = time.Minute
	leaveTimeout = 5 * time.Second // to leave the group politely
)

// ConsumerConfig configures a Consumer.
type ConsumerConfig struct {
	Config
	Group  string
	Topics []string
	// BatchMax is the most messages of one partition in one call of Handle; default 256.
	BatchMax int
	// Linger is how long messages may wait for others, so that fewer fetches and
	// calls carry them; 0 = not at all.
	Linger time.Duration
	// Handle gets messages of one partition, in offset order. Each partition has one
	// call at a time; calls of different partitions run beside each other, so that
	// a partition that is slow or fails delays no other. There are never more calls
	// than partitions held. Offsets are marked only after it returned nil. After an
	// error the same messages are tried again with exponential backoff (100 ms to
	// 10 s), for ever, until ctx ends or the partition is lost: nothing is skipped.
	// It must return soon after ctx ends, which also happens at every rebalance. A
	// call that does not return within 5 s is left behind, and its partition waits
	// for it. The slice is used again after it returned; keys, values and headers
	// may be kept.
	Handle func(ctx context.Context, batch []Message) error
}

// Consumer is a member of a consumer group that handles every message at least
// once and in order. A group without offsets starts at the oldest message. Where
// the topic has lost messages that the group had not handled, by retention or
// because the topic was made anew, the group goes on at the oldest message that
// is left. The loss is logged as an error and counted (Losses): what the lost
// messages said has to come from their owner's store. Safe for concurrent use.
type Consumer struct {
	cfg    ConsumerConfig
	conf   *sarama.Config
	closed context.Context
	close  context.CancelFunc

	running sync.Mutex    // held by Run
	client  sarama.Client // Run's
	losses  atomic.Int64

	mu       sync.Mutex
	ready    bool
	claims   map[string][]int32
	topicIDs map[string]string        // of the session's topics
	turns    map[source]chan struct{} // one place for each partition: for its call of Handle
	last     time.Time                // when the latest session ended, or Run began to look for one
}

// NewConsumer checks the configuration. It opens no connection; Run does.
func NewConsumer(cfg ConsumerConfig) (*Consumer, error) {
	var err error
	if cfg.Config, err = cfg.prepared(); err != nil {
		return nil, err
	}
	if cfg.Group == "" || len(cfg.Topics) == 0 || cfg.Handle == nil {
		return nil, errors.New("kafka: consumer config: group, topics and handle are required")
	}
	if cfg.BatchMax <= 0 {
		cfg.BatchMax = batchMaxDefault
	}
	conf := cfg.sarama()
	conf.ChannelBufferSize = cfg.BatchMax // what may wait for one call
	conf.Net.ReadTimeout = 2 * rebalanceTimeout
	conf.Consumer.Return.Errors = true
	conf.Consumer.IsolationLevel = sarama.ReadCommitted // an event store's log has what was begun and never committed, too
	conf.Consumer.MaxWaitTime = fetchWait
	conf.Consumer.Fetch.Min = 1
	if cfg.Linger > 0 {
		conf.Consumer.MaxWaitTime, conf.Consumer.Fetch.Min = cfg.Linger, lingerBytes
	}
	conf.Consumer.Retry.Backoff = fetchWait
	conf.Consumer.Offsets.Initial = sarama.OffsetOldest
	conf.Consumer.Offsets.AutoCommit.Interval = commitInterval
	g := &conf.Consumer.Group
	g.ResetInvalidOffsets = false // sarama would go on from Initial without a word; passLost decides
	g.Session.Timeout = sessionTimeout
	g.Heartbeat.Interval = heartbeatInterval
	g.Rebalance.Timeout = rebalanceTimeout
	g.Rebalance.Retry.Backoff = fetchWait
	g.Rebalance.GroupStrategies = []sarama.BalanceStrategy{sarama.NewBalanceStrategyRange()}
	if err := conf.Validate(); err != nil {
		return nil, wrap("consumer config", err)
	}
	c := &Consumer{cfg: cfg, conf: conf, turns: map[source]chan struct{}{}, topicIDs: map[string]string{}}
	c.closed, c.close = context.WithCancel(context.Background())
	return c, nil
}

// Run consumes until ctx ends or Close is called, and then returns nil or
// ErrClosed. It rejoins at once after a rebalance, and with backoff after
// failures, which it logs. A second call waits for the first.
func (c *Consumer) Run(ctx context.Context) error {
	c.running.Lock()
	defer c.running.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.closed, cancel)()

	log := c.cfg.Log.With("group", c.cfg.Group)
	var group sarama.ConsumerGroup
	defer func() { c.leave(group, log) }()
	wait := newBackoff()
	for ctx.Err() == nil {
		began := time.Now()
		var err error
		if group == nil {
			group, err = c.connect()
			c.end()
		}
		failed := err != nil
		if err == nil {
			failed, err = c.session(ctx, group, log)
		}
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			log.Error("kafka: consumer has no session", "topics", c.cfg.Topics, "error", err)
		}
		if err != nil && group != nil && c.idle() > rejoinMax {
			c.leave(group, log)
			group = nil
		}
		lasted := time.Since(began)
		if !failed || lasted > sessionTimeout {
			wait.Reset()
		}
		if failed || lasted < retryPause { // the latter bounds the rate of sessions that end by themselves
			pause(ctx, wait.NextBackOff())
		}
	}
	if c.closed.Err() != nil {
		return wrap("run consumer", ErrClosed)
	}
	return nil
}

// connect opens the connections of a group's member.
func (c *Consumer) connect() (sarama.ConsumerGroup, error) {
	client, err := sarama.NewClient(c.cfg.Brokers, c.conf)
	if err != nil {
		return nil, err
	}
	group, err := sarama.NewConsumerGroupFromClient(c.cfg.Group, client)
	if err != nil {
		_ = client.Close()
		return nil, err
	}
	c.client = client
	return group, nil
}

// session joins the group and consumes until the next rebalance or failure. It
// logs what sarama reports on the way: sarama ends the session without an error
// when a partition cannot be read.
func (c *Consumer) session(ctx context.Context, group sarama.ConsumerGroup, log *slog.Logger) (failed bool, err error) {
	report := func(err error) {
		failed = true
		log.Error("kafka: consumer", "error", err)
	}
	done := make(chan error, 1)
	go func() { done <- group.Consume(ctx, c.cfg.Topics, (*handler)(c)) }()
	for {
		select {
		case e := <-group.Errors():
			report(e)
		case err = <-done:
			for {
				select {
				case e := <-group.Errors():
					report(e)
					continue
				default:
				}
				return failed || err != nil, err
			}
		}
	}
}

// leave leaves the group, for at most leaveTimeout: the rest ends by sarama's timeouts.
func (c *Consumer) leave(group sarama.ConsumerGroup, log *slog.Logger) {
	if group == nil {
		return
	}
	done := make(chan error, 1)
	client := c.client
	go func() { done <- errors.Join(group.Close(), client.Close()) }()
	select {
	case err := <-done:
		if err != nil {
			log.Warn("kafka: leave group", "error", err)
		}
	case <-time.After(leaveTimeout):
		log.Warn("kafka: leave group", "error", "timeout")
	}
}

// Close ends Run and waits until it has returned. Later calls of Run return ErrClosed.
func (c *Consumer) Close() error {
	c.close()
	c.running.Lock()
	defer c.running.Unlock()
	return nil
}

// Ready reports whether a session is up: the member has joined the group. It may
// hold no partition when there are more members than partitions.
func (c *Consumer) Ready() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ready
}

// Assigned returns the partitions held, by topic. The map is the caller's.
func (c *Consumer) Assigned() map[string][]int32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return copyClaims(c.claims)
}

// end notes that there is no session from now on.
func (c *Consumer) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ready, c.claims, c.last = false, nil, time.Now()
}

// idle returns how long there has been no session.
func (c *Consumer) idle() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.last)
}

func copyClaims(claims map[string][]int32) map[string][]int32 {
	out := maps.Clone(claims)
	for topic, partitions := range out {
		out[topic] = slices.Clone(partitions)
	}
	return out
}

// handler is the Consumer as sarama sees it.
type handler Consumer

// Setup begins a session.
func (h *handler) Setup(s sarama.ConsumerGroupSession) error {
	if err := (*Consumer)(h).passLost(s); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ready, h.claims = true, copyClaims(s.Claims())
	h.cfg.Log.Info("kafka: consumer joined", "group", h.cfg.Group, "generation", s.GenerationID(), "assigned", h.claims)
	return nil
}

// Cleanup ends a session; sarama commits the marked offsets after it.
func (h *handler) Cleanup(sarama.ConsumerGroupSession) error {
	(*Consumer)(h).end()
	return nil
}

// ConsumeClaim handles one partition, in batches of what is already waiting.
func (h *handler) ConsumeClaim(s sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	ctx, id := s.Context(), (*Consumer)(h).topicID(claim.Topic())
	waiting := make([]Message, 0, h.cfg.BatchMax)
	for {
		waiting = waiting[:0]
		select {
		case <-ctx.Done():
			return nil
		case m, open := <-claim.Messages():
			if !open {
				return nil
			}
			waiting = append(waiting, fromSarama(m))
		}
	more:
		for len(waiting) < h.cfg.BatchMax {
			select {
			case m, open := <-claim.Messages():
				if !open {
					break more // the next receive ends the claim
				}
				waiting = append(waiting, fromSarama(m))
			default:
				break more
			}
		}
		if !h.handle(ctx, waiting) {
			return nil
		}
		s.MarkOffset(claim.Topic(), claim.Partition(), waiting[len(waiting)-1].Offset+1, id)
	}
}

// handle calls Handle until it succeeds or ctx ends, and reports which.
func (h *handler) handle(ctx context.Context, messages []Message) bool {
	wait := newBackoff()
	for attempt := 1; ctx.Err() == nil; attempt++ {
		err := h.call(ctx, messages)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		h.cfg.Log.Warn("kafka: batch is tried again", "group", h.cfg.Group, "topic", messages[0].Topic,
			"partition", messages[0].Partition, "offset", messages[0].Offset, "messages", len(messages),
			"attempt", attempt, "error", err)
		pause(ctx, wait.NextBackOff())
	}
	return false
}

// source is where messages come from.
type source struct {
	topic     string
	partition int32
}

// errLeftBehind says that a call of Handle goes on although its ctx has ended.
var errLeftBehind = errors.New("the handler does not return")

// call calls Handle once, in the partition's turn. A call that outlives ctx by handleGrace is left behind: the
// session of the other partitions must be able to end. The turn stays taken until that call returns.
func (h *handler) call(ctx context.Context, messages []Message) error {
	turn := h.turn(source{messages[0].Topic, messages[0].Partition})
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	done := make(chan error, 1)
	go func() {
		defer func() { <-turn }()
		done <- h.protected(ctx, messages)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	late := time.NewTimer(handleGrace)
	defer late.Stop()
	select {
	case err := <-done:
		return err
	case <-late.C:
		h.cfg.Log.Error("kafka: handler is left behind", "group", h.cfg.Group, "topic", messages[0].Topic,
			"partition", messages[0].Partition, "offset", messages[0].Offset)
		return errLeftBehind
	}
}

// turn is the place for a partition's call.
func (h *handler) turn(s source) chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.turns[s] == nil {
		h.turns[s] = make(chan struct{}, 1)
	}
	return h.turns[s]
}

// protected calls Handle. A panic is an error like another: a message must not end the process again and again.
func (h *handler) protected(ctx context.Context, messages []Message) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("handler panicked: %v", p)
		}
	}()
	return h.cfg.Handle(ctx, messages)
}

func fromSarama(m *sarama.ConsumerMessage) Message {
	out := Message{
		Topic: m.Topic, Partition: m.Partition, Offset: m.Offset, Key: m.Key, Value: m.Value, Time: m.Timestamp,
	}
	if len(m.Headers) > 0 {
		out.Headers = make([]Header, len(m.Headers))
		for i, h := range m.Headers {
			out.Headers[i] = Header{Key: string(h.Key), Value: h.Value}
		}
	}
	return out
}
