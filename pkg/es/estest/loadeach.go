package estest

import (
	"context"
	"slices"
	"testing"

	"github.com/google/uuid"

	"example.com/billing/pkg/es"
)

// testLoadEach: a span's answer is what Load says of it, whatever else is asked in the same call.
func testLoadEach(t *testing.T, s es.Store) {
	a, b, none := newStream(), newStream(), newStream()
	mustAppend(t, s, es.Append{Stream: a, Events: events(a, 0, 5)})
	mustAppend(t, s, es.Append{Stream: b, Events: events(b, 0, 2)})
	mustAppend(t, s, es.Append{Stream: a, Expected: 5, Events: events(a, 5, 1)})
	spans := []es.Span{
		{Stream: b}, {Stream: none}, {Stream: a, After: 2}, {Stream: a, After: 1, Limit: 3}, {Stream: b, After: 2},
		{Stream: b, After: 9, Limit: 1}, {Stream: es.Stream{Type: "Other", ID: a.ID}},
		{Stream: a, Limit: 100}, {Stream: b},
	}
	loaded, err := s.LoadEach(t.Context(), spans)
	if err != nil || len(loaded) != len(spans) {
		t.Fatalf("%d results (%v), want %d", len(loaded), err, len(spans))
	}
	for i, span := range spans {
		want, err := s.Load(t.Context(), span.Stream, span.After, span.Limit)
		if err != nil || loaded[i].Err != nil {
			t.Fatal(err, loaded[i].Err)
		}
		same := slices.EqualFunc(loaded[i].Value, want, func(x, y es.Event) bool {
			p, errX := x.Encode()
			q, errY := y.Encode()
			return errX == nil && errY == nil && string(p) == string(q) &&
				x.Position == y.Position && x.RecordedAt.Equal(y.RecordedAt)
		})
		if !same {
			t.Errorf("span %d, %+v:\n got %v\nwant %v", i, span, loaded[i].Value, want)
		}
	}
	if loaded, err := s.LoadEach(t.Context(), nil); err != nil || len(loaded) != 0 {
		t.Errorf("no spans: %v, %v", loaded, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.LoadEach(ctx, spans); err == nil {
		t.Error("with an ended context it returned no error")
	}
}

// testLoadMany: a group of many streams, written together, is loaded together.
func testLoadMany(t *testing.T, s es.Store) {
	const streams, each = 256, 3
	var (
		items [][]es.Append
		spans []es.Span
	)
	for i := range streams {
		st := es.Stream{Type: "Test", ID: uuid.NewString()}
		items = append(items, []es.Append{{Stream: st, Events: events(st, 0, each)}})
		spans = append(spans, es.Span{Stream: st, After: int64(i % each), Limit: each})
	}
	for _, err := range s.AppendBatch(t.Context(), items) {
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Reverse(spans)
	loaded, err := s.LoadEach(t.Context(), spans)
	if err != nil {
		t.Fatal(err)
	}
	for i, span := range spans {
		got := loaded[i].Value
		if loaded[i].Err != nil || len(got) != int(each-span.After) {
			t.Fatalf("span %d, %+v: %d events (%v)", i, span, len(got), loaded[i].Err)
		}
		for j, e := range got {
			if e.Stream != span.Stream || e.Version != span.After+int64(j)+1 {
				t.Fatalf("span %d, %+v: event %d is version %d of %s", i, span, j, e.Version, e.Stream)
			}
		}
	}
}
