// Package subscription hands the events of a Postgres event store to a handler that writes to the same database: exactly once,
// each stream's in order, on as many instances as one likes.
//
// A subscription has a name and a fixed number of partitions. An event belongs to the partition that its stream's id hashes to
// (Partition). A partition has a checkpoint: the position up to which everything of it was handled. The handler gets a transaction,
// and the checkpoint moves in the same one: what the handler writes with it is there once, whatever breaks.
//
// Instances with the same name are competing consumers. Each partition is leased by one of them at a time. A lease has an epoch, and
// an instance that lost its lease, for having been silent too long, cannot commit under the old one. The instances share the
// partitions evenly: of p partitions and n instances each has p/n, rounded down or up. One that comes gets its share within about a
// lease time; one that stops gives its share back at once; one that dies is waited for as long as its lease.
//
// A handler that fails is called again with a growing pause. Nothing is skipped: an event that can never be handled holds up its
// partition, and OnError tells of it.
//
// What it costs: each partition reads the whole log once, by itself, and leaves out what is not its own. With p partitions every
// event's row is sent by the database p times, over all instances, but decoded once. An instance looks for new events with one small
// query for all its partitions. Many partitions are for slow handlers; a handler that only writes rows is fast with few of them.
//
// The tables come with the store's migrations (package es/postgres). The position of a partition's last event is where another
// program may go on after this one; es.Subscribe follows any store without tables.
package subscription

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
)

// PartitionsMax is the largest number of partitions of one subscription.
const PartitionsMax = 256

// Config of a subscription. Name, Partitions, Pool and Handle must be set; zero means the default elsewhere.
type Config struct {
	Name       string // of the subscription: instances of one name share the work
	Partitions int    // 1 to PartitionsMax; recorded at the first start, and the same ever after
	// Pool is of the store's database. It has a connection to spare for the leases: one more than the partitions is enough.
	Pool *pgxpool.Pool
	// Handle handles events of one partition, in the order of their positions. What it writes with tx is committed together with the
	// checkpoint, or not at all. It is called for one batch of a partition after another, and for several partitions at once.
	// It must not end the transaction, nor leave it idle for longer than LeaseTTL: the database would end it.
	Handle func(ctx context.Context, tx pgx.Tx, events []es.Event) error

	AggregateType string          // only events of this type; "" = of every type
	After         int64           // where a subscription that is new begins: behind this position
	Wake          <-chan struct{} // has a value when there may be new events, as (*postgres.Store).Committed does; nil = poll only
	// OnError is told of each failure, and of the pause before the next attempt; nil = the error is logged. It may be called for
	// several partitions at once.
	OnError func(err error, again time.Duration)

	BatchMax     int           // events read at a time; the handler gets those of its partition; 1,000
	PollInterval time.Duration // how often to look for new events; 25 ms
	LeaseTTL     time.Duration // how long an instance that fell silent is waited for; 5 s
	RetryMax     time.Duration // longest pause between attempts; 10 s
}

// Subscription is one instance's part in a subscription. Safe for concurrent use; each Run is an instance of its own.
type Subscription struct{ config Config }

// New makes a subscription; Run works it. It returns an error that names the field if the config is not valid.
func New(c Config) (*Subscription, error) {
	switch {
	case c.Name == "":
		return nil, errors.New("subscription: Name must be set")
	case c.Partitions < 1 || c.Partitions > PartitionsMax:
		return nil, fmt.Errorf("subscription %q: Partitions must be 1 to %d, and is %d", c.Name, PartitionsMax, c.Partitions)
	case c.Pool == nil:
		return nil, fmt.Errorf("subscription %q: Pool must be set", c.Name)
	case c.Handle == nil:
		return nil, fmt.Errorf("subscription %q: Handle must be set", c.Name)
	case c.After < 0:
		return nil, fmt.Errorf("subscription %q: After must be at least 0, and is %d", c.Name, c.After)
	}
	setDefault(&c.BatchMax, 1000)
	setDefault(&c.PollInterval, 25*time.Millisecond)
	setDefault(&c.LeaseTTL, 5*time.Second)
	setDefault(&c.RetryMax, 10*time.Second)
	if c.OnError == nil {
		c.OnError = func(err error, again time.Duration) { slog.Warn("subscription", "error", err, "again_in", again) }
	}
	return &Subscription{config: c}, nil
}

func setDefault[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Partition is the partition of a stream: the 32-bit FNV-1a hash of its id, modulo the number of partitions. Streams of one id and
// different types share a partition.
func Partition(s es.Stream, partitions int) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(s.ID))
	return int(h.Sum32() % uint32(partitions)) //nolint:gosec // New checks its range
}

// PartitionsError says that a subscription was begun with another number of partitions. A change would hand a stream's events to
// two partitions, in any order, some twice and some never.
type PartitionsError struct {
	Name                string
	Recorded, Requested int
}

// Error names both numbers.
func (e *PartitionsError) Error() string {
	return fmt.Sprintf("subscription %q: Partitions must stay %d, as at its first start, and is %d", e.Name, e.Recorded, e.Requested)
}

// Run handles events until ctx ends, which is no error, and gives back what it holds. It returns a *PartitionsError, or what keeps it
// from starting, such as missing tables. Whatever fails later is reported to OnError and tried again.
func (s *Subscription) Run(ctx context.Context) error {
	r := newRun(s.config)
	pause := r.newPause()
	for {
		err := r.table.create(ctx, r.Partitions, r.After)
		if err == nil {
			r.work(ctx)
			return nil
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the end of ctx is no error
		}
		var u interface{ Unavailable() bool }
		if !errors.As(err, &u) || !u.Unavailable() {
			return err
		}
		again := pause.NextBackOff()
		r.OnError(err, again)
		sleep(ctx, again)
	}
}

func (c *Config) newPause() *backoff.ExponentialBackOff {
	p := backoff.NewExponentialBackOff()
	p.InitialInterval, p.MaxInterval = min(100*time.Millisecond, c.RetryMax), c.RetryMax
	return p
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
