// Package inbox stands between Kafka and what handles its messages. A lane is one key of one subscription. A message that
// cannot be handled is stored in the service's own database, before its offset is committed, and so is whatever comes behind it
// in its lane, while all other keys flow on. A person requeues the lane, which hands its messages to the handler in order.
//
// What is wrong with the database, a connection or another service parks nothing: the batch is tried again, for ever.
package inbox

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
)

// Migrations are the table of parked messages; see package migrate.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// MigrationsTable records which of Migrations were applied.
const MigrationsTable = "inbox_migration"

// ErrUnreadable is what a handler wraps where a message is not what the topic holds: trying again cannot help.
var ErrUnreadable = errors.New("the message cannot be read")

// Config of an inbox. Zero durations and counts mean the default.
type Config struct {
	Pool *pgxpool.Pool // of a database that Migrations were applied to
	Log  *slog.Logger

	AttemptsMax  int           // how often a message fails before it is parked; 5
	RetryPause   time.Duration // the first pause between attempts, doubling; 100 ms
	BatchMax     int           // requeued messages in one call of a handler; 256
	PollInterval time.Duration // how often to look for requeued lanes; 500 ms
	RetryMax     time.Duration // longest pause before a requeued lane is tried again after an outage; 10 s
	KeepParked   time.Duration // how long parked messages are remembered once they are done; 30 days
	CleanEvery   time.Duration // 1 min
}

// Subscription is who handles which messages.
type Subscription struct {
	Name   string // unique in the service
	Source string // type of the aggregates whose events the topic holds
	// Wants tells what the subscription is for, from the headers: other messages are dropped unread.
	Wants func(kafka.Message) bool
	// Handle gets messages of any keys, those of one key in order, some perhaps twice, others perhaps again after an error.
	Handle func(ctx context.Context, batch []kafka.Message) error
}

// Inbox is a service's. Safe for concurrent use; several may share a database.
type Inbox struct {
	Config
	mu            sync.Mutex
	subscriptions map[string]Subscription
	turn          requeuedLane        // the lane that Run handed out last
	clear         map[partition]int64 // where nothing is parked, as long as messages follow on from this offset
}

// partition is one that a subscription has messages of.
type partition struct {
	subscription, topic string
	number              int32
}

// New makes an inbox; Run works on what people requeue.
func New(c Config) *Inbox {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	setDefault(&c.AttemptsMax, 5)
	setDefault(&c.RetryPause, 100*time.Millisecond)
	setDefault(&c.BatchMax, 256)
	setDefault(&c.PollInterval, 500*time.Millisecond)
	setDefault(&c.RetryMax, 10*time.Second)
	setDefault(&c.KeepParked, 30*24*time.Hour)
	setDefault(&c.CleanEvery, time.Minute)
	return &Inbox{Config: c, subscriptions: map[string]Subscription{}, clear: map[partition]int64{}}
}

func setDefault[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Subscribe registers a subscription and returns what its consumer calls (kafka.ConsumerConfig.Handle).
func (i *Inbox) Subscribe(s Subscription) func(ctx context.Context, batch []kafka.Message) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, taken := i.subscriptions[s.Name]; taken {
		panic(fmt.Sprintf("inbox: there is a subscription %s already", s.Name))
	}
	i.subscriptions[s.Name] = s
	return func(ctx context.Context, batch []kafka.Message) error { return i.consume(ctx, s, batch) }
}

// lane is messages of one key, in order.
type lane struct {
	messages []kafka.Message
	err      error // why the first one cannot be handled; nil = they wait behind a message that is parked already
	attempts int   // how often the first one was tried
}

// consume handles a batch of one partition. After it returned nil each message is handled or parked.
func (i *Inbox) consume(ctx context.Context, s Subscription, batch []kafka.Message) error {
	var wanted []kafka.Message
	for _, m := range batch {
		if s.Wants == nil || s.Wants(m) {
			wanted = append(wanted, m)
		}
	}
	next, isClear := i.clearUpTo(s, batch)
	if !isClear {
		some, err := i.anyParked(ctx, s)
		if err != nil {
			return err
		}
		if isClear = !some; some {
			i.stop(s)
		}
	}
	var parked map[string]bool
	if !isClear && len(wanted) > 0 {
		var err error
		if parked, err = i.parkedKeys(ctx, s, wanted); err != nil {
			return err
		}
	}
	stopped, err := i.flow(ctx, s, wanted, parked)
	switch {
	case err != nil:
		return err
	case len(stopped) > 0:
		i.stop(s)
		return i.park(ctx, s, stopped)
	case isClear:
		i.goOn(next)
	}
	return nil
}

// flow hands messages over, but for those of parked lanes, and returns the lanes that cannot go on.
func (i *Inbox) flow(ctx context.Context, s Subscription, wanted []kafka.Message, parked map[string]bool) ([]lane, error) {
	var flowing, waiting []kafka.Message
	for _, m := range wanted {
		if parked[string(m.Key)] {
			waiting = append(waiting, m)
		} else {
			flowing = append(flowing, m)
		}
	}
	stopped := lanesOf(waiting)
	if len(flowing) == 0 {
		return stopped, nil
	}
	err := handle(ctx, s, flowing)
	if err == nil || Transient(err) {
		return stopped, err
	}
	failed, err := i.apart(ctx, s, lanesOf(flowing))
	return append(stopped, failed...), err
}

// lanesOf groups messages by key, in order of their first appearance.
func lanesOf(batch []kafka.Message) []lane {
	var lanes []lane
	at := map[string]int{}
	for _, m := range batch {
		n, ok := at[string(m.Key)]
		if !ok {
			n = len(lanes)
			at[string(m.Key)], lanes = n, append(lanes, lane{})
		}
		lanes[n].messages = append(lanes[n].messages, m)
	}
	return lanes
}

// apart handles lanes one by one and returns those that cannot go on, each from the message at fault. Lanes that fail are tried
// again together, so that many of them take no longer than one.
func (i *Inbox) apart(ctx context.Context, s Subscription, lanes []lane) (stopped []lane, err error) {
	wait := &backoff.ExponentialBackOff{InitialInterval: i.RetryPause, MaxInterval: i.RetryMax, Multiplier: 2, RandomizationFactor: 0.25}
	for attempt := 1; ; attempt++ {
		var failing []lane
		for _, l := range lanes {
			n, err := walk(ctx, s, l.messages)
			switch {
			case err == nil:
				continue
			case Transient(err):
				return nil, err
			}
			if n > 0 {
				l.attempts = 0 // another message than before
			}
			l = lane{messages: l.messages[n:], err: err, attempts: l.attempts + 1}
			if l.attempts >= i.AttemptsMax || errors.Is(err, ErrUnreadable) {
				stopped = append(stopped, l)
			} else {
				failing = append(failing, l)
			}
		}
		if len(failing) == 0 {
			return stopped, nil
		}
		i.Log.Warn("inbox: messages are tried again", "subscription", s.Name, "keys", len(failing), "attempt", attempt, "error", failing[0].err)
		if err := pause(ctx, wait.NextBackOff()); err != nil {
			return nil, err
		}
		lanes = failing
	}
}

// walk hands a lane to the handler, as a whole if that works, and returns how many of its leading messages are handled.
func walk(ctx context.Context, s Subscription, messages []kafka.Message) (int, error) {
	err := handle(ctx, s, messages)
	if err == nil {
		return len(messages), nil
	}
	if Transient(err) || len(messages) == 1 {
		return 0, err
	}
	for n := range messages {
		if err := handle(ctx, s, messages[n:n+1]); err != nil {
			return n, err
		}
	}
	return len(messages), nil
}

// handle calls the handler. A panic is an error like another: a message must not end the process again and again.
func handle(ctx context.Context, s Subscription, messages []kafka.Message) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: panic: %v\n%s", s.Name, p, debug.Stack())
		}
	}()
	err = s.Handle(ctx, messages)
	if err != nil && ctx.Err() != nil {
		return errors.Join(ctx.Err(), err) // whatever it says, it was interrupted
	}
	return err
}

// Transient reports whether an error is about the database, a connection, another service or the end of ctx, and so says nothing
// about the message: it happened or not, and asking again can help.
func Transient(err error) bool {
	if errors.Is(err, ErrUnreadable) {
		return false
	}
	var unavailable interface{ Unavailable() bool }
	if errors.As(espg.Classify("handle messages", err), &unavailable) && unavailable.Unavailable() {
		return true
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code[:min(2, len(pg.Code))] {
		case "22", "23", "54": // a value, a constraint, a limit
			return false
		}
		return true // a table that is missing, a role without rights
	}
	var carrier interface{ GRPCStatus() *status.Status }
	if errors.As(err, &carrier) {
		switch carrier.GRPCStatus().Code() {
		case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition, codes.OutOfRange:
			return false
		}
		return true
	}
	return false
}

// pause waits for d or the end of ctx, which is its error.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	return ctx.Err()
}
