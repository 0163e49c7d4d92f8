package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/IBM/sarama"
)

// probeTimeout bounds each step of a probe: dial, write, read.
const probeTimeout = 2 * time.Second

// Client answers whether the cluster is there, for readiness probes. Safe for
// concurrent use; concurrent calls share one probe.
type Client struct {
	cfg  Config
	conf *sarama.Config

	mu     sync.Mutex
	closed bool
	probe  *probe // the one under way, nil = none

	broker *sarama.Broker // kept open between probes; used by the probe under way only
}

type probe struct {
	done chan struct{}
	err  error // set before done is closed
}

// Dial checks the configuration. It opens no connection: Healthy does, again and
// again while the brokers are away.
func Dial(cfg Config) (*Client, error) {
	cfg, err := cfg.prepared()
	if err != nil {
		return nil, err
	}
	conf := cfg.sarama()
	conf.Net.DialTimeout, conf.Net.ReadTimeout, conf.Net.WriteTimeout = probeTimeout, probeTimeout, probeTimeout
	if err := conf.Validate(); err != nil {
		return nil, wrap("client config", err)
	}
	return &Client{cfg: cfg, conf: conf}, nil
}

// Healthy makes one round trip to any broker and returns nil if it was answered
// by a cluster with brokers. When ctx ends first the round trip is left to its
// own timeout (2 s a step), and the next call waits for the same one.
func (c *Client) Healthy(ctx context.Context) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return wrap("health", ErrClosed)
	}
	p := c.probe
	if p == nil {
		p = &probe{done: make(chan struct{})}
		c.probe = p
		go c.run(p)
	}
	c.mu.Unlock()
	select {
	case <-p.done:
		return wrap("health", p.err)
	case <-ctx.Done():
		return wrap("health", ctx.Err())
	}
}

// Close waits for the probe under way and closes the connection.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	p := c.probe
	c.mu.Unlock()
	if p != nil {
		<-p.done
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broker == nil {
		return nil
	}
	err := c.broker.Close()
	c.broker = nil
	return wrap("close client", err)
}

func (c *Client) run(p *probe) {
	p.err = c.ask()
	c.mu.Lock()
	c.probe = nil
	c.mu.Unlock()
	close(p.done)
}

// ask tries the open connection, then a new one to each broker.
func (c *Client) ask() error {
	if c.broker != nil {
		if describe(c.broker) == nil {
			return nil
		}
		_ = c.broker.Close()
		c.broker = nil
	}
	var errs []error
	for _, addr := range c.cfg.Brokers {
		b := sarama.NewBroker(addr)
		err := b.Open(c.conf)
		if err == nil {
			err = describe(b)
		}
		if err == nil {
			c.broker = b
			return nil
		}
		_ = b.Close()
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
	}
	return errors.Join(errs...)
}

func describe(b *sarama.Broker) error {
	answer, err := b.DescribeCluster(sarama.NewDescribeClusterRequest(protocolVersion))
	switch {
	case err != nil:
		return err
	case !errors.Is(answer.Err, sarama.ErrNoError):
		return answer.Err
	case len(answer.Brokers) == 0:
		return sarama.ErrOutOfBrokers
	}
	return nil
}
