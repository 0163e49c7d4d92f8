package run

import (
	"context"
	"log/slog"
	"time"

	"example.com/billing/pkg/progress"
)

// Every calls f again and again, with a pause before each time, until ctx ends. What f could not do is logged as what, and left
// for the next time.
func Every(ctx context.Context, pause time.Duration, log *slog.Logger, what string, f func(context.Context) error) error {
	t := time.NewTicker(pause)
	defer t.Stop()
	for {
		progress.Rest(ctx)
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
		progress.Beat(ctx)
		if err := f(ctx); err != nil && ctx.Err() == nil {
			log.Warn(what, "error", err)
		}
	}
}
