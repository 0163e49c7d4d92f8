package api

import (
	"context"
	"time"
)

// pollEvery is how often a waiting caller looks itself, for a transaction that another instance ends.
const pollEvery = 250 * time.Millisecond

// wait looks at a transaction until it has ended or the time is over: at once, at news of its stream, and from time to time.
func wait(ctx context.Context, news <-chan struct{}, d time.Duration, look func(context.Context) (bool, error)) error {
	late := time.NewTimer(d)
	defer late.Stop()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for over := false; ; {
		if ended, err := look(ctx); err != nil || ended || over {
			return err
		}
		select {
		case <-news:
		case <-poll.C:
		case <-late.C:
			over = true
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
