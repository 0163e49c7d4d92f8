package estest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"example.com/billing/pkg/es"
)

// testFollow: subscribers that begin before, within and after what many writers commit see every event behind where they begin, once
// and in order: what a subscriber has passed, nobody commits before. Large commits, which take long, are between small ones.
func testFollow(t *testing.T, s es.Store) {
	const (
		writers, commits = 16, 12
		large            = 150
	)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	total := map[string]int64{}
	for w := range writers {
		total[kinds[w%2]] += commits
		if w%4 < 2 {
			total[kinds[w%2]] += large - 1 // of one of its commits
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	begin := make(chan struct{})
	for w := range writers {
		wg.Go(func() {
			<-begin
			st := newStream()
			st.Type = kinds[w%2]
			for c, v := 0, int64(0); c < commits; c++ {
				n := 1
				if w%4 < 2 && c == w%commits {
					n = large
				}
				if err := s.Append(context.WithoutCancel(ctx), es.Append{Stream: st, Expected: v, Events: events(st, v, n)}); err != nil {
					t.Error(err)
					cancel()
				}
				v += int64(n)
			}
		})
	}
	all := total[kinds[0]] + total[kinds[1]]
	middle := make(chan struct{})
	var halfway sync.Once
	for _, f := range []follower{
		{name: "before", want: all, each: func(e es.Event) {
			if e.Position == all/2 {
				halfway.Do(func() { close(middle) })
			}
		}},
		{name: "before, of a type", kind: kinds[0], want: total[kinds[0]]},
		{name: "within", wait: middle, want: all},
		{name: "within, of a type", wait: middle, kind: kinds[1], want: total[kinds[1]]},
		{name: "within, behind a position", wait: middle, after: all / 3, want: all - all/3},
		{name: "within, behind a position to come", wait: middle, after: all - 5, want: 5},
	} {
		wg.Go(func() { f.follow(ctx, t, s) })
	}
	close(begin)
	wg.Wait()
	for _, f := range []follower{
		{name: "after", want: all},
		{name: "after, of a type", kind: kinds[1], want: total[kinds[1]]},
		{name: "after, behind a position", after: all - 1, want: 1},
	} {
		f.follow(ctx, t, s)
	}
}

// kinds are two aggregate types.
var kinds = [2]string{"Test", "Other"}

// follower is a subscriber that knows how many events it is to see.
type follower struct {
	name  string
	wait  <-chan struct{} // nil = begins at once
	kind  string
	after int64
	want  int64
	each  func(es.Event)
}

func (f follower) follow(ctx context.Context, t *testing.T, s es.Store) {
	if f.wait != nil {
		select {
		case <-f.wait:
		case <-ctx.Done():
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var seen int64
	last, versions := f.after, map[es.Stream]int64{}
	check := func(e es.Event) error {
		before, known := versions[e.Stream]
		switch {
		case f.kind == "" && e.Position != last+1, e.Position <= last:
			return fmt.Errorf("position %d follows %d", e.Position, last)
		case (known || f.after == 0) && e.Version != before+1:
			return fmt.Errorf("%s: version %d follows %d", e.Stream, e.Version, before)
		case f.kind != "" && e.Stream.Type != f.kind:
			return fmt.Errorf("%s is no %s", e.Stream, f.kind)
		}
		last, versions[e.Stream] = e.Position, e.Version
		seen++
		return nil
	}
	for events, err := range es.Subscribe(ctx, s, f.kind, f.after, es.SubscribeOptions{BatchMax: 64, PollInterval: time.Millisecond}) {
		for _, e := range events {
			if err == nil {
				err = check(e)
			}
			if f.each != nil {
				f.each(e)
			}
		}
		if err != nil {
			t.Errorf("a subscriber that begins %s: %v", f.name, err)
			return
		}
		if seen >= f.want {
			cancel() // the end, and no error
		}
	}
	if seen != f.want {
		t.Errorf("a subscriber that begins %s has seen %d events, want %d", f.name, seen, f.want)
	}
}
