package postgres

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"example.com/billing/pkg/es"
)

// What other processes commit is seen, and what this one commits is not while no other does.
func TestOthersCommitsAreSeen(t *testing.T) {
	pool := newPool(t)
	mine, others := New(pool, Options{}), New(pool, Options{})
	for _, tc := range []struct {
		what string
		by   []*Store
		want []int64
	}{
		{"before it first looks", []*Store{others}, []int64{1, 2}},
		{"nothing", nil, nil},
		{"its own", []*Store{mine, mine}, nil},
		{"another's", []*Store{others}, []int64{7, 8}},
		{"another's between its own", []*Store{mine, others, mine}, []int64{11, 12, 13, 14}},
		{"its own again", []*Store{mine}, nil},
	} {
		for _, s := range tc.by {
			commit(t, s, 2, 0)
		}
		events, err := mine.lookElsewhere(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []int64
		for _, e := range events {
			got = append(got, e.Position)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: sees positions %v, want %v", tc.what, got, tc.want)
		}
	}
	for range elsewhereMax/50 + 1 {
		commit(t, others, 50, 0)
	}
	if events, err := mine.lookElsewhere(t.Context()); err != nil || len(events) != elsewhereMax {
		t.Errorf("of very many it sees %d (%v)", len(events), err)
	}
}

// While somebody waits, others' commits are told of, those of shortly before too.
func TestOthersCommitsAreToldOf(t *testing.T) {
	pool := newPool(t)
	mine, others := New(pool, Options{}), New(pool, Options{})
	commit(t, others, 1, 0)
	ctx, stop := context.WithCancel(t.Context())
	told, wanted, ended := make(chan es.Event, 10), make(chan bool), make(chan error, 1)
	go func() {
		ended <- mine.TellOfOthers(ctx, slog.New(slog.DiscardHandler), func() bool {
			select {
			case w := <-wanted:
				return w
			case <-ctx.Done():
				return false
			}
		}, func(events []es.Event) {
			for _, e := range events {
				told <- e
			}
		})
	}()
	next := func(want int64) {
		t.Helper()
		select {
		case e := <-told:
			if e.Position != want || e.Stream.Type != "Test" || e.Stream.ID == "" || e.Version < 1 {
				t.Errorf("told of %+v, want position %d", e, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("told of nothing")
		}
	}
	wanted <- false
	wanted <- true
	next(1)
	commit(t, others, 2, 0)
	wanted <- true
	next(2)
	next(3)
	stop()
	if err := <-ended; err != nil || len(told) > 0 {
		t.Errorf("%d more (%v)", len(told), err)
	}
}
