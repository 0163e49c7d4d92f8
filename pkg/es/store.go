package es

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"example.com/billing/pkg/batch"
)

// Limits of every store. A larger append is refused with a *LimitError and nothing is written.
const (
	EventBytesMax   = 512 << 10 // one event's JSON; Kafka's default message limit is 1 MiB
	StreamEventsMax = 10_000    // events of one stream in one append
)

// Append adds events to one stream. With no events it only checks the version.
type Append struct {
	Stream   Stream
	Expected int64   // version the writer saw; 0 = the stream does not exist yet
	Events   []Event // with Version Expected+1, Expected+2, …
	Snapshot []byte  // state after the last event, for quick loads; nil = none. Opaque to the store, discardable.
}

// SnapshotEvery is how often a store keeps a stream's snapshot for good: whenever an append that has one passes a multiple of
// so many versions. They are what a past state is folded from.
const SnapshotEvery = 500

// Kept reports whether an append's snapshot is to be kept for good.
func (a Append) Kept() bool {
	return a.Snapshot != nil && a.Expected/SnapshotEvery != (a.Expected+int64(len(a.Events)))/SnapshotEvery
}

// Head is the end of a stream.
type Head struct {
	Version         int64  // 0 = the stream does not exist
	Snapshot        []byte // newest snapshot; nil = none
	SnapshotVersion int64  // the version the snapshot was taken at
}

// From says where ReadAll begins.
type From struct {
	After int64     // only events at a Position above this
	Since time.Time // only events recorded at or after this; zero = all
}

// Span is a part of one stream: the events above version After, at most Limit of them (0 = all).
type Span struct {
	Stream Stream
	After  int64
	Limit  int
}

// Scope says what a store can append to atomically.
type Scope string

// The scopes.
const (
	ScopeStore     Scope = "store"     // any streams
	ScopePartition Scope = "partition" // streams of one partition; others give ErrNotColocated
)

// Store keeps events. All methods are safe for concurrent use. estest.TestStore is its contract as a test.
type Store interface {
	// Append writes to one or several streams in one step: all or nothing. It returns a *ConflictError when a stream is
	// not at its expected version, a *DuplicateError when an event's id is in the store already, a *LimitError,
	// ErrNotColocated, an *UnavailableError when the outcome is not known, or another error with nothing written.
	Append(ctx context.Context, streams ...Append) error
	// AppendBatch is Append for independent items, with a result for each, in order: nil or an error as of Append. Items
	// of one batch that touch the same stream are carried out in order.
	AppendBatch(ctx context.Context, items [][]Append) []error
	// Load returns a stream's events above version after, in order, at most limit of them (0 = all); none if there are none.
	Load(ctx context.Context, s Stream, after int64, limit int) ([]Event, error)
	// LoadEach is Load for many streams at the cost of one, with a result for each span, in the order asked. An event that
	// cannot be read fails its own span only. The error is of the whole: nothing was loaded. The answer is held in memory,
	// so the caller limits the sum of the spans.
	LoadEach(ctx context.Context, spans []Span) ([]batch.Result[[]Event], error)
	// Heads returns the ends of streams, in the order asked.
	Heads(ctx context.Context, streams []Stream) ([]Head, error)
	// Snapshot returns the newest snapshot at or below a version of those kept for good, as the head of that time; the zero Head
	// if there is none.
	Snapshot(ctx context.Context, s Stream, version int64) (Head, error)
	// Lookup returns the events with these ids, in no particular order; unknown ids are left out.
	Lookup(ctx context.Context, ids []string) ([]Event, error)
	// ReadAll yields all events of an aggregate type ("" = of every type) in Position order, an order that no later commit
	// can break, up to the newest at the time it gets there. It stops at the first error.
	ReadAll(ctx context.Context, aggregateType string, from From) iter.Seq2[Event, error]
	// End returns the position of the newest event; 0 = there is none.
	End(ctx context.Context) (int64, error)
	// Clock returns a time at which the past is complete: what was recorded before it has been committed, for whoever reads
	// from now on, and nothing will be recorded before it any more.
	Clock(ctx context.Context) (time.Time, error)
	// Scope says how far Append is atomic.
	Scope() Scope
}

// ErrNotColocated is returned by Append when its streams are not within one atomic scope; nothing was written.
var ErrNotColocated = errors.New("the streams are not in one atomic scope")

// ConflictError says that a stream was not at the expected version.
type ConflictError struct {
	Stream           Stream
	Expected, Actual int64
}

// Error names expected and actual.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s: expected version %d, actual version %d", e.Stream, e.Expected, e.Actual)
}

// DuplicateError says that events are in the store already.
type DuplicateError struct {
	Stream Stream
	IDs    []string
}

// Error names the events.
func (e *DuplicateError) Error() string {
	return fmt.Sprintf("%s: events are stored already: %v", e.Stream, e.IDs)
}

// UnavailableError says that the store did not answer. Of an append it is not known whether it happened: ask again with
// the same event ids.
type UnavailableError struct {
	Op  string
	Err error
}

// Error says what was asked and what broke.
func (e *UnavailableError) Error() string {
	return e.Op + ": the store did not answer: " + e.Err.Error()
}

// Unwrap returns what broke.
func (e *UnavailableError) Unwrap() error { return e.Err }

// Unavailable tells the edge to answer "try again".
func (e *UnavailableError) Unavailable() bool { return true }

// LimitError says which limit an append is over.
type LimitError struct {
	Stream Stream
	Limit  string
	Max    int
	Actual int
}

// Error names the limit and the value.
func (e *LimitError) Error() string {
	return fmt.Sprintf("%s: %s is %d, the limit is %d", e.Stream, e.Limit, e.Actual, e.Max)
}

// CheckAppends returns an error if streams cannot be appended by any store: limits, versions that do not follow Expected,
// events of another stream, one stream twice. Stores call it before they write.
func CheckAppends(streams []Append) error {
	seen := make(map[Stream]bool, len(streams))
	for _, a := range streams {
		if seen[a.Stream] {
			return fmt.Errorf("append %s: named twice in one append", a.Stream)
		}
		seen[a.Stream] = true
		if a.Stream.Type == "" || a.Stream.ID == "" {
			return fmt.Errorf("append: a stream has a type and an id: %q %q", a.Stream.Type, a.Stream.ID)
		}
		if len(a.Events) > StreamEventsMax {
			return &LimitError{Stream: a.Stream, Limit: "number of events", Max: StreamEventsMax, Actual: len(a.Events)}
		}
		for i, e := range a.Events {
			if e.Stream != a.Stream {
				return fmt.Errorf("append %s: event %s is of %s", a.Stream, e.ID, e.Stream)
			}
			if want := a.Expected + int64(i) + 1; e.Version != want {
				return fmt.Errorf("append %s: event %s has version %d, not %d", a.Stream, e.ID, e.Version, want)
			}
			if e.ID == "" || e.Type == "" {
				return fmt.Errorf("append %s: an event has an id and a type: %q %q", a.Stream, e.ID, e.Type)
			}
		}
	}
	return nil
}
