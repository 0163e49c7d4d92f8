package rpc

import (
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// A peer that stands still keeps its sockets open, and its kernel acknowledges what is sent to it. gRPC's keepalive asks every
// 10 s at most. These two find out within 5 s.
const (
	probeEvery   = time.Second
	probeTimeout = 3 * time.Second
	starvedBy    = 250 * time.Millisecond // by which a timer of an overloaded process is late
)

// Probed has a client leave peers that do not answer within 5 s. [Dial] has it.
func Probed() grpc.DialOption {
	return grpc.WithContextDialer((&prober{peers: map[string]*peerConns{}}).dial)
}

// prober closes connections to peers that do not answer, so that calls go to other ones. It asks each address for its health,
// on a connection of its own. A peer that is slow to answer but sends anything at all is alive.
type prober struct {
	mu    sync.Mutex
	peers map[string]*peerConns
}

// peerConns are the open connections to one address.
type peerConns struct {
	heard atomic.Int64 // when something last came, in Unix nanoseconds
	conns map[*probedConn]bool
	stop  context.CancelFunc
}

// dial connects, and probes the address for as long as it has a connection.
func (p *prober) dial(ctx context.Context, address string) (net.Conn, error) {
	network, where := "tcp", address
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, where = "unix", strings.TrimPrefix(path, "//")
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, where)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	to, known := p.peers[address]
	if !known {
		probing, stop := context.WithCancel(context.Background())
		to = &peerConns{conns: map[*probedConn]bool{}, stop: stop}
		p.peers[address] = to
		go p.probe(probing, address, to)
	}
	c := &probedConn{Conn: conn, to: to}
	c.leave = func() { p.remove(address, c) }
	to.conns[c] = true
	return c, nil
}

// remove forgets a connection. The last one of an address ends its probes.
func (p *prober) remove(address string, c *probedConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(c.to.conns, c)
	if len(c.to.conns) == 0 && p.peers[address] == c.to {
		delete(p.peers, address)
		c.to.stop()
	}
}

func (p *prober) probe(ctx context.Context, address string, to *peerConns) {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return // not reachable: the address was connected to
	}
	defer conn.Close() //nolint:errcheck // nothing is left to do on it
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		begun := time.Now()
		asking, cancel := context.WithTimeout(ctx, probeTimeout)
		_, err := healthv1.NewHealthClient(conn).Check(asking, &healthv1.HealthCheckRequest{})
		cancel()
		// A peer that refuses a further connection is stopping, and answers what it has begun. Any other answer is one.
		// A process that is itself starved of time learns nothing from an answer that did not come.
		starved := time.Since(begun) > probeTimeout+starvedBy
		if status.Code(err) == codes.DeadlineExceeded && to.heard.Load() < begun.UnixNano() && !starved && ctx.Err() == nil {
			p.giveUp(to)
		}
	}
}

// giveUp closes all connections to a peer: gRPC connects anew, and uses other peers meanwhile.
func (p *prober) giveUp(to *peerConns) {
	p.mu.Lock()
	var all []*probedConn
	for c := range to.conns {
		all = append(all, c)
	}
	p.mu.Unlock()
	for _, c := range all {
		_ = c.Close()
	}
}

// probedConn is a connection whose peer is probed.
type probedConn struct {
	net.Conn
	to    *peerConns
	leave func()
	once  sync.Once
}

// Read notes that the peer lives.
func (c *probedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.to.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

// Close closes the connection.
func (c *probedConn) Close() error {
	c.once.Do(c.leave)
	return c.Conn.Close()
}
