package es_test

import (
	"context"
	"errors"
	"iter"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
)

// log is a store whose reads the test watches and breaks.
type log struct {
	*memory.Store
	ends, reads atomic.Int64
	onEnd       func(n int64) error                     // before the n-th look at the end
	onRead      func(n int64, e es.Event) (next *error) // before the n-th ReadAll yields e; what to yield instead, and end with
}

func (l *log) End(ctx context.Context) (int64, error) {
	if n := l.ends.Add(1); l.onEnd != nil {
		if err := l.onEnd(n); err != nil {
			return 0, err
		}
	}
	return l.Store.End(ctx)
}

func (l *log) ReadAll(ctx context.Context, aggregateType string, from es.From) iter.Seq2[es.Event, error] {
	n := l.reads.Add(1)
	return func(yield func(es.Event, error) bool) {
		for e, err := range l.Store.ReadAll(ctx, aggregateType, from) {
			if l.onRead != nil && err == nil {
				if instead := l.onRead(n, e); instead != nil {
					e, err = es.Event{}, *instead
				}
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// write appends n events to a new stream of a type.
func write(t testing.TB, s es.Store, aggregateType string, n int) {
	t.Helper()
	a := es.Append{Stream: es.Stream{Type: aggregateType, ID: uuid.NewString()}}
	for v := range int64(n) {
		a.Events = append(a.Events, es.Event{ID: uuid.NewString(), Type: "Happened", Stream: a.Stream, Version: v + 1, Data: []byte(`{}`)})
	}
	if err := s.Append(context.Background(), a); err != nil {
		t.Fatal(err)
	}
}

// follow subscribes until it has seen position last, and returns the positions by batch.
func follow(t *testing.T, s es.Store, aggregateType string, after, last int64, o es.SubscribeOptions) (batches [][]int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for events, err := range es.Subscribe(ctx, s, aggregateType, after, o) {
		if err != nil {
			t.Fatal(err)
		}
		var batch []int64
		for _, e := range events {
			batch = append(batch, e.Position)
		}
		batches = append(batches, batch)
		if batch[len(batch)-1] >= last {
			return batches
		}
	}
	t.Fatalf("it ended after %v", batches)
	return nil
}

func TestSubscribeYieldsBatches(t *testing.T) {
	s := memory.New()
	write(t, s, "A", 3)
	write(t, s, "B", 2)
	write(t, s, "A", 2)
	for _, tc := range []struct {
		name          string
		aggregateType string
		after, last   int64
		max           int
		want          [][]int64
	}{
		{"all", "", 0, 7, 0, [][]int64{{1, 2, 3, 4, 5, 6, 7}}},
		{"at most so many", "", 0, 7, 3, [][]int64{{1, 2, 3}, {4, 5, 6}, {7}}},
		{"behind a position", "", 4, 7, 2, [][]int64{{5, 6}, {7}}},
		{"of a type", "A", 0, 7, 4, [][]int64{{1, 2, 3, 6}, {7}}},
		{"of a type, behind a position of another", "A", 4, 7, 4, [][]int64{{6, 7}}},
	} {
		got := follow(t, s, tc.aggregateType, tc.after, tc.last, es.SubscribeOptions{BatchMax: tc.max})
		if !slices.EqualFunc(got, tc.want, slices.Equal) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// A consumer that stops within what is there, and subscribes again behind what it has handled, misses nothing.
func TestSubscribeResumes(t *testing.T) {
	s := memory.New()
	write(t, s, "A", 10)
	var got []int64
	for after := int64(0); after < 10; after = got[len(got)-1] {
		got = append(got, follow(t, s, "", after, after+1, es.SubscribeOptions{BatchMax: 3})[0]...)
	}
	if !slices.Equal(got, []int64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}) {
		t.Errorf("positions %v", got)
	}
}

// A hint wakes a subscriber that would look in an hour; a channel of hints that is closed is no hint.
func TestSubscribeWaits(t *testing.T) {
	for _, tc := range []struct {
		name string
		poll time.Duration
		hint func(chan struct{})
	}{
		{"for a hint", time.Hour, func(c chan struct{}) { c <- struct{}{} }},
		{"for its next look", time.Millisecond, func(chan struct{}) {}},
		{"for its next look once there are no hints any more", 10 * time.Millisecond, func(c chan struct{}) { close(c) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, wake := &log{Store: memory.New()}, make(chan struct{}, 1)
			looked := make(chan struct{}, 1)
			s.onEnd = func(int64) error {
				select {
				case looked <- struct{}{}:
				default:
				}
				return nil
			}
			go func() {
				<-looked // and found nothing
				write(t, s, "A", 1)
				tc.hint(wake)
			}()
			follow(t, s, "", 0, 1, es.SubscribeOptions{PollInterval: tc.poll, Wake: wake})
		})
	}
}

// The end of the context is the end, and no error: while it waits, while it reads, and before it begins.
func TestSubscribeEndsWithItsContext(t *testing.T) {
	for name, at := range map[string]func(s *log, cancel func()){
		"before it begins": func(_ *log, cancel func()) { cancel() },
		"when it looks":    func(s *log, cancel func()) { s.onEnd = func(int64) error { cancel(); return nil } },
		"when it reads":    func(s *log, cancel func()) { s.onRead = func(int64, es.Event) *error { cancel(); return nil } },
		"when it waits": func(s *log, cancel func()) {
			s.onEnd = func(n int64) error {
				if n > 1 {
					cancel()
				}
				return nil
			}
		},
		"when an error is temporary": func(s *log, cancel func()) { s.onEnd = func(int64) error { cancel(); return unavailable("look") } },
		"when an error is not":       func(s *log, cancel func()) { s.onEnd = func(int64) error { cancel(); return errCut } },
	} {
		t.Run(name, func(t *testing.T) {
			s := &log{Store: memory.New()}
			write(t, s, "A", 2)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			at(s, cancel)
			for _, err := range es.Subscribe(ctx, s, "", 0, es.SubscribeOptions{PollInterval: time.Microsecond}) {
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// Temporary errors are reported and tried again; nothing is yielded twice, nothing is left out.
func TestSubscribeTriesAgain(t *testing.T) {
	s := &log{Store: memory.New()}
	write(t, s, "A", 6)
	broken := unavailable("read")
	s.onEnd = func(n int64) error {
		if n == 1 {
			return unavailable("look")
		}
		return nil
	}
	s.onRead = func(n int64, e es.Event) *error {
		if n == 1 && e.Position == 4 || n == 2 && e.Position == 5 || n == 3 {
			return &broken
		}
		return nil
	}
	var reported int
	got := follow(t, s, "", 0, 6, es.SubscribeOptions{BatchMax: 2, RetryMax: time.Microsecond, OnRetry: func(err error, _ time.Duration) {
		if !errors.Is(err, errCut) {
			t.Error(err)
		}
		reported++
	}})
	want := [][]int64{{1, 2}, {3}, {4}, {5, 6}}
	if !slices.EqualFunc(got, want, slices.Equal) || reported != 4 {
		t.Errorf("%v, want %v; %d errors, want 4", got, want, reported)
	}
}

// Any other error is yielded once, behind what was read before it, and is the end; so is a gap.
func TestSubscribeEndsWithAnError(t *testing.T) {
	for name, tc := range map[string]struct {
		s    es.Store
		want string
	}{
		"of the store": {&log{Store: memory.New(), onRead: func(_ int64, e es.Event) *error {
			if err := errCut; e.Position == 2 {
				return &err
			}
			return nil
		}}, errCut.Error()},
		"of a gap": {&gap{memory.New()}, "subscribe: position 3 follows 1"},
	} {
		t.Run(name, func(t *testing.T) {
			write(t, tc.s, "A", 3)
			var events, errs int
			for batch, err := range es.Subscribe(t.Context(), tc.s, "", 0, es.SubscribeOptions{}) {
				if err != nil {
					errs++
					if err.Error() != tc.want || batch != nil {
						t.Errorf("%v with %d events, want %q", err, len(batch), tc.want)
					}
				}
				events += len(batch)
			}
			if events != 1 || errs != 1 {
				t.Errorf("%d events and %d errors, want one of each", events, errs)
			}
		})
	}
}

// gap is a store that leaves out position 2, and does not know its end.
type gap struct{ es.Store }

func (g *gap) ReadAll(ctx context.Context, aggregateType string, from es.From) iter.Seq2[es.Event, error] {
	return func(yield func(es.Event, error) bool) {
		for e, err := range g.Store.ReadAll(ctx, aggregateType, from) {
			if e.Position != 2 && !yield(e, err) {
				return
			}
		}
	}
}

// A type that nothing happens to is not looked for in the same events again.
func TestSubscribeReadsWhatIsNewOnce(t *testing.T) {
	s := &log{Store: memory.New()}
	write(t, s, "A", 5)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.onEnd = func(n int64) error {
		if n == 10 {
			cancel()
		}
		return nil
	}
	for events, err := range es.Subscribe(ctx, s, "B", 0, es.SubscribeOptions{PollInterval: time.Microsecond}) {
		t.Errorf("%v, %v", events, err)
	}
	if n := s.reads.Load(); n != 1 {
		t.Errorf("%d reads, want 1", n)
	}
}
