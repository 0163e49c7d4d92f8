package es_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/uuid"

	"example.com/billing/pkg/batch"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
)

// loading is a store that counts calls of LoadEach, and lets a test change what they answer.
type loading struct {
	es.Store
	calls, most int // most = events of the largest answer
	change      func(call int, spans []es.Span, loaded []batch.Result[[]es.Event]) error
}

func (l *loading) Load(context.Context, es.Stream, int64, int) ([]es.Event, error) {
	return nil, errors.New("a single stream was loaded")
}

func (l *loading) LoadEach(ctx context.Context, spans []es.Span) ([]batch.Result[[]es.Event], error) {
	loaded, err := l.Store.LoadEach(ctx, spans)
	l.calls++
	n := 0
	for _, r := range loaded {
		n += len(r.Value)
	}
	l.most = max(l.most, n)
	if err == nil && l.change != nil {
		err = l.change(l.calls, spans, loaded)
	}
	return loaded, err
}

// folding is an executor without snapshots on such a store, and purses in it that hold as much as they have events.
func folding(t *testing.T, l *loading, events ...int) (*executor, []string) {
	t.Helper()
	l.Store = memory.New()
	ids := make([]string, len(events))
	for i, n := range events {
		ids[i] = uuid.NewString()
		a := es.Append{Stream: es.Stream{Type: "Purse", ID: ids[i]}}
		for v := range n {
			a.Events = append(a.Events, es.Event{
				ID: uuid.NewString(), Type: "Moved", Stream: a.Stream, Version: int64(v + 1), At: noon,
				Data: json.RawMessage(`{"change":1}`),
			})
		}
		if err := l.Append(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	x, err := es.NewExecutor(purses(false), l, es.ExecutorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return x, ids
}

// A group with very many events is loaded in pages: memory stays bounded, and every aggregate is whole.
func TestManyEventsAreLoadedInPages(t *testing.T) {
	const pageMax = 4096
	l := &loading{}
	x, ids := folding(t, l, 1, 5000, 0, 4000, 2)
	got, err := x.GetAll(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []int64{1, 5000, 0, 4000, 2} {
		if got[i].Version != want || got[i].State.Balance != want {
			t.Errorf("purse %d: %+v, want version and balance %d", i, got[i], want)
		}
	}
	if l.calls != 3 || l.most > pageMax {
		t.Errorf("%d calls of at most %d events, want 3 of at most %d", l.calls, l.most, pageMax)
	}
}

// A store that cannot read one stream fails the commands on that stream only.
func TestAStreamThatCannotBeLoadedFailsAlone(t *testing.T) {
	errBroken := errors.New("the page is broken")
	l := &loading{}
	x, ids := folding(t, l, 3, 3)
	l.change = func(_ int, spans []es.Span, loaded []batch.Result[[]es.Event]) error {
		for i, s := range spans {
			if s.Stream.ID == ids[0] {
				loaded[i] = batch.Result[[]es.Event]{Err: errBroken}
			}
		}
		return nil
	}
	both := []es.Command[any]{command(ids[0], "", put{1}), command(ids[1], "", put{1})}
	results := x.ExecuteAll(t.Context(), both)
	if !errors.Is(results[0].Err, errBroken) || results[1].Err != nil || results[1].Value.State.Balance != 4 {
		t.Errorf("%+v", results)
	}
}

// A store that does not answer a load, or whose stream ends earlier than its head said, is asked again.
func TestALoadIsAskedForAgain(t *testing.T) {
	for name, change := range map[string]func([]batch.Result[[]es.Event]) error{
		"no answer":        func([]batch.Result[[]es.Event]) error { return unavailable("load") },
		"an event lacking": func(l []batch.Result[[]es.Event]) error { l[0].Value = l[0].Value[:2]; return nil },
		"all lacking":      func(l []batch.Result[[]es.Event]) error { l[0].Value = nil; return nil },
	} {
		t.Run(name, func(t *testing.T) {
			l := &loading{}
			x, ids := folding(t, l, 3, 3)
			l.change = func(call int, _ []es.Span, loaded []batch.Result[[]es.Event]) error {
				if call > 2 {
					return nil
				}
				return change(loaded)
			}
			if _, err := x.Get(t.Context(), ids[0]); err == nil {
				t.Error("a state that is not the present one was read without an error")
			}
			both := []es.Command[any]{command(ids[0], "", put{1}), command(ids[1], "", put{1})}
			for i, r := range x.ExecuteAll(t.Context(), both) {
				if r.Err != nil || r.Value.State.Balance != 4 {
					t.Errorf("command %d: %+v", i, r)
				}
			}
		})
	}
}
