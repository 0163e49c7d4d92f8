package estest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"example.com/billing/pkg/es"
)

// TestStore is the contract of es.Store. open returns a store that no other test writes to.
func TestStore(t *testing.T, open func(t *testing.T) es.Store) {
	for _, tc := range []struct {
		name string
		run  func(*testing.T, es.Store)
	}{
		{"appends and loads", testAppendLoad},
		{"loads from a version", testLoadFrom},
		{"loads a limited number", testLoadLimit},
		{"loads parts of many streams, each with its own result", testLoadEach},
		{"loads a group of many streams", testLoadMany},
		{"names expected and actual on a conflict", testConflict},
		{"checks a version without events", testCheckOnly},
		{"appends several streams in one step or not at all", testMultiStream},
		{"takes an event id once", testDuplicate},
		{"stores what is repeated once", testRepeated},
		{"gives each item of a batch its own result", testBatch},
		{"appends to many streams at once", testManyStreams},
		{"keeps events as large as the limit", testLarge},
		{"lets one of many concurrent writers through", testRace},
		{"keeps snapshots with the head", testSnapshots},
		{"keeps a snapshot of every so many versions for good", testKeptSnapshots},
		{"looks events up by id", testLookup},
		{"reads all in one order, without gaps, under concurrent writers", testReadAll},
		{"is followed, each event once and in order, before, within and after what many writers commit", testFollow},
		{"reads all from a time", testReadSince},
		{"reads a clock behind which the past is complete", testClock},
		{"knows the newest position", testEnd},
		{"refuses what is over a limit", testLimits},
		{"keeps any text", testUnicode},
		{"ends when the context ends", testCancelled},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, open(t)) })
	}
}

func newStream() es.Stream { return es.Stream{Type: "Test", ID: uuid.NewString()} }

// events makes n events that follow version after.
func events(s es.Stream, after int64, n int) []es.Event {
	out := make([]es.Event, n)
	for i := range out {
		out[i] = es.Event{
			ID: uuid.NewString(), Type: "Happened", Stream: s, Version: after + int64(i) + 1, At: start,
			CorrelationID: "c-1", CausationID: "k-1", Metadata: map[string]any{"actor": "tester"}, Data: []byte(fmt.Sprintf(`{"n":%d}`, i)),
		}
	}
	return out
}

func mustAppend(t *testing.T, s es.Store, streams ...es.Append) {
	t.Helper()
	if err := s.Append(t.Context(), streams...); err != nil {
		t.Fatal(err)
	}
}

func mustLoad(t *testing.T, s es.Store, st es.Stream, after int64) []es.Event {
	t.Helper()
	got, err := s.Load(t.Context(), st, after, 0)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func testAppendLoad(t *testing.T, s es.Store) {
	st := newStream()
	want := events(st, 0, 3)
	mustAppend(t, s, es.Append{Stream: st, Events: want[:2]})
	mustAppend(t, s, es.Append{Stream: st, Expected: 2, Events: want[2:]})
	got := mustLoad(t, s, st, 0)
	if len(got) != 3 {
		t.Fatalf("loaded %d events, want 3", len(got))
	}
	for i := range got {
		if got[i].Position == 0 || got[i].RecordedAt.IsZero() {
			t.Errorf("event %d has no position or time of recording: %+v", i, got[i])
		}
		a, _ := want[i].Encode()
		b, _ := got[i].Encode()
		if string(a) != string(b) {
			t.Errorf("event %d\n got %s\nwant %s", i, b, a)
		}
	}
	if got := mustLoad(t, s, newStream(), 0); len(got) != 0 {
		t.Errorf("an unknown stream has %d events", len(got))
	}
	other := es.Stream{Type: "Other", ID: st.ID}
	if got := mustLoad(t, s, other, 0); len(got) != 0 {
		t.Errorf("a stream of another type with the same id has %d events", len(got))
	}
}

func testLoadFrom(t *testing.T, s es.Store) {
	st := newStream()
	mustAppend(t, s, es.Append{Stream: st, Events: events(st, 0, 5)})
	for after, want := range map[int64]int{0: 5, 2: 3, 5: 0, 9: 0} {
		got := mustLoad(t, s, st, after)
		if len(got) != want {
			t.Errorf("after %d: %d events, want %d", after, len(got), want)
		}
		if len(got) > 0 && got[0].Version != after+1 {
			t.Errorf("after %d: the first has version %d", after, got[0].Version)
		}
	}
}

func testConflict(t *testing.T, s es.Store) {
	st := newStream()
	mustAppend(t, s, es.Append{Stream: st, Events: events(st, 0, 2)})
	for _, expected := range []int64{0, 1, 3} {
		err := s.Append(t.Context(), es.Append{Stream: st, Expected: expected, Events: events(st, expected, 1)})
		var c *es.ConflictError
		if !errors.As(err, &c) || c.Expected != expected || c.Actual != 2 || c.Stream != st {
			t.Errorf("expected version %d: got %v", expected, err)
		}
	}
	if n := len(mustLoad(t, s, st, 0)); n != 2 {
		t.Errorf("%d events after conflicts, want 2", n)
	}
}

func testCheckOnly(t *testing.T, s es.Store) {
	st := newStream()
	mustAppend(t, s, es.Append{Stream: st}) // not there: version 0
	mustAppend(t, s, es.Append{Stream: st, Events: events(st, 0, 1)})
	mustAppend(t, s, es.Append{Stream: st, Expected: 1})
	var c *es.ConflictError
	if err := s.Append(t.Context(), es.Append{Stream: st}); !errors.As(err, &c) || c.Actual != 1 {
		t.Errorf("a stale version without events: got %v", err)
	}
}

func testMultiStream(t *testing.T, s es.Store) {
	if s.Scope() != es.ScopeStore {
		t.Skipf("the store's scope is %q: streams of one partition are the store's own test", s.Scope())
	}
	a, b := newStream(), newStream()
	mustAppend(t, s, es.Append{Stream: a, Events: events(a, 0, 1)}, es.Append{Stream: b, Events: events(b, 0, 2)})
	err := s.Append(t.Context(), es.Append{Stream: a, Expected: 1, Events: events(a, 1, 1)}, es.Append{Stream: b, Expected: 1, Events: events(b, 1, 1)})
	var c *es.ConflictError
	if !errors.As(err, &c) || c.Stream != b {
		t.Fatalf("want a conflict on the second stream, got %v", err)
	}
	if n, m := len(mustLoad(t, s, a, 0)), len(mustLoad(t, s, b, 0)); n != 1 || m != 2 {
		t.Errorf("after the conflict: %d and %d events, want 1 and 2", n, m)
	}
	if err := s.Append(t.Context(), es.Append{Stream: a, Expected: 1}, es.Append{Stream: a, Expected: 1}); err == nil {
		t.Error("one stream twice in one append was taken")
	}
}

func testDuplicate(t *testing.T, s es.Store) {
	st := newStream()
	e := events(st, 0, 1)
	mustAppend(t, s, es.Append{Stream: st, Events: e})
	again := e[0]
	again.Version = 2
	var d *es.DuplicateError
	if err := s.Append(t.Context(), es.Append{Stream: st, Expected: 1, Events: []es.Event{again}}); !errors.As(err, &d) || len(d.IDs) != 1 || d.IDs[0] != e[0].ID {
		t.Errorf("a stored id: got %v", err)
	}
	twice := events(st, 1, 2)
	twice[1].ID = twice[0].ID
	errs := s.AppendBatch(t.Context(), [][]es.Append{
		{{Stream: st, Expected: 1, Events: twice[:1]}},
		{{Stream: st, Expected: 2, Events: twice[1:]}},
	})
	if errs[0] != nil || !errors.As(errs[1], &d) {
		t.Errorf("one id twice in a batch: got %v", errs)
	}
}

// testRepeated: an append whose answer was lost is sent again, alone and within a batch.
func testRepeated(t *testing.T, s es.Store) {
	st := newStream()
	first := es.Append{Stream: st, Events: events(st, 0, 2)}
	mustAppend(t, s, first)
	errs := s.AppendBatch(t.Context(), [][]es.Append{{first}, {{Stream: st, Expected: 2, Events: events(st, 2, 1)}}, {first}})
	for i, want := range []bool{false, true, false} {
		var (
			conflict  *es.ConflictError
			duplicate *es.DuplicateError
		)
		if (errs[i] == nil) != want || !want && !errors.As(errs[i], &conflict) && !errors.As(errs[i], &duplicate) {
			t.Errorf("item %d: got %v", i, errs[i])
		}
	}
	if n := len(mustLoad(t, s, st, 0)); n != 3 {
		t.Errorf("%d events, want 3", n)
	}
	if found, err := s.Lookup(t.Context(), []string{first.Events[0].ID, first.Events[1].ID}); err != nil || len(found) != 2 {
		t.Errorf("%d of the repeated events are found (%v)", len(found), err)
	}
}

func testManyStreams(t *testing.T, s es.Store) {
	const n = 1500
	streams, items := make([]es.Stream, n), make([][]es.Append, n)
	for i := range items {
		streams[i] = newStream()
		items[i] = []es.Append{{Stream: streams[i], Events: events(streams[i], 0, 1+i%3)}}
	}
	if err := errors.Join(s.AppendBatch(t.Context(), items)...); err != nil {
		t.Fatal(err)
	}
	heads, err := s.Heads(t.Context(), streams)
	if err != nil || len(heads) != n {
		t.Fatalf("%d heads (%v), want %d", len(heads), err, n)
	}
	for i, h := range heads {
		if want := int64(1 + i%3); h.Version != want {
			t.Fatalf("stream %d is at version %d, want %d", i, h.Version, want)
		}
	}
}

// testLarge: events of nearly the largest size, more of them in one batch than any message or statement is to hold.
func testLarge(t *testing.T, s es.Store) {
	st := newStream()
	items := make([][]es.Append, 12)
	for i := range items {
		e := events(st, int64(i), 1)
		e[0].Data = []byte(`{"x":"` + strings.Repeat(string(rune('a'+i)), es.EventBytesMax-1024) + `"}`)
		items[i] = []es.Append{{Stream: st, Expected: int64(i), Events: e}}
	}
	if err := errors.Join(s.AppendBatch(t.Context(), items)...); err != nil {
		t.Fatal(err)
	}
	got := mustLoad(t, s, st, 0)
	if len(got) != len(items) {
		t.Fatalf("%d events, want %d", len(got), len(items))
	}
	for i, e := range got {
		if string(e.Data) != string(items[i][0].Events[0].Data) {
			t.Errorf("event %d is another one: %d bytes", i, len(e.Data))
		}
	}
}

func testBatch(t *testing.T, s es.Store) {
	a, b, c := newStream(), newStream(), newStream()
	mustAppend(t, s, es.Append{Stream: b, Events: events(b, 0, 1)})
	bad := events(c, 0, 1)
	bad[0].Data = []byte(`{"broken`)
	errs := s.AppendBatch(t.Context(), [][]es.Append{
		{{Stream: a, Events: events(a, 0, 1)}},
		{{Stream: b, Events: events(b, 0, 1)}}, // stale
		{{Stream: c, Events: bad}},             // not JSON
		{{Stream: a, Expected: 1, Events: events(a, 1, 1)}},
		{{Stream: b, Expected: 1}},
	})
	var conflict *es.ConflictError
	if errs[0] != nil || !errors.As(errs[1], &conflict) || errs[2] == nil || errs[3] != nil || errs[4] != nil {
		t.Fatalf("results %v", errs)
	}
	if n := len(mustLoad(t, s, a, 0)); n != 2 {
		t.Errorf("%d events on the stream named twice, want 2", n)
	}
	if n := len(mustLoad(t, s, c, 0)); n != 0 {
		t.Errorf("%d events of the broken item were written", n)
	}
}

// testRace: writers race for every version of a stream; each version has exactly one winner.
func testRace(t *testing.T, s es.Store) {
	const writers, rounds = 64, 5
	st := newStream()
	for v := range int64(rounds) {
		var (
			wg   sync.WaitGroup
			mu   sync.Mutex
			wins int
		)
		for range writers {
			wg.Go(func() {
				err := s.Append(t.Context(), es.Append{Stream: st, Expected: v, Events: events(st, v, 1)})
				var c *es.ConflictError
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					wins++
				} else if !errors.As(err, &c) {
					t.Errorf("neither stored nor a conflict: %v", err)
				}
			})
		}
		wg.Wait()
		if wins != 1 {
			t.Fatalf("version %d has %d winners", v+1, wins)
		}
	}
	if n := len(mustLoad(t, s, st, 0)); n != rounds {
		t.Errorf("%d events, want %d", n, rounds)
	}
}

func testLimits(t *testing.T, s es.Store) {
	st := newStream()
	big := events(st, 0, 1)
	big[0].Data = []byte(`{"x":"` + strings.Repeat("a", es.EventBytesMax) + `"}`)
	var l *es.LimitError
	if err := s.Append(t.Context(), es.Append{Stream: st, Events: big}); !errors.As(err, &l) || l.Max != es.EventBytesMax {
		t.Errorf("a large event: got %v", err)
	}
	if err := s.Append(t.Context(), es.Append{Stream: st, Events: events(st, 0, es.StreamEventsMax+1)}); !errors.As(err, &l) {
		t.Errorf("many events: got %v", err)
	}
	skipped := events(st, 1, 1)
	if err := s.Append(t.Context(), es.Append{Stream: st, Events: skipped}); err == nil {
		t.Error("an event that skips a version was taken")
	}
	if err := s.Append(t.Context(), es.Append{Stream: newStream(), Events: events(st, 0, 1)}); err == nil {
		t.Error("an event of another stream was taken")
	}
	if n := len(mustLoad(t, s, st, 0)); n != 0 {
		t.Errorf("%d events were written", n)
	}
}

func testLoadLimit(t *testing.T, s es.Store) {
	st := newStream()
	mustAppend(t, s, es.Append{Stream: st, Events: events(st, 0, 5)})
	for _, tc := range []struct {
		after       int64
		limit       int
		first, last int64 // 0 = none
	}{{0, 2, 1, 2}, {2, 2, 3, 4}, {3, 10, 4, 5}, {5, 1, 0, 0}, {1, 0, 2, 5}} {
		got, err := s.Load(t.Context(), st, tc.after, tc.limit)
		if err != nil {
			t.Fatal(err)
		}
		var first, last int64
		if len(got) > 0 {
			first, last = got[0].Version, got[len(got)-1].Version
		}
		if first != tc.first || last != tc.last {
			t.Errorf("after %d, limit %d: versions %d to %d, want %d to %d", tc.after, tc.limit, first, last, tc.first, tc.last)
		}
	}
}

func testUnicode(t *testing.T, s es.Store) {
	st := newStream()
	e := events(st, 0, 1)
	text := "Zürich \u2028 \"quoted\" \\ \t <&> 日本 🏦 \x01"
	data, err := es.Marshal(map[string]string{"text": text})
	if err != nil {
		t.Fatal(err)
	}
	e[0].Data, e[0].Metadata, e[0].CorrelationID = data, map[string]any{"text": text, "n": 1.5, "list": []any{"a", nil}}, text
	e[0].SchemaVersion = 2
	mustAppend(t, s, es.Append{Stream: st, Events: e})
	a, _ := e[0].Encode()
	b, _ := mustLoad(t, s, st, 0)[0].Encode()
	if string(a) != string(b) {
		t.Errorf("\n got %s\nwant %s", b, a)
	}
}

func testCancelled(t *testing.T, s es.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	st := newStream()
	if err := s.Append(ctx, es.Append{Stream: st, Events: events(st, 0, 1)}); err == nil {
		t.Error("append with an ended context returned no error")
	}
	if _, err := s.Load(ctx, st, 0, 0); err == nil {
		t.Error("load with an ended context returned no error")
	}
	for _, err := range s.ReadAll(ctx, "", es.From{}) {
		if err == nil {
			t.Error("read with an ended context returned no error")
		}
		break
	}
}
