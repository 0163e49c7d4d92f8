package run

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// hungTimeout replaces the limit of a read from a server that has hung, until it sends something again.
	hungTimeout = time.Second
	// hungEvery is how often a read with a long limit looks whether its server has hung.
	hungEvery   = 5 * time.Second
	pingTimeout = 2 * time.Second

	// connLifetimeMax sends connections to another server if the name of the server has moved and the old one still answers.
	connLifetimeMax    = 10 * time.Minute
	connLifetimeJitter = 2 * time.Minute

	// readOnlyTransaction is the SQLSTATE of a write on a server that is, or has become, a standby.
	readOnlyTransaction = "25006"
)

// errNoCancel refuses the cancel request that pgx wants to send when a statement's context ends. A cancel request that meets
// a commit which waits for a synchronous standby makes Postgres commit without the standby. A closed connection does not.
// A cancel request to a server that has hung would also hold the connection's place in the pool.
var errNoCancel = errors.New("cancel requests are not sent: they end the wait for a synchronous standby")

// HungError says that Postgres sent nothing for too long, or did not take what was sent to it. Whether a commit took place is
// not known.
type HungError struct{ Limit time.Duration }

// Error names the limit.
func (e *HungError) Error() string {
	return fmt.Sprintf("postgres sent nothing for %s; the connection was closed", e.Limit)
}

// Bound gives every acquire, statement and transaction of a pool an end of its own, whatever the caller's context is.
//
// A connection whose server sends nothing for limit while an answer is awaited is closed at once and leaves the pool. So is one
// whose caller gave up. No cancel request is sent, because that could make a commit acknowledged by nobody visible; see
// errNoCancel. A connection must therefore not be used to wait for notifications. A server that says it is read-only loses
// its connections, so that new ones find the primary.
//
// On the server, statement_timeout ends what the closed connection left behind. It does not end a commit that waits for a
// standby, because Postgres switches the timeout off before it commits.
//
// Connections made by pgx.ConnectConfig with the pool's ConnConfig are bound too. Call Bound before the pool is made.
func Bound(cfg *pgxpool.Config, limit time.Duration) { bind(cfg, limit, &hosts{}) }

// bind is Bound for pools that share what they learn of their servers.
func bind(cfg *pgxpool.Config, limit time.Duration, known *hosts) {
	b := bound{limit, known}
	c := cfg.ConnConfig
	c.Tracer = tracer{Tracer: c.Tracer, limit: limit}
	c.DialFunc = b.dial
	keep := c.OnPgError
	c.OnPgError = func(p *pgconn.PgConn, e *pgconn.PgError) bool {
		return e.Code != readOnlyTransaction && (keep == nil || keep(p, e))
	}
	setDefault(c.RuntimeParams, "statement_timeout", fmt.Sprint(limit.Milliseconds()))
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = min(5*time.Second, limit)
	}
	cfg.PingTimeout = min(pingTimeout, limit)
	cfg.MaxConnLifetime, cfg.MaxConnLifetimeJitter = min(cfg.MaxConnLifetime, connLifetimeMax), connLifetimeJitter
}

func setDefault(m map[string]string, name, value string) {
	if _, given := m[name]; !given {
		m[name] = value
	}
}

// bound is what the connections of one pool share.
type bound struct {
	limit time.Duration
	hosts *hosts
}

// hosts are the servers that a process talks to, by address.
type hosts struct{ m sync.Map }

func (h *hosts) get(address string) *host {
	known, _ := h.m.LoadOrStore(address, &host{})
	return known.(*host) //nolint:forcetypeassert // nothing else is stored
}

// host is what is known of one address.
type host struct {
	heard atomic.Int64 // when any connection last had something from it, in Unix nanoseconds
	hung  atomic.Bool  // it sent nothing to anybody for the limit, and nothing since
}

// dial connects, unless it is for a cancel request: only that comes without the mark of a connect.
func (b bound) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if ctx.Value(connecting{}) == nil {
		return nil, errNoCancel
	}
	d := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3},
		Control:         userTimeout(min(b.limit, 15*time.Second)),
	}
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &guardedConn{Conn: conn, host: b.hosts.get(address), limit: b.limit}, nil
}

// guardedConn is a connection whose every read and write ends. pgx reads only when it awaits an answer.
type guardedConn struct {
	net.Conn
	host  *host
	limit time.Duration

	mu     sync.Mutex
	closed bool
	given  [2]time.Time // deadline of reads and of writes that pgx has set; zero = none
	own    [2]time.Time // deadline of the read and the write under way; zero = none is
}

const (
	reading = iota
	writing
)

// begin sets the deadline of a read or a write.
func (c *guardedConn) begin(way int, at time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.own[way] = at
	return c.apply(way)
}

// apply sets the earlier one of pgx's deadline and ours. The caller holds mu.
func (c *guardedConn) apply(way int) error {
	at := c.own[way]
	if g := c.given[way]; at.IsZero() || !g.IsZero() && g.Before(at) {
		at = g
	}
	if way == reading {
		return c.Conn.SetReadDeadline(at)
	}
	return c.Conn.SetWriteDeadline(at)
}

// Read ends after the limit, or soon if the server has hung.
func (c *guardedConn) Read(b []byte) (int, error) {
	n, err := c.bounded(reading, func() (int, error) { return c.Conn.Read(b) })
	if n > 0 {
		c.host.heard.Store(time.Now().UnixNano())
		if c.host.hung.Load() {
			c.host.hung.Store(false)
		}
	}
	return n, err
}

// Write ends after the limit, or soon if the server has hung.
func (c *guardedConn) Write(b []byte) (int, error) {
	sent := 0
	return c.bounded(writing, func() (int, error) {
		n, err := c.Conn.Write(b[sent:])
		sent += n
		return sent, err
	})
}

// bounded reads or writes in turns. Once the limit is over, the connection closes: pgx would say goodbye first, and wait.
func (c *guardedConn) bounded(way int, step func() (int, error)) (int, error) {
	begun := time.Now()
	for late := begun.Add(c.limit); ; {
		hung := c.host.hung.Load()
		pause := hungEvery
		if hung {
			pause = hungTimeout
		}
		now := time.Now()
		at := now.Add(min(pause, late.Sub(now)))
		if err := c.begin(way, at); err != nil {
			return 0, err
		}
		n, err := step()
		var network net.Error
		if err == nil || !errors.As(err, &network) || !network.Timeout() {
			return n, err
		}
		now = time.Now()
		switch {
		case now.Before(at), c.givenUp(way, now): // by the caller
			_ = c.Close()
			return n, err
		case hung, !now.Before(late):
			_ = c.Close()
			if c.host.heard.Load() < begun.UnixNano() { // else this statement waits while the server serves others
				c.host.hung.Store(true)
			}
			to := c.RemoteAddr()
			return n, &net.OpError{Op: "await", Net: to.Network(), Addr: to, Err: &HungError{Limit: now.Sub(begun)}}
		}
	}
}

// givenUp tells whether pgx's own deadline is over.
func (c *guardedConn) givenUp(way int, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.given[way]
	return !g.IsZero() && !g.After(now)
}

// Close closes the connection; reads and writes under way end.
func (c *guardedConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	return c.Conn.Close()
}

// SetDeadline is net.Conn's.
func (c *guardedConn) SetDeadline(t time.Time) error {
	return errors.Join(c.set(reading, t), c.set(writing, t))
}

// SetReadDeadline is net.Conn's.
func (c *guardedConn) SetReadDeadline(t time.Time) error { return c.set(reading, t) }

// SetWriteDeadline is net.Conn's.
func (c *guardedConn) SetWriteDeadline(t time.Time) error { return c.set(writing, t) }

func (c *guardedConn) set(way int, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.given[way] = t
	return c.apply(way)
}

// connecting marks the context of a connect; acquiring holds what ends the context of an acquire.
type (
	connecting struct{}
	acquiring  struct{}
)

// tracer gives an acquire its deadline: pgx acquires with the context that a tracer returns.
type tracer struct {
	Tracer pgx.QueryTracer // nil = none
	limit  time.Duration
}

// Unwrap is the tracer behind this one.
func (t tracer) Unwrap() pgx.QueryTracer { return t.Tracer }

// TraceConnectStart is pgx.ConnectTracer's.
func (t tracer) TraceConnectStart(ctx context.Context, _ pgx.TraceConnectStartData) context.Context {
	return context.WithValue(ctx, connecting{}, true)
}

// TraceConnectEnd is pgx.ConnectTracer's.
func (tracer) TraceConnectEnd(context.Context, pgx.TraceConnectEndData) {}

// TraceAcquireStart is pgxpool.AcquireTracer's.
func (t tracer) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireStartData) context.Context {
	ctx, cancel := context.WithTimeout(ctx, t.limit)
	return context.WithValue(ctx, acquiring{}, cancel)
}

// TraceAcquireEnd is pgxpool.AcquireTracer's.
func (tracer) TraceAcquireEnd(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireEndData) {
	if cancel, ok := ctx.Value(acquiring{}).(context.CancelFunc); ok {
		cancel()
	}
}

// TraceQueryStart is pgx.QueryTracer's.
func (t tracer) TraceQueryStart(ctx context.Context, conn *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	if t.Tracer == nil {
		return ctx
	}
	return t.Tracer.TraceQueryStart(ctx, conn, d)
}

// TraceQueryEnd is pgx.QueryTracer's.
func (t tracer) TraceQueryEnd(ctx context.Context, conn *pgx.Conn, d pgx.TraceQueryEndData) {
	if t.Tracer != nil {
		t.Tracer.TraceQueryEnd(ctx, conn, d)
	}
}

// TraceBatchStart is pgx.BatchTracer's.
func (t tracer) TraceBatchStart(ctx context.Context, conn *pgx.Conn, d pgx.TraceBatchStartData) context.Context {
	if b, ok := t.Tracer.(pgx.BatchTracer); ok {
		return b.TraceBatchStart(ctx, conn, d)
	}
	return ctx
}

// TraceBatchQuery is pgx.BatchTracer's.
func (t tracer) TraceBatchQuery(ctx context.Context, conn *pgx.Conn, d pgx.TraceBatchQueryData) {
	if b, ok := t.Tracer.(pgx.BatchTracer); ok {
		b.TraceBatchQuery(ctx, conn, d)
	}
}

// TraceBatchEnd is pgx.BatchTracer's.
func (t tracer) TraceBatchEnd(ctx context.Context, conn *pgx.Conn, d pgx.TraceBatchEndData) {
	if b, ok := t.Tracer.(pgx.BatchTracer); ok {
		b.TraceBatchEnd(ctx, conn, d)
	}
}
