package main

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"example.com/billing/deploy/local/system"
	"example.com/billing/test/chaos/auditor"
	"example.com/billing/test/model"
)

const (
	lookEvery   = 100 * time.Millisecond
	recoverMax  = 2 * time.Minute // from the end of the last fault until everything has an outcome
	probeWorker = 900             // of the probes' random source
)

// recovery is how long it took after a fault, whatever other faults came meanwhile.
type recovery struct {
	fault   fault
	fresh   time.Duration // until a transfer asked for after it had completed
	backlog time.Duration // until everything that was accepted before it ended had an outcome
	others  int           // faults that ended meanwhile
}

func (r recovery) longest() time.Duration { return max(r.fresh, r.backlog) }

// recoveries measures, for every fault that ends, how long things take from there.
type recoveries struct {
	load *load
	c    *cluster
	ctx  context.Context //nolint:containedctx // of the measurements, which faults begin

	wg   sync.WaitGroup
	mu   sync.Mutex
	ends []time.Time
	all  []recovery
	errs []error
}

// after begins to measure behind a fault.
func (r *recoveries) after(f fault, at time.Time) {
	r.mu.Lock()
	r.ends = append(r.ends, at)
	n := len(r.ends)
	r.mu.Unlock()
	r.wg.Go(func() {
		m := recovery{fault: f}
		var both sync.WaitGroup
		both.Go(func() { m.fresh = r.fresh(n, at) })
		both.Go(func() { m.backlog = r.backlog(at) })
		both.Wait()
		r.mu.Lock()
		defer r.mu.Unlock()
		end := at.Add(m.longest())
		for i, other := range r.ends {
			if i != n-1 && other.After(at) && other.Before(end) {
				m.others++
			}
		}
		if m.longest() >= recoverMax {
			r.errs = append(r.errs, fmt.Errorf("%s: not recovered after %s", f, recoverMax))
		}
		r.all = append(r.all, m)
	})
}

// fresh asks for a transfer until it has completed.
func (r *recoveries) fresh(n int, at time.Time) time.Duration {
	rng := rand.New(rand.NewPCG(r.load.seed, uint64(probeWorker+n))) //nolint:gosec // drawn again from the seed
	c := r.load.world.currencies[0]
	o := model.Order{Kind: "transfer", Key: fmt.Sprintf("%s-probe-%d", r.load.run, n), Source: c.users[len(c.users)-1], Destination: c.users[len(c.users)-2], Amount: "0.01", Currency: c.code}
	for r.ctx.Err() == nil && time.Since(at) < recoverMax {
		if a := r.load.order(r.ctx, rng, o, endMax); a.Answer == auditor.Accepted && a.Status == "completed" {
			break
		}
	}
	return time.Since(at)
}

// backlog looks until no transaction of before is pending.
func (r *recoveries) backlog(at time.Time) time.Duration {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			conn.Close(context.Background())
		}
	}()
	for time.Since(at) < recoverMax && r.ctx.Err() == nil {
		old := true
		err := func() (err error) {
			ctx, cancel := context.WithTimeout(r.ctx, 2*time.Second)
			defer cancel()
			if conn == nil || conn.IsClosed() {
				if conn, err = r.c.connect(ctx, system.TransactionDatabase); err != nil {
					return err
				}
			}
			return conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM transaction_pending WHERE created_at <= $1)", at).Scan(&old)
		}()
		if err == nil && !old {
			break
		}
		wait(r.ctx, lookEvery)
	}
	return time.Since(at)
}

// slowest are the n recoveries that took longest, the longest first; of each kind the longest one only.
func (r *recoveries) slowest(n int) []recovery {
	r.mu.Lock()
	defer r.mu.Unlock()
	sorted := slices.SortedFunc(slices.Values(r.all), func(a, b recovery) int { return cmp.Compare(b.longest(), a.longest()) })
	var out []recovery
	for _, m := range sorted {
		if !slices.ContainsFunc(out, func(o recovery) bool { return o.fault.kind == m.fault.kind }) {
			out = append(out, m)
		}
	}
	return out[:min(n, len(out))]
}
