package pgpair

import (
	"context"
	"io"
	"net"
	"sync"
)

// Proxy is one TCP address that leads to a target which can change. Safe for concurrent use.
type Proxy struct {
	listener net.Listener

	mu     sync.Mutex
	target string // empty = new connections are closed at once
	conns  map[net.Conn]struct{}
	all    sync.WaitGroup
}

// NewProxy listens on a free port of this machine.
func NewProxy(ctx context.Context, target string) (*Proxy, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: l, target: target, conns: map[net.Conn]struct{}{}}
	p.all.Go(p.accept)
	return p, nil
}

// Addr is where clients connect to.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Lead sends new connections to another target. Those that are there stay with the old one, as they do when an address moves.
func (p *Proxy) Lead(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// Cut closes all connections, and new ones at once, until Lead.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = ""
	for c := range p.conns {
		_ = c.Close()
	}
}

// Close ends the proxy.
func (p *Proxy) Close() {
	_ = p.listener.Close()
	p.Cut()
	p.all.Wait()
}

func (p *Proxy) accept() {
	for {
		near, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.all.Go(func() { p.carry(near) })
	}
}

// carry copies both ways until either side ends.
func (p *Proxy) carry(near net.Conn) {
	defer func() { _ = near.Close() }()
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	if target == "" {
		return
	}
	far, err := new(net.Dialer).DialContext(context.Background(), "tcp", target)
	if err != nil {
		return
	}
	defer func() { _ = far.Close() }()
	defer p.drop(near, far)
	if !p.keep(near, far) {
		return
	}
	ended := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
		go func() {
			_, _ = io.Copy(way[0], way[1]) // an end or an error: both end the connection
			ended <- struct{}{}
		}()
	}
	<-ended
	_, _ = near.Close(), far.Close()
	<-ended
}

// keep notes connections that Cut must close; false if there was a Cut meanwhile.
func (p *Proxy) keep(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		p.conns[c] = struct{}{}
	}
	return p.target != ""
}

func (p *Proxy) drop(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		delete(p.conns, c)
	}
}
