package outbox

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/failpoint"
	"example.com/billing/pkg/kafka"
)

// Publisher sends a batch in order and returns how many of its leading messages are acknowledged.
type Publisher interface {
	Publish(ctx context.Context, batch []kafka.Message) (acked int, err error)
}

// Config of a relay. Zero durations and counts mean the default.
type Config struct {
	Pool      *pgxpool.Pool
	Publisher Publisher
	Prefix    string          // of the topics: "billing"
	Committed <-chan struct{} // wakes the relay after a commit in this process; nil = poll only
	Log       *slog.Logger

	BatchMax     int           // events per publish; 1,000
	PollInterval time.Duration // how often to look without a wake-up; 500 ms
	LeaseTTL     time.Duration // how long a relay that fell silent is waited for; 5 s
	RetryMax     time.Duration // longest pause between attempts; 10 s
	Keep         time.Duration // how long delivered rows are remembered; 1 h
	CleanEvery   time.Duration // 1 min
}

// Relay publishes one service's events. Several may run on one database: one works, the others stand by.
type Relay struct {
	Config
	table   table
	owner   string
	pause   *backoff.ExponentialBackOff // between attempts that fail
	cleaned time.Time
}

// NewRelay makes a relay; Run works it.
func NewRelay(c Config) *Relay {
	setDefault(&c.BatchMax, 1000)
	setDefault(&c.PollInterval, 500*time.Millisecond)
	setDefault(&c.LeaseTTL, 5*time.Second)
	setDefault(&c.RetryMax, 10*time.Second)
	setDefault(&c.Keep, time.Hour)
	setDefault(&c.CleanEvery, time.Minute)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return &Relay{Config: c, table: table{pool: c.Pool}, owner: uuid.NewString()}
}

func setDefault[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Run publishes until ctx ends. Errors are logged, recorded in the stats and tried again with a growing pause.
func (r *Relay) Run(ctx context.Context) error {
	r.pause, r.cleaned = backoff.NewExponentialBackOff(), time.Now()
	r.pause.InitialInterval, r.pause.MaxInterval = 100*time.Millisecond, r.RetryMax
	for ctx.Err() == nil {
		wait := r.PollInterval
		err := r.hold(ctx)
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, ErrFenced):
			r.Log.Info("outbox relay stands by: another one holds the lease")
		case err != nil:
			wait = r.pause.NextBackOff()
			r.Log.Warn("outbox relay", "error", err, "again_in", wait)
		default:
			r.pause.Reset()
		}
		sleep(ctx, wait, nil)
	}
	return nil
}

// hold takes the lease and works for as long as it has it. It returns nil when there is no lease to be had.
func (r *Relay) hold(ctx context.Context) error {
	l, ok, err := r.table.acquire(ctx, r.owner, r.LeaseTTL)
	if err != nil || !ok {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = r.table.release(ctx, l.epoch) // the lease ends by itself if this fails
	}()
	renewed := time.Now()
	for ctx.Err() == nil {
		moved, err := r.publish(ctx, &l)
		if err != nil {
			return err
		}
		r.clean(ctx)
		if moved {
			renewed = time.Now()
			r.pause.Reset()
			continue
		}
		sleep(ctx, r.PollInterval, r.Committed)
		if time.Since(renewed) > r.LeaseTTL/3 && ctx.Err() == nil {
			again, ok, err := r.table.acquire(ctx, r.owner, r.LeaseTTL)
			if err != nil || !ok {
				return errors.Join(err, ErrFenced)
			}
			l, renewed = again, time.Now() // another relay may have come and gone meanwhile
		}
	}
	return nil
}

// clean forgets delivered rows, from time to time.
func (r *Relay) clean(ctx context.Context) {
	if time.Since(r.cleaned) <= r.CleanEvery {
		return
	}
	r.cleaned = time.Now()
	if n, err := r.table.cleanup(ctx, r.Keep); err != nil && ctx.Err() == nil {
		r.Log.Warn("outbox clean-up", "error", err)
	} else if n > 0 {
		r.Log.Debug("outbox clean-up", "rows", n)
	}
}

// publish moves one batch. After an error the checkpoint stands behind the last acknowledged event: what follows is sent
// again.
func (r *Relay) publish(ctx context.Context, l *lease) (moved bool, err error) {
	messages, err := r.table.read(ctx, r.Prefix, l.position, r.BatchMax)
	if err != nil || len(messages) == 0 {
		return false, err
	}
	failpoint.Hit("relay.before_publish")
	acked, cause := r.Publisher.Publish(ctx, messages)
	failpoint.Hit("relay.after_publish")
	if acked > 0 {
		if err := r.table.advance(ctx, l.epoch, l.position+int64(acked), r.owner, r.LeaseTTL); err != nil {
			return false, errors.Join(cause, err)
		}
		failpoint.Hit("relay.after_checkpoint")
		l.position += int64(acked)
	}
	if cause != nil && ctx.Err() == nil {
		return false, errors.Join(cause, r.table.failed(ctx, l.epoch, len(messages)-acked, cause))
	}
	return acked > 0, cause
}

func sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-wake:
	case <-ctx.Done():
	}
}
