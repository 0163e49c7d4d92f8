// Package projection keeps read models: idempotent, in order per stream, and repaired from the owner's store where the log
// has a gap.
package projection

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/kafka"
)

// Model is a read model's tables. Its own rows carry the version of the stream they show.
type Model interface {
	// Versions returns the version that each stream's row shows, locking the rows; streams without a row are left out.
	Versions(ctx context.Context, tx pgx.Tx, streams []es.Stream) (map[es.Stream]int64, error)
	// Apply writes events: per stream they follow the row's version without a gap.
	Apply(ctx context.Context, tx pgx.Tx, events []es.Event) error
}

// Projection feeds one read model. Safe for concurrent use on different streams.
type Projection struct {
	pool  *pgxpool.Pool
	model Model
	load  func(ctx context.Context, s es.Stream, after int64) ([]es.Event, error)
}

// New makes a projection. load reads a stream from its owner's store.
func New(pool *pgxpool.Pool, m Model, load func(context.Context, es.Stream, int64) ([]es.Event, error)) *Projection {
	return &Projection{pool: pool, model: m, load: load}
}

// Handle applies a batch in one transaction: events the rows already show are dropped, missing ones are loaded from the
// owner's store. It is a cqrs.EventHandler.
func (p *Projection) Handle(ctx context.Context, events []es.Event) error {
	streams, byStream := group(events)
	return pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error {
		have, err := p.model.Versions(ctx, tx, streams)
		if err != nil {
			return fmt.Errorf("read versions: %w", err)
		}
		var fresh []es.Event
		for _, s := range streams {
			next, err := p.follow(ctx, s, have[s], byStream[s])
			if err != nil {
				return err
			}
			fresh = append(fresh, next...)
		}
		if len(fresh) == 0 {
			return nil
		}
		return p.model.Apply(ctx, tx, fresh)
	})
}

// follow returns the events that continue a stream from version have.
func (p *Projection) follow(ctx context.Context, s es.Stream, have int64, events []es.Event) ([]es.Event, error) {
	var fresh []es.Event
	for _, e := range events {
		switch kafka.Next(have, e.Version) {
		case kafka.Duplicate:
		case kafka.Apply:
			fresh, have = append(fresh, e), e.Version
		case kafka.Gap:
			missing, err := p.load(ctx, s, have)
			if err != nil {
				return nil, fmt.Errorf("repair %s after version %d: %w", s, have, err)
			}
			for _, m := range missing {
				if m.Version == have+1 {
					fresh, have = append(fresh, m), m.Version
				}
			}
			if have < e.Version {
				return nil, fmt.Errorf("repair %s: the store lacks it too: %w", s, kafka.GapError{Key: s.ID, Have: have, Got: e.Version})
			}
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
