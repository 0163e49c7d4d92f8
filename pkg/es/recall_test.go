package es_test

import (
	"encoding/json"
	"reflect"
	"testing"

	"example.com/billing/pkg/es"
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
	n := 0
	decode := func(eventType string, data json.RawMessage) (es.Fact, error) {
		n++
		return d.Decode(eventType, data)
	}
	read := func() (es.Event, es.Fact, int) {
		t.Helper()
		e, err := r.Decode(payload)
		if err != nil {
			t.Fatal(err)
		}
		n = 0
		f, err := es.FactOf(e, decode)
		if err != nil {
			t.Fatal(err)
		}
		return e, f, n
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
	if _, err := es.FactOf(own, decode); err != nil || n != 1 {
		t.Errorf("changed data was decoded %d times, %v", n, err)
	}
	if !reflect.DeepEqual(wasRead, isKnown) || own.ID != stranger.ID || !own.At.Equal(stranger.At) || !reflect.DeepEqual(own.Metadata, stranger.Metadata) || own.Version != stranger.Version {
		t.Errorf("remembered %+v %+v, read %+v %+v", own, isKnown, stranger, wasRead)
	}
	if _, err := r.Decode([]byte(`{}`)); err == nil {
		t.Error("what is no event was decoded")
	}
}

// What is remembered is bounded: the oldest are read as JSON again.
func TestRecallForgets(t *testing.T) {
	var r es.Recall
	first := []byte("0")
	for i := range 300 {
		b := make([]byte, 64<<10)
		if b[0] = byte(i % 200); i == 0 {
			first = b
		}
		b[1] = byte(i / 200)
		r.Add(b, es.Event{ID: "known"})
		if e, err := r.Decode(b); err != nil || e.ID != "known" {
			t.Fatalf("the newest: %v, %v", e, err)
		}
	}
	if _, err := r.Decode(first); err == nil {
		t.Error("the oldest of 19 MB is still remembered")
	}
}
