package es

import (
	"errors"
	"fmt"
	"time"
)

// Fact is an event's payload as the domain knows it: a struct that marshals to a JSON object.
type Fact interface {
	// EventType is the name the event is stored under, in the past tense: "BalanceChanged".
	EventType() string
}

// Occurred tells evolve where in the stream a fact stands.
type Occurred struct {
	Version int64
	At      time.Time
}

// Decider is an aggregate as two pure functions. State is a value: Evolve returns a new one and never changes what the old
// one points to.
type Decider[S, C any] struct {
	// Type is the aggregate type, such as "Account".
	Type string
	// Initial is the state before the first event.
	Initial func() S
	// Decide chooses the facts that a command leads to: none if there is nothing to do, a *Refusal if a rule says no.
	Decide func(S, C) ([]Fact, error)
	// DecidePair is Decide for a command on two streams: the facts of each commit together. The first stream is the command's
	// own: its facts carry the command's key, so where the second one gets facts the first one gets some too. nil = there are
	// no such commands.
	DecidePair func(own, other S, c C) (ownFacts, otherFacts []Fact, err error)
	// Evolve folds one fact into the state.
	Evolve func(S, Fact, Occurred) S
	// Schemas turn stored data into facts. Every version ever stored decodes for ever.
	Schemas Schemas
	// Snapshots keeps states with the stream's head, so that a load costs one row and few events; nil = always fold the events.
	Snapshots *Snapshots[S]
}

// Snapshots encodes a state and decodes it again. Restore fails on anything an older version of the code wrote in another
// shape; the events are folded then.
type Snapshots[S any] struct {
	// Every is how many versions apart snapshots are taken: by each append that passes a multiple of it. A divisor of SnapshotEvery; 0 =
	// by each append.
	Every   int64
	Take    func(S) ([]byte, error)
	Restore func([]byte) (S, error)
}

// Refusal is a business "no" with a reason. It is final for the state it was decided on; an error that is no Refusal means
// "unknown, ask again".
type Refusal struct { //nolint:errname // a refusal is no failure; the glossary has the word
	Reason  string // one of a closed set, such as INSUFFICIENT_FUNDS
	Message string // one sentence for people
}

// Refuse makes a refusal.
func Refuse(reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Error is the reason and the sentence.
func (r *Refusal) Error() string { return r.Reason + ": " + r.Message }

// Refused returns reason and sentence; the edge turns anything that has this method into an answer.
func (r *Refusal) Refused() (reason, message string) { return r.Reason, r.Message }

// RefusalOf returns the refusal in err's chain, or nil.
func RefusalOf(err error) *Refusal {
	var r *Refusal
	if errors.As(err, &r) {
		return r
	}
	return nil
}

// Root is one aggregate in memory: state, version, and the events not yet stored. It is a value; a copy is independent.
// Not safe for concurrent use.
type Root[S any] struct {
	State       S
	Version     int64 // with the uncommitted events
	uncommitted []Event
}

// Uncommitted returns the events applied since the last Commit.
func (r *Root[S]) Uncommitted() []Event { return r.uncommitted }

// Commit forgets the uncommitted events: they are stored now.
func (r *Root[S]) Commit() { r.uncommitted = nil }

// New returns the aggregate before its first event.
func (d *Decider[S, C]) New() Root[S] { return Root[S]{State: d.Initial()} }

// Replay folds stored events into the aggregate. They must follow its version without a gap.
func (d *Decider[S, C]) Replay(r *Root[S], events ...Event) error {
	for _, e := range events {
		if e.Version != r.Version+1 {
			return fmt.Errorf("replay %s: version %d follows %d", e.Stream, e.Version, r.Version)
		}
		f, err := d.Schemas.Decode(e)
		if err != nil {
			return fmt.Errorf("replay %s version %d: %w", e.Stream, e.Version, err)
		}
		r.State = d.Evolve(r.State, f, Occurred{Version: e.Version, At: e.At})
		r.Version = e.Version
	}
	return nil
}

// Apply decides a command and folds its facts: they become uncommitted events. On an error, a panic in the domain
// included, the root is as it was.
func (d *Decider[S, C]) Apply(r *Root[S], stream Stream, c Command[C]) (events []Event, err error) {
	before := *r
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: command %s panicked: %v", stream, c.ID, p)
		}
		if err != nil {
			*r, events = before, nil
		}
	}()
	facts, err := d.Decide(r.State, c.Body)
	if err != nil {
		return nil, err
	}
	return d.record(r, stream, c.info(), facts)
}

// ApplyPair is Apply for a command on two streams. It returns the events of the first, the command's own; on an error both
// roots are as they were.
func (d *Decider[S, C]) ApplyPair(own, other *Root[S], ownStream, otherStream Stream, c Command[C]) (events []Event, err error) {
	ownBefore, otherBefore := *own, *other
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s and %s: command %s panicked: %v", ownStream, otherStream, c.ID, p)
		}
		if err != nil {
			*own, *other, events = ownBefore, otherBefore, nil
		}
	}()
	if d.DecidePair == nil {
		return nil, fmt.Errorf("%s: no command of this type is on two streams", ownStream)
	}
	ownFacts, otherFacts, err := d.DecidePair(own.State, other.State, c.Body)
	if err != nil {
		return nil, err
	}
	if len(ownFacts) == 0 && len(otherFacts) > 0 {
		return nil, fmt.Errorf("%s: command %s has facts for %s only", ownStream, c.ID, otherStream)
	}
	with := c.info()
	with.key = "with\x00" + ownStream.ID + "\x00" + with.key // the other stream has registers of its own
	if _, err := d.record(other, otherStream, with, otherFacts); err != nil {
		return nil, err
	}
	return d.record(own, ownStream, c.info(), ownFacts)
}

// record folds facts as uncommitted events.
func (d *Decider[S, C]) record(r *Root[S], stream Stream, c commandInfo, facts []Fact) ([]Event, error) {
	var events []Event
	for i, f := range facts {
		e, err := d.Schemas.Record(Event{
			ID: EventID(stream, c.key, i), Stream: stream, Version: r.Version + 1,
			At: c.at, CorrelationID: c.correlationID, CausationID: c.id, Metadata: c.metadata,
		}, f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", stream, err)
		}
		r.State = d.Evolve(r.State, f, Occurred{Version: e.Version, At: e.At})
		r.Version = e.Version
		events = append(events, e)
	}
	r.uncommitted = append(r.uncommitted[:len(r.uncommitted):len(r.uncommitted)], events...)
	return events, nil
}

// commandInfo is what a command's events carry of it.
type commandInfo struct {
	id, key, correlationID string
	at                     time.Time
	metadata               map[string]any
}

func (c Command[C]) info() commandInfo {
	return commandInfo{id: c.ID, key: c.key(), correlationID: c.CorrelationID, at: c.At.UTC().Truncate(time.Millisecond), metadata: c.Metadata}
}

// Command is a command on its way to one stream, or two.
type Command[C any] struct {
	// ID is the command's id; its events carry it as their causationId.
	ID string
	// StreamID is the aggregate's id.
	StreamID string
	// OtherID is the second aggregate, of the same type, of a command that is decided on both (DecidePair): their events commit
	// together or not at all. Empty = there is none. Never the StreamID.
	OtherID string
	// Key makes the command idempotent: a repeat with the same key on the same stream gets the first one's events as its
	// answer. Empty = the ID.
	Key string
	// At is when the command was given; its events carry it.
	At time.Time
	// CorrelationID and Metadata travel into the events.
	CorrelationID string
	Metadata      map[string]any
	// Creates says that the stream most likely does not exist yet, which saves looking. A guess, never a promise.
	Creates bool
	// Body is the domain's command.
	Body C
}

func (c Command[C]) key() string {
	if c.Key != "" {
		return c.Key
	}
	return c.ID
}
