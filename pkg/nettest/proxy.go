// Package nettest simulates networks and peers that fail without a word.
package nettest

import (
	"io"
	"net"
	"sync"
	"testing"
)

// Proxy forwards TCP connections to one address. Safe for concurrent use.
type Proxy struct {
	l  net.Listener
	to string
	wg sync.WaitGroup

	mu     sync.Mutex
	frozen bool          // for new connections
	thaw   chan struct{} // closed at the end: nothing else frees what was frozen
	conns  map[*pipe]bool
}

// pipe is one connection through the proxy.
type pipe struct {
	near, far net.Conn
	frozen    chan struct{} // closed when it freezes
	once      sync.Once
}

// NewProxy begins to forward connections to an address. It ends with the test.
func NewProxy(t testing.TB, to string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it lives as long as the test
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{l: l, to: to, thaw: make(chan struct{}), conns: map[*pipe]bool{}}
	p.wg.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// Addr is where the proxy listens.
func (p *Proxy) Addr() string { return p.l.Addr().String() }

// Freeze has nothing get through any more, on connections that are there and on those to come. None is closed. So does a
// machine that stands still, or a network that drops every packet.
func (p *Proxy) Freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = true
	for c := range p.conns {
		c.freeze()
	}
}

// Replace forwards new connections again. Those that were frozen stay so, as if another machine had taken the address.
func (p *Proxy) Replace() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = false
}

func (c *pipe) freeze() { c.once.Do(func() { close(c.frozen) }) }

func (p *Proxy) accept() {
	for {
		near, err := p.l.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", p.to) //nolint:noctx // to a port of this machine
		if err != nil {
			_ = near.Close()
			continue
		}
		c := &pipe{near: near, far: far, frozen: make(chan struct{})}
		p.mu.Lock()
		p.conns[c] = true
		if p.frozen {
			c.freeze()
		}
		p.mu.Unlock()
		p.wg.Go(func() { p.forward(c, near, far) })
		p.wg.Go(func() { p.forward(c, far, near) })
	}
}

// forward copies one way. A frozen connection is read no more, and closed by nobody but the test's end.
func (p *Proxy) forward(c *pipe, from, to net.Conn) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		select {
		case <-c.frozen:
			<-p.thaw
			return
		default:
		}
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	_, _ = io.Copy(io.Discard, from)
}

func (p *Proxy) close() {
	_ = p.l.Close()
	close(p.thaw)
	p.mu.Lock()
	for c := range p.conns {
		_, _ = c.near.Close(), c.far.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
}
