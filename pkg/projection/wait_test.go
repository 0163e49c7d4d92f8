package projection_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/projection"
)

// A wait ends when every row is there: not before, and however the versions come.
func TestWait(t *testing.T) {
	f := open(t)
	a, b := newStream(), newStream()
	as, bs := f.history(t, a, 3, 3), f.history(t, b, 2, 2)
	want := map[es.Stream]int64{a: 2, b: 2, {Type: "Other", ID: "not even a UUID"}: 7}
	waited := make(chan error, 1)
	go func() { waited <- f.model.Wait(context.Background(), f.pool, want, f.has) }()
	for _, batch := range [][]es.Event{{as[0]}, {bs[0], bs[1]}} {
		if err := f.Handle(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if err := f.model.Wait(short, f.pool, want, f.has); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one row is behind: %v", err)
		}
		cancel()
		select {
		case err := <-waited:
			t.Fatalf("one row is behind, and the wait is over: %v", err)
		default:
		}
	}
	if err := f.Handle(t.Context(), as); err != nil { // one version more than waited for
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if err := f.model.Wait(t.Context(), f.pool, map[es.Stream]int64{{Type: "Other", ID: "x"}: 1}, f.has); err != nil {
		t.Errorf("a stream of another type: %v", err)
	}
}

// What does not come in time is an error that says how much is missing.
func TestWaitGivesUp(t *testing.T) {
	t.Parallel() // it takes as long as a wait may
	f := open(t)
	a, b := newStream(), newStream()
	if err := f.Handle(t.Context(), f.history(t, a, 1, 1)); err != nil {
		t.Fatal(err)
	}
	f.history(t, b, 1, 1) // committed, and on its way
	err := f.model.Wait(t.Context(), f.pool, map[es.Stream]int64{a: 1, b: 1}, f.has)
	var behind *projection.BehindError
	if !errors.As(err, &behind) || behind.Streams != 1 || behind.Table != "account" {
		t.Errorf("got %v", err)
	}
}

// A version that the store has lost never comes: whoever waits for it is told at once.
func TestWaitForALostHistory(t *testing.T) {
	f := open(t)
	s := newStream()
	if err := f.Handle(t.Context(), f.history(t, s, 2, 2)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second) // less than a wait takes
	defer cancel()
	err := f.model.Wait(ctx, f.pool, map[es.Stream]int64{s: 3, {Type: "Other", ID: "x"}: 9}, f.has)
	var gone *es.GoneError
	if !errors.As(err, &gone) || *gone != (es.GoneError{Stream: s, Seen: 3, Head: 2}) {
		t.Errorf("got %v", err)
	}
}

// has asks the store.
func (f *fixture) has(ctx context.Context, versions map[es.Stream]int64) error {
	return es.StillHas(ctx, f.store, versions)
}
