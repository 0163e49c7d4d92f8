package main

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// poisonMax bounds putting a toxic into connections.
const poisonMax = time.Second

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
	server   *toxiproxy.ApiServer

	mu    sync.Mutex
	proxy *toxiproxy.Proxy
}

func (l *link) name() string { return l.from + ">" + l.to }

// addr is where the process at the near end connects to.
func (l *link) addr() string { return l.proxy.Listen }

func newLink(server *toxiproxy.ApiServer, from, to, listen, upstream string) (*link, error) {
	l := &link{from: from, to: to, server: server, proxy: &toxiproxy.Proxy{Listen: listen, Upstream: upstream}}
	return l, l.renew()
}

// renew puts a new proxy in the place of the one before, which has stopped: with the toxics given, as JSON.
func (l *link) renew(toxics ...string) error {
	l.proxy = toxiproxy.NewProxy(l.server, l.name(), l.proxy.Listen, l.proxy.Upstream)
	for _, t := range toxics {
		if _, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(t)); err != nil {
			return fmt.Errorf("proxy %s: %w", l.name(), err)
		}
	}
	if err := l.proxy.Start(); err != nil {
		return fmt.Errorf("proxy %s: %w", l.name(), err)
	}
	return nil
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
func (l *link) hang() error { return l.poison("timeout", `{"timeout":0}`) }

// slow delays everything by d, each way.
func (l *link) slow(d time.Duration) error {
	return l.poison("latency", fmt.Sprintf(`{"latency":%d}`, d.Milliseconds()))
}

// poison gives the connections that are there a toxic, and those to come.
func (l *link) poison(kind, attributes string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var toxics []string
	for _, stream := range []string{"upstream", "downstream"} {
		toxics = append(toxics, fmt.Sprintf(`{"name":%[1]q,"stream":%[1]q,"type":%q,"attributes":%s}`, stream, kind, attributes))
	}
	done := make(chan error, 1)
	go func(p *toxiproxy.Proxy) {
		var errs []error
		for _, t := range toxics {
			_, err := p.Toxics.AddToxicJson(strings.NewReader(t))
			errs = append(errs, err)
		}
		done <- errors.Join(errs...)
	}(l.proxy)
	select {
	case err := <-done:
		return err
	case <-time.After(poisonMax): // a connection that just broke, or that nobody reads, is in its way
		l.proxy.Stop()
		return l.renew(toxics...)
	}
}

// heal undoes whatever was done. All connections are closed: the proxy may lose something of what is on its way while a toxic is
// taken out, and no network loses a part of a connection and lets the rest through.
func (l *link) heal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.proxy.Stop()
	return l.renew()
}
