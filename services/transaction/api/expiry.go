package api

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/rpc"
	"example.com/billing/pkg/run"
	"example.com/billing/services/edge"
	"example.com/billing/services/transaction"
	"example.com/billing/services/transaction/readmodel"
)

// Expiry releases holds whose time is over. A hold that a capture is under way of is left until the next time.
type Expiry struct {
	Server *Server
	Log    *slog.Logger
}

const (
	expiryEvery   = time.Second
	expiryPageMax = 500
	expiryFlights = 64 // holds at the same time, for the executor to find in one group
)

// Run looks for expired holds from time to time, until ctx ends.
func (x Expiry) Run(ctx context.Context) error {
	return run.Every(ctx, expiryEvery, x.Log, "expire holds", x.sweep)
}

// sweep asks for the release of every expired hold.
func (x Expiry) sweep(ctx context.Context) error {
	for after := (readmodel.Expired{}); ; {
		holds, err := x.Server.List.ExpiredHolds(ctx, after, expiryPageMax)
		if err != nil || len(holds) == 0 {
			return err
		}
		var g errgroup.Group
		g.SetLimit(expiryFlights)
		for _, h := range holds {
			g.Go(func() error {
				if err := x.expire(ctx, h); err != nil && ctx.Err() == nil { // the others may do better
					x.Log.Warn("expire hold", "hold", h.HoldID, "error", err)
				}
				return nil
			})
		}
		_ = g.Wait()
		after = holds[len(holds)-1]
	}
}

func (x Expiry) expire(ctx context.Context, h readmodel.Expired) error {
	ctx = rpc.WithCaller(ctx, rpc.Caller{CorrelationID: rpc.CorrelationIDOr(""), Actor: edge.OwnActor, TenantID: h.TenantID})
	on, err := x.Server.find(ctx, h.HoldID)
	if err != nil {
		return err
	}
	_, err = x.Server.accept(ctx, x.Server.release(edge.Origin(ctx), h.HoldID, on, transaction.Expiry, nil))
	if es.RefusalOf(err) == nil {
		return err
	}
	return nil // a capture is under way, or somebody was faster
}
