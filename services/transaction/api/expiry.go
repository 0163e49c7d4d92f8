package api

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/rpc"
	"example.com/billing/pkg/run"
	"example.com/billing/services/edge"
	"example.com/billing/services/transaction"
	"example.com/billing/services/transaction/readmodel"
)

// Expiry releases holds whose time is over. A hold that cannot be released, for a capture of it is under way, is tried
// again later and later: a capture that is stuck may stay so for days.
type Expiry struct {
	Server *Server
	Log    *slog.Logger

	after readmodel.Expired // the last round ended here

	mu    sync.Mutex
	later map[string]retry // by hold; only of holds that could not be released
}

const (
	expiryEvery    = time.Second
	expiryPageMax  = 500
	expiryPagesMax = 10 // in one round; the next one goes on behind them
	expiryFlights  = 64 // holds at the same time, for the executor to find in one group
	expiryPauseMin = 2 * time.Second
	expiryPauseMax = 5 * time.Minute
	expiryLaterMax = 50_000 // holds that are remembered; more are tried as if they were new
)

// retry is when a hold is tried again.
type retry struct {
	at    time.Time
	pause time.Duration // that led to it
}

// Run looks for expired holds from time to time, until ctx ends.
func (x *Expiry) Run(ctx context.Context) error {
	return run.Every(ctx, expiryEvery, x.Log, "expire holds", func(ctx context.Context) error {
		_, err := x.sweep(ctx, time.Now())
		return err
	})
}

// sweep asks for the release of expired holds whose turn it is, a bounded number of them, and returns how many.
func (x *Expiry) sweep(ctx context.Context, now time.Time) (tried int, err error) {
	for range expiryPagesMax {
		holds, err := x.Server.List.ExpiredHolds(ctx, x.after, expiryPageMax)
		if err != nil {
			return tried, err
		}
		var g errgroup.Group
		g.SetLimit(expiryFlights)
		for _, h := range holds {
			if !x.due(h.HoldID, now) {
				continue
			}
			tried++
			g.Go(func() error {
				x.try(ctx, h, now)
				return nil
			})
		}
		_ = g.Wait()
		if len(holds) < expiryPageMax {
			x.after = readmodel.Expired{}
			x.prune(now)
			return tried, nil
		}
		x.after = holds[len(holds)-1]
	}
	return tried, nil
}

// try releases a hold, or notes when it is to be tried again.
func (x *Expiry) try(ctx context.Context, h readmodel.Expired, now time.Time) {
	released, err := x.expire(ctx, h)
	if ctx.Err() != nil {
		return
	}
	if err != nil { // the others may do better
		x.Log.Warn("expire hold", "hold", h.HoldID, "error", err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if released {
		delete(x.later, h.HoldID)
		return
	}
	last, known := x.later[h.HoldID]
	if !known && len(x.later) >= expiryLaterMax {
		return
	}
	if x.later == nil {
		x.later = map[string]retry{}
	}
	pause := min(max(2*last.pause, expiryPauseMin), expiryPauseMax)
	x.later[h.HoldID] = retry{at: now.Add(pause), pause: pause}
}

// due tells whether it is a hold's turn.
func (x *Expiry) due(holdID string, now time.Time) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return !now.Before(x.later[holdID].at)
}

// prune forgets holds that have not been tried for long: they are not open any more.
func (x *Expiry) prune(now time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for id, r := range x.later {
		if now.Sub(r.at) > expiryPauseMax {
			delete(x.later, id)
		}
	}
}

// expire releases a hold. A hold that somebody else has released meanwhile is found no more in the next round.
func (x *Expiry) expire(ctx context.Context, h readmodel.Expired) (released bool, err error) {
	ctx = rpc.WithCaller(ctx, rpc.Caller{CorrelationID: rpc.CorrelationIDOr(""), Actor: edge.OwnActor, TenantID: h.TenantID})
	on, err := x.Server.find(ctx, h.HoldID)
	if err != nil {
		return false, err
	}
	_, err = x.Server.accept(ctx, x.Server.release(edge.Origin(ctx), h.HoldID, on, transaction.Expiry, nil))
	if es.RefusalOf(err) != nil {
		return false, nil //nolint:nilerr // a capture is under way, or another request was faster
	}
	return err == nil, err
}
