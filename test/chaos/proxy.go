package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// healMax bounds taking a toxic out of a connection that nobody reads.
const healMax = 2 * time.Second

// medium is what a link leads to.
type medium string

const (
	toService  medium = "service"
	toPostgres medium = "postgres"
	toKafka    medium = "kafka"
)

// link is the way from one process to another, through a proxy of its own.
type link struct {
	from, to string
	medium   medium
	mu       sync.Mutex
	proxy    *toxiproxy.Proxy
}

func (l *link) name() string { return l.from + ">" + l.to }

// addr is where the process at the near end connects to.
func (l *link) addr() string { return l.proxy.Listen }

func newLink(server *toxiproxy.ApiServer, from, to string, m medium, listen, upstream string) (*link, error) {
	l := &link{from: from, to: to, medium: m}
	l.proxy = toxiproxy.NewProxy(server, l.name(), listen, upstream)
	if err := l.proxy.Start(); err != nil {
		return nil, fmt.Errorf("proxy %s: %w", l.name(), err)
	}
	return l, nil
}

func newProxyServer() *toxiproxy.ApiServer {
	return toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
}

// cut closes all connections and refuses new ones.
func (l *link) cut() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.proxy.Stop()
	return nil
}

// hang lets connections stand, and takes new ones, but nothing gets through.
func (l *link) hang() error {
	return l.poison(`{"name":"%[1]s","type":"timeout","stream":"%[1]s","attributes":{"timeout":0}}`)
}

// slow delays everything by d, each way.
func (l *link) slow(d time.Duration) error {
	return l.poison(fmt.Sprintf(`{"name":"%%[1]s","type":"latency","stream":"%%[1]s","attributes":{"latency":%d}}`, d.Milliseconds()))
}

func (l *link) poison(toxic string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, stream := range []string{"upstream", "downstream"} {
		_, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(toxic, stream)))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.name(), err))
		}
	}
	return errors.Join(errs...)
}

// heal undoes whatever was done. All connections are closed first: the proxy may lose something of what is on its way while a
// toxic is taken out, and no network loses a part of a connection and lets the rest through.
func (l *link) heal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.proxy.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), healMax)
	defer cancel()
	l.proxy.Toxics.ResetToxics(ctx)
	if err := l.proxy.Start(); err != nil {
		return fmt.Errorf("proxy %s: %w", l.name(), err)
	}
	return nil
}
