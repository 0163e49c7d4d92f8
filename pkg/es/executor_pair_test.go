package es_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"example.com/billing/pkg/batch"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
)

// pair is a command on two purses.
func pair(own, other, key string, c any) es.Command[any] {
	cmd := command(own, key, c)
	cmd.OtherID = other
	return cmd
}

func TestACommandOnTwoStreamsHappensOnBothOrNeither(t *testing.T) {
	eachStore(t, func(t *testing.T, s es.Store) {
		x, a, b := newExecutor(t, s, es.ExecutorOptions{}), uuid.NewString(), uuid.NewString()
		must(t, x, a, "", put{100})
		out, err := x.Execute(t.Context(), pair(a, b, "k", give{30}))
		if err != nil || out.State.Balance != 70 || len(out.Events) != 1 || out.Events[0].Stream.ID != a {
			t.Fatalf("%+v, %v", out, err)
		}
		again, err := x.Execute(t.Context(), pair(a, b, "k", give{30}))
		if err != nil || !again.Replayed || again.Events[0].ID != out.Events[0].ID {
			t.Errorf("a repeat: %+v, %v", again, err)
		}
		if _, err := x.Execute(t.Context(), pair(a, b, "", give{71})); !refused(err, "INSUFFICIENT_FUNDS") {
			t.Errorf("too much: %v", err)
		}
		if out, err := x.Execute(t.Context(), pair(a, b, "", idle{})); err != nil || len(out.Events) != 0 {
			t.Errorf("nothing to do: %+v, %v", out, err)
		}
		for _, bad := range []any{explode{}, bomb{}, lost{}} { // in the same group as one that is fine
			results := x.ExecuteAll(t.Context(), []es.Command[any]{pair(a, b, "", bad), pair(b, a, "", give{1}), command(a, "", spend{1})})
			if results[0].Err == nil || results[1].Err != nil || results[2].Err != nil {
				t.Errorf("%T: %v", bad, results)
			}
		}
		if x, y := balance(t, s, a), balance(t, s, b); x != 70 || y != 27 {
			t.Errorf("the purses hold %d and %d, want 70 and 27", x, y)
		}
	})
}

// Many givers around a ring, on two executors that know nothing of each other: what there is stays the same.
func TestPairsConserve(t *testing.T) {
	eachStore(t, func(t *testing.T, s es.Store) {
		const purses, each = 5, 12
		executors := []*executor{newExecutor(t, s, es.ExecutorOptions{}), newExecutor(t, s, es.ExecutorOptions{Batch: batch.Options{BatchMax: 3}})}
		ids := make([]string, purses)
		for i := range ids {
			ids[i] = uuid.NewString()
			must(t, executors[0], ids[i], "", put{50})
		}
		var wg sync.WaitGroup
		for i := range purses * 2 {
			wg.Go(func() {
				for n := range each {
					c := pair(ids[i%purses], ids[(i+1+n)%purses], fmt.Sprint(i, n), give{int64(n)})
					if c.StreamID == c.OtherID {
						continue
					}
					if _, err := executors[i%2].Execute(t.Context(), c); err != nil && !refused(err, "INSUFFICIENT_FUNDS") {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		var sum int64
		for _, id := range ids {
			n := balance(t, s, id)
			if n < 0 {
				t.Errorf("a purse holds %d", n)
			}
			sum += n
		}
		if sum != purses*50 {
			t.Errorf("the purses hold %d, want %d", sum, purses*50)
		}
	})
}

// Pairs while answers are lost at any point: nothing is given twice, and nothing by halves.
func TestPairsAreNotDoneTwice(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := &faulty{Store: memory.New()}
		x := newExecutor(t, f, es.ExecutorOptions{Batch: batch.Options{BatchMax: 4}})
		must(t, x, "purse-1", "", put{1000})
		given := map[string]int64{} // by key
		for range rapid.IntRange(1, 4).Draw(rt, "groups") {
			f.lostAnswers.Store(rapid.SampledFrom([]int64{0, 1, 1}).Draw(rt, "lost answers"))
			f.lostAppends.Store(rapid.SampledFrom([]int64{0, 0, 1}).Draw(rt, "lost appends"))
			f.lostLookups.Store(rapid.SampledFrom([]int64{0, 0, 1}).Draw(rt, "lost look-ups"))
			group := make([]es.Command[any], rapid.IntRange(1, 5).Draw(rt, "size"))
			for i := range group {
				n := rapid.Int64Range(1, 9).Draw(rt, "key")
				group[i] = pair("purse-1", fmt.Sprint("purse-", 2+n%3), fmt.Sprint("k", n), give{n})
				given[group[i].Key] = n
			}
			for i, r := range x.ExecuteAll(t.Context(), group) {
				if r.Err != nil || len(r.Value.Events) != 1 {
					rt.Fatalf("%s: %+v, %v", group[i].Key, r.Value, r.Err)
				}
			}
		}
		var sum int64
		for _, n := range given {
			sum += n
		}
		if got := balance(t, f.Store, "purse-1"); got != 1000-sum {
			rt.Fatalf("the giver holds %d, want %d", got, 1000-sum)
		}
		if got := balance(t, f.Store, "purse-2") + balance(t, f.Store, "purse-3") + balance(t, f.Store, "purse-4"); got != sum {
			rt.Fatalf("the others hold %d, want %d", got, sum)
		}
	})
}
