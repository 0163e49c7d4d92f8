package inbox

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"

	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/progress"
)

// lanesMax is how many requeued lanes are handed out under one lock.
const lanesMax = 100

// handOutMax is for how long an instance keeps others from handing out, if it is lost without a word.
const handOutMax = "5min"

// Run hands requeued lanes to their handlers until ctx ends; it runs once in an inbox. Errors are logged and tried again with a growing pause.
func (i *Inbox) Run(ctx context.Context) error {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval = i.RetryPause, i.RetryMax
	cleaned := time.Now()
	for ctx.Err() == nil {
		progress.Beat(ctx)
		wait := i.PollInterval
		moved, err := i.handOut(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			if moved {
				retry.Reset()
			}
			wait = retry.NextBackOff()
			i.Log.Warn("inbox: requeued messages are tried again", "error", err, "again_in", wait)
		case moved:
			wait = 0
			retry.Reset()
		default:
			retry.Reset()
		}
		if time.Since(cleaned) > i.CleanEvery {
			cleaned = time.Now()
			if _, err := Lanes(i.Pool).Clean(ctx, i.KeepParked); err != nil && ctx.Err() == nil {
				i.Log.Warn("inbox clean-up", "error", err)
			}
		}
		_ = pause(ctx, wait) // the loop sees that ctx ended
	}
	return nil
}

// handOut hands out some messages of the next requeued lanes, unless another instance is at it, and reports whether there were any.
// A lane that cannot go on for now does not hold up the others: its error is returned once they had their turn. Nor do many such
// lanes: the next call goes on behind these, and begins again once it has been through all.
func (i *Inbox) handOut(ctx context.Context) (moved bool, err error) {
	i.mu.Lock()
	names := slices.Collect(maps.Keys(i.subscriptions))
	i.mu.Unlock()
	lanes, err := i.requeuedLanes(ctx, names, i.turn, lanesMax)
	if err == nil && len(lanes) == 0 {
		i.turn = requeuedLane{}
		lanes, err = i.requeuedLanes(ctx, names, i.turn, lanesMax)
	}
	if err != nil || len(lanes) == 0 {
		return false, err
	}
	// The lock is on a connection of its own: the handlers must not wait for one that is held while they are waited for. It goes
	// with the connection, and is a transaction's: a pooler would leave a session's lock on a connection that others use.
	conn, err := pgx.ConnectConfig(ctx, i.Pool.Config().ConnConfig)
	if err != nil {
		return false, espg.Classify("hand out requeued messages", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tx, err := conn.Begin(ctx)
	if err != nil {
		return false, espg.Classify("hand out requeued messages", err)
	}
	if _, err := tx.Exec(ctx, `SET LOCAL idle_in_transaction_session_timeout = '`+handOutMax+`'`); err != nil {
		return false, espg.Classify("hand out requeued messages", err)
	}
	var ours bool
	if err := tx.QueryRow(ctx, tryHandOut).Scan(&ours); err != nil || !ours {
		return false, espg.Classify("hand out requeued messages", err)
	}
	var failures []error
	for _, l := range lanes {
		if ctx.Err() != nil {
			break
		}
		n, err := i.handOutLane(ctx, l)
		i.turn = l
		moved = moved || n > 0
		if err != nil {
			failures = append(failures, err) // the next lane may need nothing of what is away
		}
	}
	return moved, errors.Join(failures...)
}

// handOutLane hands out a lane's next messages. One that fails for its own sake has the lane wait again, at once: a person is
// watching.
func (i *Inbox) handOutLane(ctx context.Context, l requeuedLane) (int, error) {
	i.mu.Lock()
	s := i.subscriptions[l.subscription]
	i.mu.Unlock()
	next, err := i.messagesOf(ctx, l)
	if err != nil || len(next) == 0 {
		return 0, err
	}
	messages, ids := make([]kafka.Message, len(next)), make([]string, len(next))
	for n, m := range next {
		messages[n], ids[n] = m.message, m.id
	}
	n, cause := walk(ctx, s, messages)
	failed := ""
	if cause != nil && !Transient(cause) {
		failed = ids[n]
		i.Log.Error("inbox: a requeued message is parked again", "subscription", s.Name, "topic", l.topic, "partition", messages[n].Partition,
			"offset", messages[n].Offset, "error", cause)
	}
	if n > 0 || failed != "" {
		if err := i.settle(ctx, l, ids[:n], failed, cause); err != nil {
			return 0, err
		}
	}
	if failed != "" {
		cause = nil // a person's again
	}
	return n, cause
}
