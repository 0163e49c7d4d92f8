package es_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"example.com/billing/pkg/es"
)

var oneStream = es.Stream{Type: "Purse", ID: "p-1"}

func TestApplyMakesEventsOfFacts(t *testing.T) {
	d := purses(true)
	r := d.New()
	c := es.Command[any]{ID: "cmd-1", Key: "key-1", At: noon.In(time.FixedZone("", 7200)), CorrelationID: "corr-1", Metadata: map[string]any{"actor": "ann"}, Body: twice{5}}
	events, err := d.Apply(&r, oneStream, c)
	if err != nil || len(events) != 2 || r.Version != 2 || r.State != (purse{Balance: 10, Moves: 2}) {
		t.Fatalf("%v: %d events, root %+v", err, len(events), r)
	}
	for i, e := range events {
		b, _ := e.Encode()
		want := es.Event{
			ID: es.EventID(oneStream, "key-1", i), Type: "Moved", Stream: oneStream, Version: int64(i + 1), At: noon.Truncate(time.Millisecond),
			CorrelationID: "corr-1", CausationID: "cmd-1", Metadata: map[string]any{"actor": "ann"}, Data: []byte(`{"change":5}`),
		}
		if w, _ := want.Encode(); string(b) != string(w) || !e.At.Equal(want.At) {
			t.Errorf("event %d\n got %s\nwant %s", i, b, w)
		}
	}
	c.ID, c.Key, c.Body = "cmd-2", "", spend{4}
	more, err := d.Apply(&r, oneStream, c)
	if err != nil || more[0].ID != es.EventID(oneStream, "cmd-2", 0) || more[0].Version != 3 {
		t.Errorf("a command without a key is known by its id: %+v, %v", more, err)
	}
	if u := r.Uncommitted(); len(u) != 3 || u[2].Version != 3 {
		t.Errorf("uncommitted %+v", u)
	}
	if r.Commit(); len(r.Uncommitted()) != 0 || r.Version != 3 {
		t.Errorf("after the commit: %+v", r)
	}
}

// A command that fails, however it does, leaves the root as it was.
func TestApplyLeavesTheRootAloneOnFailure(t *testing.T) {
	for _, tc := range []struct {
		name  string
		c     any
		fails func(error) bool
	}{
		{"refused", spend{99}, func(err error) bool { return refused(err, "INSUFFICIENT_FUNDS") }},
		{"error", lost{}, func(err error) bool { return errors.Is(err, errLost) && es.RefusalOf(err) == nil }},
		{"panic in Decide", explode{}, func(err error) bool {
			return strings.Contains(err.Error(), "the command explodes") && es.RefusalOf(err) == nil
		}},
		{"panic in Evolve after a fact", bomb{}, func(err error) bool { return strings.Contains(err.Error(), "the fact explodes") }},
		{"no JSON after a fact", poison{}, func(err error) bool { return strings.Contains(err.Error(), "Noted") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := purses(true)
			r := d.New()
			if _, err := d.Apply(&r, oneStream, command("p-1", "", put{7})); err != nil {
				t.Fatal(err)
			}
			events, err := d.Apply(&r, oneStream, command("p-1", "", tc.c))
			if err == nil || !tc.fails(err) || events != nil {
				t.Fatalf("got %v and %d events", err, len(events))
			}
			if r.State != (purse{Balance: 7, Moves: 1}) || r.Version != 1 || len(r.Uncommitted()) != 1 {
				t.Errorf("the root changed: %+v", r)
			}
		})
	}
}

func TestApplyStaysQuietWithoutFacts(t *testing.T) {
	d := purses(true)
	r := d.New()
	if events, err := d.Apply(&r, oneStream, command("p-1", "", idle{})); err != nil || len(events) != 0 || r.Version != 0 {
		t.Errorf("%v, %v, %+v", events, err, r)
	}
}

// A copy of a root goes its own way.
func TestRootsAreValues(t *testing.T) {
	d := purses(true)
	a := d.New()
	for range 3 { // room in the slice to share by mistake
		if _, err := d.Apply(&a, oneStream, command("p-1", "", put{1})); err != nil {
			t.Fatal(err)
		}
	}
	b := a
	if _, err := d.Apply(&a, oneStream, command("p-1", "", put{10})); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Apply(&b, oneStream, command("p-1", "", put{20})); err != nil {
		t.Fatal(err)
	}
	if got := string(a.Uncommitted()[3].Data); got != `{"change":10}` || a.State.Balance != 13 || b.State.Balance != 23 {
		t.Errorf("a holds %s, balances %d and %d", got, a.State.Balance, b.State.Balance)
	}
}

func TestReplayRefuses(t *testing.T) {
	at := func(version int64, eventType, data string) es.Event {
		return es.Event{ID: "e", Type: eventType, Stream: oneStream, Version: version, Data: json.RawMessage(data)}
	}
	first := at(1, "Moved", `{"change":1}`)
	for name, bad := range map[string]es.Event{
		"a gap":                       at(3, "Moved", `{"change":1}`),
		"a version again":             at(1, "Moved", `{"change":1}`),
		"a type it does not know":     at(2, "Vanished", `{}`),
		"data it does not understand": at(2, "Moved", `{"change":"one"}`),
	} {
		d := purses(true)
		r := d.New()
		if err := d.Replay(&r, first, bad); err == nil || !strings.Contains(err.Error(), "Purse p-1") {
			t.Errorf("%s: got %v", name, err)
		}
		if r.Version != 1 || r.State.Balance != 1 {
			t.Errorf("%s: the root is %+v", name, r)
		}
	}
}
