// Package kafka wraps IBM/sarama for ordered, at-least-once messaging: a
// Producer that never lets a later message overtake a failed one, a Consumer
// that never skips one, and the checks that a topic keeps its history. It knows
// nothing of what the messages mean.
//
// Constructors check their configuration only; connections are opened on first
// use, so a process may start before its brokers do. EnsureTopics is the
// exception: it talks to the cluster at once.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/IBM/sarama"
	"github.com/cenkalti/backoff/v5"
)

// Timeouts and limits shared by the package. Failures must show within seconds:
// every caller retries.
const (
	dialTimeout   = 3 * time.Second
	readTimeout   = 10 * time.Second
	retryPause    = 100 * time.Millisecond
	retryPauseMax = 8 * time.Second // and 10 s with jitter
)

// protocolVersion is the newest protocol the package speaks. Each connection
// negotiates down from it to what the broker offers. Kafka 4 dropped the
// versions older than 2.1, and keeps everything used here.
var protocolVersion = sarama.V3_6_0_0

// ErrClosed is returned by every method of a Producer, Consumer or Client after Close.
var ErrClosed = errors.New("kafka: closed")

// Config says how to reach the cluster.
type Config struct {
	Brokers  []string     // host:port of some of the brokers, at least one
	ClientID string       // shown in the brokers' logs; default "kafka"
	Log      *slog.Logger // nil = slog.Default()
	// Dial opens a connection to a broker; nil = plain TCP.
	Dial func(network, addr string) (net.Conn, error)
}

// dialer is a function as sarama takes it.
type dialer func(network, addr string) (net.Conn, error)

// Dial is proxy.Dialer's.
func (d dialer) Dial(network, addr string) (net.Conn, error) { return d(network, addr) }

// Header is one name and value of a message's metadata. Names may repeat.
type Header struct {
	Key   string
	Value []byte
}

// Message is one record. Headers keep their order. Partition and Offset are set
// on messages received and ignored by Publish: the key decides the partition.
// Time has millisecond precision; zero means now.
type Message struct {
	Topic      string
	Partition  int32
	Offset     int64
	Key, Value []byte
	Headers    []Header
	Time       time.Time
}

// Header returns the value of the first header named key, or "".
func (m Message) Header(key string) string {
	for _, h := range m.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

// prepared checks the configuration and fills its defaults.
func (cfg Config) prepared() (Config, error) {
	if len(cfg.Brokers) == 0 {
		return cfg, errors.New("kafka: config: no brokers")
	}
	if cfg.ClientID == "" {
		cfg.ClientID = "kafka"
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return cfg, nil
}

// sarama is the part of sarama's configuration that all users share.
func (cfg Config) sarama() *sarama.Config {
	c := sarama.NewConfig()
	c.ClientID = cfg.ClientID
	c.Version = protocolVersion
	c.Net.DialTimeout = dialTimeout
	c.Net.ReadTimeout = readTimeout
	c.Net.WriteTimeout = readTimeout
	// Only the topics in use, and never create one by naming it: a created
	// topic would have the wrong partition count.
	c.Metadata.Full = false
	c.Metadata.AllowAutoTopicCreation = false
	c.Metadata.Retry.Max = 2
	c.Metadata.Retry.Backoff = retryPause
	if cfg.Dial != nil {
		c.Net.Proxy.Enable, c.Net.Proxy.Dialer = true, dialer(cfg.Dial)
	}
	return c
}

// newBackoff returns the pauses between retries: 100 ms doubling to 8 s, ±25 %.
func newBackoff() *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{
		InitialInterval: retryPause, MaxInterval: retryPauseMax, Multiplier: 2, RandomizationFactor: 0.25,
	}
}

// pause waits for d or until ctx ends, and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// wrap names the operation an error came from.
func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("kafka: %s: %w", op, err)
}
