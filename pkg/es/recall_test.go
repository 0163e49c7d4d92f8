package es_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"

	"github.com/google/uuid"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/pgtest"
)

// An event of this process comes back with its fact; whatever else is read as JSON, and means the same.
func TestRecall(t *testing.T) {
	var r es.Recall
	d := purses(true)
	root := d.New()
	events, err := d.Apply(&root, oneStream, es.Command[any]{ID: "c", At: noon, Metadata: map[string]any{"tenantId": "x"}, Body: put{3}})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := events[0].Encode()
	if err != nil {
		t.Fatal(err)
	}
	schemas, n := counting()
	read := func() (es.Event, es.Fact, int) {
		t.Helper()
		e, err := r.Decode(payload)
		if err != nil {
			t.Fatal(err)
		}
		*n = 0
		f, err := schemas.Decode(e)
		if err != nil {
			t.Fatal(err)
		}
		return e, f, *n
	}
	stranger, wasRead, decoded := read()
	if decoded != 1 {
		t.Errorf("an event that nobody remembers was decoded %d times", decoded)
	}
	r.Add(payload, events[0])
	own, isKnown, again := read()
	if again != 0 {
		t.Errorf("an event that is remembered was decoded %d times", again)
	}
	own.Data = stranger.Data // from other bytes: the fact is not taken for theirs
	if _, err := schemas.Decode(own); err != nil || *n != 1 {
		t.Errorf("changed data was decoded %d times, %v", *n, err)
	}
	if !reflect.DeepEqual(wasRead, isKnown) || own.ID != stranger.ID || !own.At.Equal(stranger.At) || !reflect.DeepEqual(own.Metadata, stranger.Metadata) || own.Version != stranger.Version {
		t.Errorf("remembered %+v %+v, read %+v %+v", own, isKnown, stranger, wasRead)
	}
	if _, err := r.Decode([]byte(`{}`)); err == nil {
		t.Error("what is no event was decoded")
	}
}

// counting are the schemas of moved, and how often they decoded.
func counting() (es.Schemas, *int) {
	n, moves := 0, es.SchemaOf[moved]()
	return es.Schemas{"Moved": {Decode: func(data json.RawMessage) (es.Fact, error) {
		n++
		return moves.Decode(data)
	}}}, &n
}

// What is remembered is bounded: the oldest are read as JSON again. What was not recorded here is not remembered.
func TestRecallForgets(t *testing.T) {
	d := purses(true)
	root := d.New()
	events, err := d.Apply(&root, oneStream, es.Command[any]{ID: "c", At: noon, Body: put{3}})
	if err != nil {
		t.Fatal(err)
	}
	var r es.Recall
	payload := func(n int) []byte { return append(make([]byte, 64<<10), fmt.Sprint(n)...) } // no JSON: only what is remembered is read
	for n := range 300 {
		r.Add(payload(n), events[0])
		if e, err := r.Decode(payload(n)); err != nil || e.ID != events[0].ID {
			t.Fatalf("the newest: %v, %v", e, err)
		}
	}
	if _, err := r.Decode(payload(0)); err == nil {
		t.Error("the oldest of 19 MB is still remembered")
	}
	r.Add(payload(-1), es.Event{ID: "strange"})
	if _, err := r.Decode(payload(-1)); err == nil {
		t.Error("an event without its fact is remembered")
	}
}

// What a store has committed, it need not decode.
func TestAStoreKnowsItsEventsAgain(t *testing.T) {
	pool := pgtest.Pool(t)
	if err := migrate.Up(t.Context(), pool, postgres.Migrations, postgres.MigrationsTable); err != nil {
		t.Fatal(err)
	}
	s := postgres.New(pool, postgres.Options{})
	events := must(t, newExecutor(t, s, es.ExecutorOptions{}), uuid.NewString(), "k", twice{3}).Events
	for _, committed := range events {
		payload, err := committed.Encode()
		if err != nil {
			t.Fatal(err)
		}
		for name, tc := range map[string]struct {
			decode func([]byte) (es.Event, error)
			want   int
		}{"the store": {s.Decode, 0}, "another one": {postgres.New(pool, postgres.Options{}).Decode, 1}} {
			e, err := tc.decode(payload)
			if err != nil {
				t.Fatal(err)
			}
			schemas, n := counting()
			f, err := schemas.Decode(e)
			if err != nil || f != es.Fact(moved{3}) || *n != tc.want || e.Version != committed.Version {
				t.Errorf("%s: %+v of version %d, decoded %d times (%v)", name, f, e.Version, *n, err)
			}
		}
	}
	if len(events) != 2 {
		t.Errorf("%d events", len(events))
	}
}
