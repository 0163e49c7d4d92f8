package es

import (
	"context"
	"fmt"
	"iter"
	"time"
)

// travelPageMax is how many events are read at a time when the past of a stream is folded.
const travelPageMax = 500

// VersionAt returns the version a stream had at a time: that of its newest event recorded at or before it; 0 = it had none yet.
// Recorded times never decrease with the version and versions have no gap, so the stream is halved: it costs one small read
// for each doubling of its length. A commit takes its time a moment before others can see it: the version at a time that
// has only just passed may still rise.
func VersionAt(ctx context.Context, store Store, s Stream, at time.Time) (int64, error) {
	heads, err := store.Heads(ctx, []Stream{s})
	if err != nil {
		return 0, fmt.Errorf("version of %s at %s: %w", s, at.Format(time.RFC3339Nano), err)
	}
	low, high := int64(0), heads[0].Version // the version is one of low to high
	for low < high {
		middle := low + (high-low)/2
		events, err := store.Load(ctx, s, middle, 1)
		if err != nil {
			return 0, fmt.Errorf("version of %s at %s: %w", s, at.Format(time.RFC3339Nano), err)
		}
		if len(events) != 1 || events[0].Version != middle+1 {
			return 0, fmt.Errorf("version of %s at %s: version %d is missing", s, at.Format(time.RFC3339Nano), middle+1)
		}
		if events[0].RecordedAt.After(at) {
			high = middle
		} else {
			low = middle + 1
		}
	}
	return low, nil
}

// Between yields a stream's events with versions above after, up to and including last, in order. It reads them in pages, so
// that memory stays bounded. It stops at the first error; a version that is missing is one.
func Between(ctx context.Context, store Store, s Stream, after, last int64) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for after < last {
			events, err := store.Load(ctx, s, after, int(min(last-after, travelPageMax)))
			if err == nil && (len(events) == 0 || events[0].Version != after+1) {
				err = fmt.Errorf("version %d is missing", after+1)
			}
			if err != nil {
				yield(Event{}, fmt.Errorf("read %s after version %d: %w", s, after, err))
				return
			}
			for _, e := range events {
				if !yield(e, nil) {
					return
				}
				after = e.Version
			}
		}
	}
}

// At folds an aggregate up to a version of its stream, from the newest snapshot before it: however long the stream, it costs
// about SnapshotEvery events. It returns an error for a version that the stream has not reached.
func (d *Decider[S, C]) At(ctx context.Context, store Store, streamID string, version int64) (Root[S], error) {
	s := Stream{Type: d.Type, ID: streamID}
	heads, err := store.Heads(ctx, []Stream{s})
	if err != nil {
		return Root[S]{}, fmt.Errorf("%s at version %d: %w", s, version, err)
	}
	from := heads[0]
	if from.SnapshotVersion > version {
		if from, err = store.Snapshot(ctx, s, version); err != nil {
			return Root[S]{}, fmt.Errorf("%s at version %d: %w", s, version, err)
		}
	}
	r := d.restore(from)
	for e, err := range Between(ctx, store, s, r.Version, version) {
		if err != nil {
			return Root[S]{}, err
		}
		if err := d.Replay(&r, e); err != nil {
			return Root[S]{}, err
		}
	}
	return r, nil
}

// restore is the aggregate at its head's snapshot, or before its first event where there is none that can be read.
func (d *Decider[S, C]) restore(h Head) Root[S] {
	r := d.New()
	if h.Snapshot != nil && d.Snapshots != nil {
		if s, err := d.Snapshots.Restore(h.Snapshot); err == nil {
			r.State, r.Version = s, h.SnapshotVersion
		}
	}
	return r
}
