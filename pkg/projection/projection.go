// Package projection keeps read models: idempotent, in order per stream, and repaired from the owner's store where the log
// has a gap.
package projection

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/failpoint"
	"example.com/billing/pkg/kafka"
)

// Model is a read model's tables. Its own rows carry the version of the stream they show.
type Model interface {
	// Open reads these streams' rows and locks them.
	Open(ctx context.Context, tx pgx.Tx, streams []es.Stream) (Rows, error)
}

// Rows are some rows of a read model, as they are in a transaction.
type Rows interface {
	// Version is the version that a stream's row shows: 0 where there is none, Unreadable where it cannot be read.
	Version(s es.Stream) int64
	// Apply writes events: per stream they follow the row's version without a gap.
	Apply(ctx context.Context, events []es.Event) error
}

// Unreadable is the version of a row whose state this code cannot read: the stream is folded anew from the owner's store.
const Unreadable = -1

// Projection feeds one read model. Safe for concurrent use on different streams.
type Projection struct {
	pool  *pgxpool.Pool
	model Model
	load  func(ctx context.Context, s es.Stream, after int64, limit int) ([]es.Event, error)
	// slots keep half of the pool's connections free of batches, which wait with theirs while a rebuild holds the table.
	slots chan struct{}
}

// New makes a projection. load reads a stream from its owner's store.
func New(pool *pgxpool.Pool, m Model, load func(context.Context, es.Stream, int64, int) ([]es.Event, error)) *Projection {
	return &Projection{pool: pool, model: m, load: load, slots: make(chan struct{}, max(pool.Config().MaxConns/2, 1))}
}

// Handle applies a batch in one transaction: events the rows already show are dropped, missing ones are loaded from the
// owner's store. It is a cqrs.EventHandler.
func (p *Projection) Handle(ctx context.Context, events []es.Event) error {
	b := batch{loaded: map[es.Stream]bool{}}
	b.streams, b.events = group(events)
	for { // at most once more for each stream
		gaps, err := p.apply(ctx, b)
		if err != nil || len(gaps) == 0 {
			return err
		}
		// Outside of the transaction: a load takes a connection, and must not wait for one while it holds one.
		for s, gap := range gaps {
			if b.loaded[s] {
				return fmt.Errorf("repair %s: the store lacks it too: %w", s, gap)
			}
			missing, err := p.load(ctx, s, max(gap.Have, 0), 0)
			if err != nil {
				return fmt.Errorf("repair %s after version %d: %w", s, gap.Have, err)
			}
			b.events[s] = append(missing, b.events[s]...)
			slices.SortStableFunc(b.events[s], func(x, y es.Event) int { return cmp.Compare(x.Version, y.Version) })
			b.loaded[s] = true
		}
	}
}

// batch is events by stream, the streams in order of their first appearance.
type batch struct {
	streams []es.Stream
	events  map[es.Stream][]es.Event
	loaded  map[es.Stream]bool // what the rows lacked has been loaded from the owner's store
}

// apply writes what continues the rows. If a stream has a gap it writes nothing and returns the gaps.
func (p *Projection) apply(ctx context.Context, b batch) (gaps map[es.Stream]kafka.GapError, err error) {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	var fresh []es.Event
	err = pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error {
		rows, err := p.model.Open(ctx, tx, b.streams)
		if err != nil {
			return fmt.Errorf("read rows: %w", err)
		}
		gaps = map[es.Stream]kafka.GapError{}
		for _, s := range b.streams {
			have := rows.Version(s)
			if have == Unreadable && b.loaded[s] {
				have = 0 // the whole stream is here
			}
			next, gap := follow(s, have, b.events[s])
			if gap != nil {
				gaps[s] = *gap
			}
			fresh = append(fresh, next...)
		}
		if len(fresh) == 0 || len(gaps) > 0 {
			return nil
		}
		failpoint.Hit("projection.before_commit")
		return rows.Apply(ctx, fresh)
	})
	if err == nil && len(fresh) > 0 && len(gaps) == 0 {
		failpoint.Hit("projection.after_commit")
	}
	return gaps, err
}

// follow returns the events that continue a stream from version have, up to a gap.
func follow(s es.Stream, have int64, events []es.Event) (fresh []es.Event, gap *kafka.GapError) {
	for _, e := range events {
		switch kafka.Next(have, e.Version) {
		case kafka.Duplicate:
		case kafka.Apply:
			fresh, have = append(fresh, e), e.Version
		case kafka.Gap:
			return fresh, &kafka.GapError{Key: s.ID, Have: have, Got: e.Version}
		}
	}
	return fresh, nil
}

// group splits events by stream, in order of first appearance.
func group(events []es.Event) ([]es.Stream, map[es.Stream][]es.Event) {
	var streams []es.Stream
	by := map[es.Stream][]es.Event{}
	for _, e := range events {
		if by[e.Stream] == nil {
			streams = append(streams, e.Stream)
		}
		by[e.Stream] = append(by[e.Stream], e)
	}
	return streams, by
}
