package api

import (
	"context"
	"time"
)

// How soon, and then how often, a waiting caller looks itself, should there be no news of a transaction that another instance ends.
// Each pause is twice the one before.
const (
	pollFirst = time.Second
	pollMax   = 4 * time.Second
)

// wait returns once a transaction has ended, the time is over, or the service stops: its end may need this process, which stops
// only once its callers have their answers. It glances, at what this process knows, at once and at news of the
// stream, and looks, into the store, from time to time and where a glance at news has not seen the end.
func wait(ctx context.Context, stopping, news <-chan struct{}, d time.Duration, glance func() bool, look func(context.Context) (bool, error)) error {
	late := time.NewTimer(d)
	defer late.Stop()
	every := pollFirst
	poll := time.NewTicker(every)
	defer poll.Stop()
	if glance() {
		return nil
	}
	for over := false; ; {
		select {
		case <-news:
			if glance() {
				return nil
			}
		case <-poll.C:
			every = min(2*every, pollMax)
			poll.Reset(every)
		case <-late.C:
			over = true
		case <-stopping:
			over = true
		case <-ctx.Done():
			return ctx.Err()
		}
		if ended, err := look(ctx); err != nil || ended || over {
			return err
		}
	}
}
