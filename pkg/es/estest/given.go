// Package estest tests deciders as rules (given, when, then) and event stores against their contract.
package estest

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"example.com/billing/pkg/es"
)

// Scenario is a decider with a history.
type Scenario[S, C any] struct {
	t    testing.TB
	d    *es.Decider[S, C]
	root es.Root[S]
}

// stream and start are what every scenario plays on.
var (
	stream = es.Stream{Type: "Test", ID: "00000000-0000-4000-8000-000000000001"}
	start  = time.Date(2025, 12, 9, 12, 0, 0, 0, time.UTC)
)

// Given starts a scenario from facts, the oldest first. Each goes through its JSON, as it would in a store.
func Given[S, C any](t testing.TB, d *es.Decider[S, C], facts ...es.Fact) *Scenario[S, C] {
	t.Helper()
	s := &Scenario[S, C]{t: t, d: d, root: d.New()}
	for i, f := range facts {
		e, err := d.Schemas.Record(es.Event{ID: es.EventID(stream, "given", i), Stream: stream, Version: int64(i + 1), At: start}, f)
		if err != nil {
			t.Fatalf("given: %v", err)
		}
		if err := d.Replay(&s.root, Stored(t, e)); err != nil {
			t.Fatalf("given %s: %v", f.EventType(), err)
		}
	}
	return s
}

// Load folds a stored event, wherever it stood in its own stream, behind the given facts.
func (s *Scenario[S, C]) Load(e es.Event) S {
	s.t.Helper()
	e.Stream, e.Version = stream, s.root.Version+1
	if err := s.d.Replay(&s.root, e); err != nil {
		s.t.Fatal(err)
	}
	return s.root.State
}

// Then is what a command led to.
type Then[S any] struct {
	t     testing.TB
	state S
	facts []string
	err   error
}

// When decides a command. The scenario goes on from its outcome.
func (s *Scenario[S, C]) When(c C) *Then[S] {
	s.t.Helper()
	events, err := s.d.Apply(&s.root, stream, es.Command[C]{ID: es.EventID(stream, "when", int(s.root.Version)), At: start, Body: c})
	then := &Then[S]{t: s.t, state: s.root.State, err: err}
	for _, e := range events {
		then.facts = append(then.facts, e.Type+string(e.Data))
	}
	s.root.Commit()
	if err == nil && s.d.Snapshots != nil {
		s.checkSnapshot()
	}
	return then
}

// checkSnapshot: a state survives its snapshot.
func (s *Scenario[S, C]) checkSnapshot() {
	s.t.Helper()
	b, err := s.d.Snapshots.Take(s.root.State)
	if err != nil {
		s.t.Fatalf("snapshot: %v", err)
	}
	restored, err := s.d.Snapshots.Restore(b)
	if err != nil {
		s.t.Fatalf("restore: %v", err)
	}
	again, err := s.d.Snapshots.Take(restored)
	if err != nil || string(again) != string(b) {
		s.t.Fatalf("the snapshot changes when restored: %s became %s (%v)", b, again, err)
	}
}

// Then fails the test unless the command led to exactly these facts.
func (r *Then[S]) Then(facts ...es.Fact) *Then[S] {
	r.t.Helper()
	if r.err != nil {
		r.t.Fatalf("want %d events, got %v", len(facts), r.err)
	}
	var want []string
	for _, f := range facts {
		data, err := es.Marshal(f)
		if err != nil {
			r.t.Fatal(err)
		}
		want = append(want, f.EventType()+string(data))
	}
	if !reflect.DeepEqual(r.facts, want) {
		r.t.Fatalf("events\n got %q\nwant %q", r.facts, want)
	}
	return r
}

// ThenNothing fails the test unless the command stayed quiet.
func (r *Then[S]) ThenNothing() *Then[S] {
	r.t.Helper()
	return r.Then()
}

// ThenRefused fails the test unless the command was refused for this reason.
func (r *Then[S]) ThenRefused(reason string) *Then[S] {
	r.t.Helper()
	var refusal *es.Refusal
	if !errors.As(r.err, &refusal) || refusal.Reason != reason {
		r.t.Fatalf("want refusal %s, got events %q, error %v", reason, r.facts, r.err)
	}
	return r
}

// State returns the state after the command.
func (r *Then[S]) State() S { return r.state }

// RoundTrip fails the test unless a fact, encoded, decodes to itself.
func RoundTrip[S, C any](t testing.TB, d *es.Decider[S, C], f es.Fact) {
	t.Helper()
	e, err := d.Schemas.Record(es.Event{ID: es.EventID(stream, "trip", 0), Stream: stream, Version: 1, At: start}, f)
	if err != nil {
		t.Fatal(err)
	}
	back, err := d.Schemas.Decode(Stored(t, e))
	if err != nil {
		t.Fatal(err)
	}
	again, err := es.Marshal(back)
	if err != nil || string(again) != string(e.Data) {
		t.Fatalf("%s changes when decoded: %s became %s (%v)", e.Type, e.Data, again, err)
	}
}

// Stored is an event as it is read back: all that is known of it is its JSON.
func Stored(t interface{ Fatal(args ...any) }, e es.Event) es.Event {
	payload, err := e.Encode()
	if err == nil {
		e, err = es.Decode(payload)
	}
	if err != nil {
		t.Fatal(err)
	}
	return e
}
