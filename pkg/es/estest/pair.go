package estest

import (
	"testing"

	"example.com/billing/pkg/es"
)

// otherStream is the second stream of scenarios with two.
var otherStream = es.Stream{Type: stream.Type, ID: "00000000-0000-4000-8000-000000000002"}

// PairScenario is two aggregates of a type with a history each, for commands that are decided on both.
type PairScenario[S, C any] struct {
	own, other *Scenario[S, C]
}

// GivenPair starts a scenario of two aggregates from their facts, the oldest first; the first is the commands' own.
func GivenPair[S, C any](t testing.TB, d *es.Decider[S, C], own, other []es.Fact) *PairScenario[S, C] {
	t.Helper()
	return &PairScenario[S, C]{own: Given(t, d, own...), other: Given(t, d, other...)}
}

// ThenPair is what a command on two aggregates led to.
type ThenPair[S any] struct {
	own, other *Then[S]
}

// When decides a command. The scenario goes on from its outcome.
func (s *PairScenario[S, C]) When(c C) *ThenPair[S] {
	t := s.own.t
	t.Helper()
	before := len(s.other.root.Uncommitted())
	cmd := es.Command[C]{ID: es.EventID(stream, "when", int(s.own.root.Version+s.other.root.Version)), At: start, Body: c}
	events, err := s.own.d.ApplyPair(&s.own.root, &s.other.root, stream, otherStream, cmd)
	then := &ThenPair[S]{own: &Then[S]{t: t, state: s.own.root.State, err: err}, other: &Then[S]{t: t, state: s.other.root.State, err: err}}
	for _, e := range events {
		then.own.facts = append(then.own.facts, e.Type+string(e.Data))
	}
	for _, e := range s.other.root.Uncommitted()[before:] {
		then.other.facts = append(then.other.facts, e.Type+string(e.Data))
	}
	for _, x := range []*Scenario[S, C]{s.own, s.other} {
		x.root.Commit()
		if err == nil && x.d.Snapshots != nil {
			x.checkSnapshot()
		}
	}
	return then
}

// Then fails the test unless the command led to exactly these facts on the one and on the other.
func (r *ThenPair[S]) Then(own, other []es.Fact) *ThenPair[S] {
	r.own.t.Helper()
	r.own.Then(own...)
	r.other.Then(other...)
	return r
}

// ThenNothing fails the test unless the command stayed quiet on both.
func (r *ThenPair[S]) ThenNothing() *ThenPair[S] {
	r.own.t.Helper()
	return r.Then(nil, nil)
}

// ThenRefused fails the test unless the command was refused for this reason, and left no trace.
func (r *ThenPair[S]) ThenRefused(reason string) *ThenPair[S] {
	r.own.t.Helper()
	r.own.ThenRefused(reason)
	if len(r.other.facts) > 0 {
		r.own.t.Fatalf("refused, and the other got %q", r.other.facts)
	}
	return r
}

// States returns both states after the command.
func (r *ThenPair[S]) States() (own, other S) { return r.own.state, r.other.state }
