package outbox

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	espg "example.com/billing/pkg/es/postgres"

	"example.com/billing/pkg/failpoint"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/progress"
)

// Publisher sends a batch in order and returns how many of its leading messages are acknowledged. An error that is a
// *kafka.RefusedError is about one message, which has not been sent, nor has anything behind it in its lane.
type Publisher interface {
	Publish(ctx context.Context, batch []kafka.Message) (acked int, err error)
}

// Config of a relay. Zero durations and counts mean the default.
type Config struct {
	Pool      *pgxpool.Pool
	Publisher Publisher
	Prefix    string          // of the topics: "billing"
	Committed <-chan struct{} // wakes the relay after a commit in this process; nil = poll only
	// Recent takes what this process has committed right behind a position, as (*espg.Store).Recent; nil = all is read from the database.
	Recent func(incarnation, after int64, limit int) (events []espg.Committed, whole bool)
	Log    *slog.Logger

	BatchMax     int           // events per publish; 1,000
	Linger       time.Duration // how long an event waits for others after a commit; 0 = not at all
	PollInterval time.Duration // how often to look without a wake-up; 500 ms
	LeaseTTL     time.Duration // how long a relay that fell silent is waited for; 5 s
	RetryMax     time.Duration // longest pause between attempts; 10 s
	Keep         time.Duration // how long delivered rows are remembered; 1 h
	CleanEvery   time.Duration // 1 min
	AttemptsMax  int           // how often an event is refused before it is parked; 5
	KeepParked   time.Duration // how long parked events are remembered once they are through; 30 days
}

// Relay publishes one service's events. Several may run on one database: one works, the others stand by.
type Relay struct {
	Config
	table   table
	history *espg.Store
	owner   string
	pause   *backoff.ExponentialBackOff // between attempts that fail
	cleaned time.Time
	looked  time.Time // when there was nothing requeued
	parked  bool      // there are parked lanes, as far as is known; only the relay that has the lease parks
	read    time.Time // when the database had nothing new
	saved   time.Time // when the checkpoint was written
	ahead   int       // events acknowledged since
	sent    lease     // how far events are acknowledged, and in which incarnation
}

// checkpointEvery is how often the checkpoint is written while events flow: as much is sent once more after a crash.
const checkpointEvery = 100 * time.Millisecond

// NewRelay makes a relay; Run works it.
func NewRelay(c Config) *Relay {
	setDefault(&c.BatchMax, 1000)
	setDefault(&c.PollInterval, 500*time.Millisecond)
	setDefault(&c.LeaseTTL, 5*time.Second)
	setDefault(&c.RetryMax, 10*time.Second)
	setDefault(&c.Keep, time.Hour)
	setDefault(&c.CleanEvery, time.Minute)
	setDefault(&c.AttemptsMax, 5)
	setDefault(&c.KeepParked, 30*24*time.Hour)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return &Relay{Config: c, table: table{pool: c.Pool}, history: espg.New(c.Pool, espg.Options{}), owner: uuid.NewString()}
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
		progress.Beat(ctx)
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
	l, ok, err := r.acquire(ctx)
	if err != nil || !ok {
		return err
	}
	r.looked, r.read, r.ahead = time.Time{}, time.Time{}, 0
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if r.ahead > 0 {
			_ = r.save(ctx, &l, nil) // else it is sent once more
		}
		_ = r.table.release(ctx, l.epoch, r.owner) // the lease ends by itself if this fails
	}()
	renewed := time.Now()
	for ctx.Err() == nil {
		progress.Beat(ctx)
		moved, err := r.work(ctx, &l)
		if err != nil {
			return err
		}
		r.clean(ctx)
		if moved {
			renewed = time.Now()
			r.pause.Reset()
			continue
		}
		wait := max(r.PollInterval-time.Since(r.read), 0)
		if r.ahead > 0 {
			wait = max(checkpointEvery-time.Since(r.saved), 0)
		}
		sleep(ctx, wait, r.Committed)
		sleep(ctx, r.Linger, nil)
		if time.Since(renewed) > r.LeaseTTL/3 && ctx.Err() == nil {
			again, ok, err := r.acquire(ctx)
			if err != nil || !ok {
				return errors.Join(err, ErrFenced)
			}
			// Another relay may have come and gone meanwhile, or a person may have set the checkpoint back.
			if renewed = time.Now(); again.epoch != l.epoch || again.incarnation != l.incarnation || r.ahead == 0 {
				l, r.ahead = again, 0
			}
		}
	}
	return nil
}

// acquire takes or renews the lease in the database's present incarnation. What was published beyond its beginning is noted as lost:
// the database has other events at those positions, or none.
func (r *Relay) acquire(ctx context.Context) (lease, bool, error) {
	if err := r.history.CheckIncarnation(ctx); err != nil {
		return lease{}, false, err
	}
	l, ok, err := r.table.acquire(ctx, r.owner, r.LeaseTTL)
	if err == nil && ok && r.sent.incarnation != 0 && r.sent.incarnation < l.incarnation {
		r.Log.Warn("outbox relay: the database has another history", "incarnation", l.incarnation, "published_to", r.sent.position, "checkpoint", l.position)
		err = r.history.NoteKnown(ctx, r.sent.incarnation, r.sent.position)
		r.sent = lease{}
	}
	return l, ok && err == nil, err
}

// work sends some of the requeued lanes and one batch of what is new: a long lane on its way does not hold up the others, and its
// own new events wait behind it.
func (r *Relay) work(ctx context.Context, l *lease) (moved bool, err error) {
	if r.ahead > 0 && time.Since(r.saved) >= checkpointEvery {
		if err := r.save(ctx, l, nil); err != nil {
			return false, err
		}
	}
	resent, err := r.resend(ctx, l)
	if err != nil {
		return resent, err
	}
	moved, err = r.publish(ctx, l)
	return moved || resent, err
}

// clean forgets delivered rows, from time to time.
func (r *Relay) clean(ctx context.Context) {
	if time.Since(r.cleaned) <= r.CleanEvery {
		return
	}
	r.cleaned = time.Now()
	n, err := r.table.cleanup(ctx, r.Keep)
	if err == nil {
		_, err = Lanes(r.Pool).Clean(ctx, r.KeepParked)
	}
	if err != nil && ctx.Err() == nil {
		r.Log.Warn("outbox clean-up", "error", err)
	} else if n > 0 {
		r.Log.Debug("outbox clean-up", "rows", n)
	}
}

// publish moves one batch: events of parked lanes are parked too, the others sent. After an error the checkpoint stands behind
// the last event before which everything is acknowledged or parked: what follows is sent again.
func (r *Relay) publish(ctx context.Context, l *lease) (moved bool, err error) {
	events, err := r.next(ctx, *l)
	if err != nil || len(events) == 0 {
		return false, err
	}
	var flowing, waiting []event
	for _, e := range events {
		if e.waits {
			waiting = append(waiting, e)
		} else {
			flowing = append(flowing, e)
		}
	}
	acked, cause := 0, error(nil)
	if len(flowing) > 0 {
		failpoint.Hit("relay.before_publish")
		acked, cause = r.Publisher.Publish(ctx, messages(flowing, l.incarnation))
		failpoint.Hit("relay.after_publish")
	}
	to := events[len(events)-1].position
	if acked < len(flowing) {
		to = flowing[acked].position - 1
	}
	waiting = slices.DeleteFunc(waiting, func(e event) bool { return e.position > to })
	was := l.position
	if to > l.position {
		l.position, moved = to, true
		r.ahead += acked
		r.sent = *l
	}
	if len(waiting) > 0 || cause != nil && r.ahead > 0 {
		if err := r.save(ctx, l, waiting); err != nil {
			if len(waiting) > 0 { // not parked: the checkpoint must not pass them
				l.position = was
				r.ahead -= acked
			}
			return false, errors.Join(cause, err)
		}
	}
	if cause == nil || ctx.Err() != nil {
		return moved, cause
	}
	refused := refusedOf(flowing, cause)
	if refused == nil {
		_, err := r.table.failed(ctx, l.epoch, len(flowing)-acked, 0, cause)
		return false, errors.Join(cause, err)
	}
	attempts, err := r.table.failed(ctx, l.epoch, len(flowing)-acked, refused.position, cause)
	if err != nil || attempts < r.AttemptsMax {
		return false, errors.Join(cause, err)
	}
	return true, r.park(ctx, l, refused.position, attempts, cause)
}

// next returns the events behind a position: those that this process remembers, else what the database has.
func (r *Relay) next(ctx context.Context, l lease) ([]event, error) {
	if r.Recent != nil && !r.parked {
		known, whole := r.Recent(l.incarnation, l.position, r.BatchMax)
		if len(known) > 0 {
			events := make([]event, len(known))
			for i, c := range known {
				events[i] = committed(r.Prefix, c)
			}
			return events, nil
		}
		if whole && time.Since(r.read) < r.PollInterval {
			return nil, nil
		}
	}
	events, err := r.table.read(ctx, r.Prefix, l, r.BatchMax)
	if err == nil && len(events) == 0 {
		r.read = time.Now()
	}
	return events, err
}

// save writes the checkpoint, and parks what waits behind parked lanes.
func (r *Relay) save(ctx context.Context, l *lease, waiting []event) error {
	if err := r.table.advance(ctx, *l, r.ahead, positions(waiting), r.owner, r.LeaseTTL); err != nil {
		return err
	}
	failpoint.Hit("relay.after_checkpoint")
	r.saved, r.ahead = time.Now(), 0
	return nil
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
