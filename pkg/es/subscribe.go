package es

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// SubscribeOptions of Subscribe. Zero means the default.
type SubscribeOptions struct {
	BatchMax     int             // events yielded at a time; 500
	PollInterval time.Duration   // how often to look for new events; 25 ms
	Wake         <-chan struct{} // has a value when there may be new events, as (*postgres.Store).Committed does; nil = poll only
	RetryMax     time.Duration   // longest pause after a temporary error; 10 s
	// OnRetry is told of each temporary error, and of the pause before the next attempt; nil = the error is logged.
	OnRetry func(err error, again time.Duration)
}

// Subscribe yields all events of an aggregate type ("" = of every type) behind a position, each once and in the order of
// their positions. When it has reached the newest it waits for further ones, until ctx ends, without an error then.
//
// Events come in batches, for those who write them to a database: as many as are there, at most BatchMax, never none. A batch is
// the caller's to keep. Whoever subscribes again behind the last position that they have handled misses nothing.
//
// An error that is temporary, having a method Unavailable that says true, is reported to OnRetry and tried again for ever, with a
// growing pause. Any other is yielded once, with no events, and is the end.
//
// Nothing is read ahead, so memory is bounded by one page of the store and one batch. Subscribe starts no goroutine; each of several
// subscribers reads the store for itself.
func Subscribe(ctx context.Context, store Store, aggregateType string, after int64, o SubscribeOptions) iter.Seq2[[]Event, error] {
	if o.BatchMax <= 0 {
		o.BatchMax = 500
	}
	if o.PollInterval <= 0 {
		o.PollInterval = 25 * time.Millisecond
	}
	if o.RetryMax <= 0 {
		o.RetryMax = 10 * time.Second
	}
	if o.OnRetry == nil {
		o.OnRetry = func(err error, again time.Duration) { slog.Warn("subscribe", "error", err, "again_in", again) }
	}
	return func(yield func([]Event, error) bool) {
		s := subscriber{store: store, aggregateType: aggregateType, after: after, batchMax: o.BatchMax, yield: yield}
		pause := backoff.NewExponentialBackOff()
		pause.InitialInterval, pause.MaxInterval = min(100*time.Millisecond, o.RetryMax), o.RetryMax
		for wake := o.Wake; ; {
			goOn, err := s.catchUp(ctx)
			if !goOn || ctx.Err() != nil {
				return
			}
			wait := o.PollInterval
			switch {
			case err == nil:
				pause.Reset()
			case temporary(err):
				wait = pause.NextBackOff()
				o.OnRetry(err, wait)
			default:
				yield(nil, err)
				return
			}
			hint := wake
			if err != nil {
				hint = nil
			}
			timer := time.NewTimer(wait)
			select {
			case _, open := <-hint:
				if !open {
					wake = nil
				}
			case <-timer.C:
			case <-ctx.Done():
			}
			timer.Stop()
		}
	}
}

// temporary reports whether asking again can help.
func temporary(err error) bool {
	var u interface{ Unavailable() bool }
	return errors.As(err, &u) && u.Unavailable()
}

// subscriber is one Subscribe on its way.
type subscriber struct {
	store         Store
	aggregateType string
	after         int64 // everything up to here has been yielded, or is of another type
	batchMax      int
	yield         func([]Event, error) bool
}

// catchUp yields what is there. goOn is false when the consumer wants no more.
func (s *subscriber) catchUp(ctx context.Context) (goOn bool, err error) {
	// The end is the cheaper question, and a type that nothing happens to is not looked for in the same events again and again.
	end, err := s.store.End(ctx)
	if err != nil || end <= s.after {
		return true, err
	}
	var batch []Event
	last := s.after
	for e, failed := range s.store.ReadAll(ctx, s.aggregateType, From{After: s.after}) {
		if failed == nil && (e.Position <= last || s.aggregateType == "" && e.Position != last+1) {
			failed = fmt.Errorf("subscribe: position %d follows %d", e.Position, last)
		}
		if err = failed; err != nil {
			break
		}
		batch, last = append(batch, e), e.Position
		if len(batch) == s.batchMax {
			if !s.yield(batch, nil) {
				return false, nil
			}
			batch, s.after = nil, last
		}
	}
	if ctx.Err() != nil {
		return false, nil
	}
	if len(batch) > 0 && !s.yield(batch, nil) {
		return false, nil
	}
	if s.after = last; err == nil {
		s.after = max(last, end)
	}
	return true, err
}
