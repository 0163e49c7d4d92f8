package edge

import (
	"context"
	"errors"
	"strconv"
	"time"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/rpc"
	eventv1 "example.com/billing/proto/gen/go/billing/event/v1"
)

// watchesMax is how many watches one process serves at the same time. Each looks four times a second for what other
// processes commit: 2,000 small reads a second at most.
const watchesMax = 500

// Watches are the watches that a process serves. They end when the service has to stop, so that they do not hold it up, and
// tell their callers to come back. Safe for concurrent use.
type Watches struct {
	Hub   es.Hub // to be told of every commit of this process
	stop  context.Context
	slots chan struct{}
}

// NewWatches makes room for watches that end when stop ends.
func NewWatches(stop context.Context) *Watches {
	return &Watches{stop: stop, slots: make(chan struct{}, watchesMax)}
}

// Stopping is closed when the service has to stop. Whoever waits for something on a caller's behalf ends then, as watches do:
// an orderly stop waits for its callers, and they may wait for what needs this process. nil Watches never stop.
func (w *Watches) Stopping() <-chan struct{} {
	if w == nil {
		return nil
	}
	return w.stop.Done()
}

// Serve runs one watch, whose context ends with the caller's and with the service. It returns OVERLOADED where too many run
// already, and UNAVAILABLE when the service stops: whoever watches reconnects and resumes.
func (w *Watches) Serve(ctx context.Context, watch func(context.Context) error) error {
	select {
	case w.slots <- struct{}{}:
		defer func() { <-w.slots }()
	default:
		return rpc.Fail(rpc.ReasonOverloaded, "This process serves %d watches already.", watchesMax).After(time.Second)
	}
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(w.stop, cancel)()
	err := watch(watching)
	if w.stop.Err() != nil && watching.Err() != nil && ctx.Err() == nil {
		return rpc.Fail(rpc.ReasonUnavailable, "The service stops; reconnect and resume.").After(time.Second).Because(err)
	}
	return err
}

// Events sends a stream's events above version after, and further ones as they are committed, until ctx ends.
func (w *Watches) Events(ctx context.Context, store es.Store, s es.Stream, after int64, send func(*eventv1.RecordedEvent) error) error {
	for e, err := range w.Hub.Watch(ctx, store, s, after) {
		var gone *es.GoneError
		if errors.As(err, &gone) {
			return HistoryLost(gone)
		}
		if err != nil {
			return err
		}
		shown, err := Recorded(e)
		if err != nil {
			return err
		}
		if err := send(shown); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// NotAhead refuses a watch behind a version that the stream does not have: events would be passed over in silence.
func NotAhead(s es.Stream, after, head int64) error {
	if after <= head {
		return nil
	}
	return HistoryLost(&es.GoneError{Stream: s, Seen: after, Head: head})
}

// After reads the version or id that a watch resumes behind.
func After(v *rpc.Fields, after *int32) int64 {
	if after != nil && *after < 0 {
		v.Add("after", "min:0", strconv.Itoa(int(*after)))
	}
	if after == nil {
		return 0
	}
	return int64(*after)
}
