package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"example.com/billing/test/chaos/auditor"
	"example.com/billing/test/drive"
	"example.com/billing/test/model"
)

const (
	attemptMax = 12 * time.Second // for one attempt to be answered
	answerMax  = 2 * time.Minute  // for a request, over all its attempts
	expiry     = 6 * time.Second  // of every other hold: while captures and voids of it may come
	endMax     = 2 * time.Second  // an answer that waits for a transaction's end waits this long
)

// door is a way into the system.
type door struct{ account, transaction grpc.ClientConnInterface }

// load asks for transactions, a worker one at a time, and keeps a journal of it.
type load struct {
	journal *journal
	doors   []door // the first is the gateway
	conns   []*grpc.ClientConn
	seed    uint64
	run     string        // begins every key, so that two runs on one database differ
	pace    time.Duration // a worker begins a request this often at most
	world   world

	asking atomic.Int64 // requests that have no answer yet
}

// newLoad connects to the gateway, and to both pairs of services.
func newLoad(c *cluster, j *journal, seed uint64, pace time.Duration) (*load, error) {
	rest := drive.REST("http://" + c.addrs[gateway])
	l := &load{journal: j, doors: []door{{rest, rest}}, seed: seed, run: uuid.NewString()[:8], pace: pace}
	for _, pair := range [][2]string{{accountA, transactionA}, {accountB, transactionB}} {
		var conns [2]*grpc.ClientConn
		for i, name := range pair {
			conn, err := connect(c.addrs[name])
			if err != nil {
				return nil, err
			}
			conns[i] = conn
			l.conns = append(l.conns, conn)
		}
		l.doors = append(l.doors, door{conns[0], conns[1]})
	}
	return l, nil
}

func connect(addr string) (*grpc.ClientConn, error) {
	quick := backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}
	return grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: quick, MinConnectTimeout: time.Second}))
}

// healthy asks a service for its health.
func healthy(ctx context.Context, addr string) error {
	conn, err := connect(addr)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // the answer is what counts
	res, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
	if err == nil && res.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		err = errors.New(res.GetStatus().String())
	}
	return err
}

func (l *load) close() {
	for _, c := range l.conns {
		_ = c.Close() // nothing is under way any more
	}
}

// unknown is drive.Failer for calls whose failure means that the outcome is not known.
type unknown struct{ err error }

// Fatalf is drive.Failer's.
func (u *unknown) Fatalf(format string, args ...any) {
	u.err = errors.Join(u.err, fmt.Errorf(format, args...))
}

// ask asks until there is an answer: again through any door, with the same key. It returns what the journal got.
func (l *load) ask(ctx context.Context, rng *rand.Rand, r auditor.Request, send func(d *drive.Driver) model.Answer) auditor.Request {
	l.asking.Add(1)
	defer l.asking.Add(-1)
	began := time.Now()
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		r.Attempts++
		a, err := l.attempt(ctx, l.doors[l.choose(rng)], send)
		switch {
		case err == nil && a.Refused != "":
			r.Answer, r.Reason = auditor.Refused, a.Refused
		case err == nil:
			r.Answer, r.ID, r.Status = auditor.Accepted, a.ID, a.Status
			if r.Amount == "" {
				r.Amount = a.Amount
			}
		case time.Since(began) < answerMax && wait(ctx, pause/2+time.Duration(rng.Int64N(int64(pause)))):
			continue
		default:
			r.Answer, r.Reason = auditor.Unanswered, err.Error()
		}
		l.journal.add(r, time.Since(began))
		return r
	}
}

// choose is the gateway as often as the services themselves.
func (l *load) choose(rng *rand.Rand) int {
	if rng.IntN(2) == 0 {
		return 0
	}
	return 1 + rng.IntN(len(l.doors)-1)
}

func (l *load) attempt(ctx context.Context, d door, send func(d *drive.Driver) model.Answer) (model.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptMax)
	defer cancel()
	var u unknown
	a := send(drive.New(ctx, &u, d.account, d.transaction).Waiting(0))
	return a, u.err
}

// order asks for a transaction; waiting is how long its answer waits for the end.
func (l *load) order(ctx context.Context, rng *rand.Rand, o model.Order, waiting time.Duration) auditor.Request {
	r := auditor.Request{Op: o.Kind, Key: o.Key, Source: o.Source, Destination: o.Destination, Amount: o.Amount, Currency: o.Currency, On: o.On}
	expires := time.Time{}
	if o.Kind == "hold" && rng.IntN(2) == 0 {
		expires = time.Now().Add(expiry).Truncate(time.Millisecond)
	}
	return l.ask(ctx, rng, r, func(d *drive.Driver) model.Answer {
		d = d.Waiting(waiting)
		switch {
		case o.Kind == "void":
			return d.Void(o.On)
		case o.Kind == "hold" && !expires.IsZero():
			return d.Expiring(expires).Ask(o)
		}
		return d.Ask(o)
	})
}

// work runs the workers until ctx ends; what they have begun then, they bring to its end, which asked bounds.
func (l *load) work(ctx, asked context.Context, workers int) {
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			next := time.Now()
			k := newWorker(l, w)
			for ctx.Err() == nil {
				k.step(asked)
				if next = next.Add(l.pace); next.Before(time.Now()) {
					next = time.Now() // late: closed loop, nothing is caught up with
				}
				wait(ctx, time.Until(next))
			}
		})
	}
	wg.Go(func() { l.flap(ctx) })
	wg.Wait()
}
