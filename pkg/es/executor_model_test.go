package es_test

import (
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"example.com/billing/pkg/batch"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
)

// model is what purses should do: a balance each, and the answers that keys were given.
type model struct {
	balance map[string]int64
	version map[string]int64
	answers map[string]int64 // purse/key → version of the event it stored
}

// do carries out a command and returns what the executor has to say.
func (m *model) do(c es.Command[any]) (refusal, replayed bool, events int) {
	if c.Key != "" {
		if _, used := m.answers[c.StreamID+"/"+c.Key]; used {
			return false, true, 1
		}
	}
	var change int64
	switch b := c.Body.(type) {
	case put:
		change = b.n
	case spend:
		if change = -b.n; b.n > m.balance[c.StreamID] {
			return true, false, 0
		}
	case spendAll:
		if change = -m.balance[c.StreamID]; change == 0 {
			return true, false, 0
		}
	case idle:
		return false, false, 0
	}
	if b, ok := c.Body.(give); ok {
		if change = -b.n; b.n > m.balance[c.StreamID] {
			return true, false, 0
		}
		m.balance[c.OtherID] += b.n
		m.version[c.OtherID]++
	}
	m.balance[c.StreamID] += change
	m.version[c.StreamID]++
	if c.Key != "" {
		m.answers[c.StreamID+"/"+c.Key] = m.version[c.StreamID]
	}
	return false, false, 1
}

// drawPairs is drawGroup with some commands on two purses.
func drawPairs(rt *rapid.T) []es.Command[any] {
	group := drawGroup(rt)
	for i := range group {
		if other := fmt.Sprint("purse-", rapid.IntRange(1, 4).Draw(rt, "other")); other != group[i].StreamID && rapid.Bool().Draw(rt, "pair") {
			group[i].OtherID, group[i].Body = other, give{rapid.Int64Range(1, 20).Draw(rt, "given")}
		}
	}
	return group
}

// drawGroup draws commands on three purses, some with a key that others have too.
func drawGroup(rt *rapid.T) []es.Command[any] {
	body := rapid.OneOf(
		rapid.Map(rapid.Int64Range(1, 20), func(n int64) any { return put{n} }),
		rapid.Map(rapid.Int64Range(1, 40), func(n int64) any { return spend{n} }),
		rapid.Just[any](spendAll{}), rapid.Just[any](idle{}))
	group := make([]es.Command[any], rapid.IntRange(1, 6).Draw(rt, "size"))
	for i := range group {
		key := rapid.SampledFrom([]string{"", "", "k1", "k2", "k3"}).Draw(rt, "key")
		group[i] = command(fmt.Sprint("purse-", rapid.IntRange(1, 3).Draw(rt, "purse")), key, body.Draw(rt, "body"))
		group[i].Creates = rapid.Bool().Draw(rt, "creates")
	}
	return group
}

// Any commands, in any groups, with repeated keys, on executors that come and go and know nothing of each other: the
// outcomes are the model's, and what is stored is what was answered.
func TestExecutorsFollowTheModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := memory.New()
		m := model{balance: map[string]int64{}, version: map[string]int64{}, answers: map[string]int64{}}
		start := func() *executor {
			return newExecutor(t, s, es.ExecutorOptions{CacheBytes: 2500, Batch: batch.Options{BatchMax: 4}})
		}
		executors := []*executor{start(), start()}
		for range rapid.IntRange(1, 15).Draw(rt, "groups") {
			if rapid.IntRange(0, 9).Draw(rt, "restart") == 0 {
				executors[0] = start()
			}
			group := drawPairs(rt)
			results := executors[rapid.IntRange(0, 1).Draw(rt, "executor")].ExecuteAll(t.Context(), group)
			for i, c := range group {
				refusal, replayed, events := m.do(c)
				out, err := results[i].Value, results[i].Err
				if refusal != refused(err, "INSUFFICIENT_FUNDS") || !refusal && (err != nil || replayed != out.Replayed || len(out.Events) != events) {
					rt.Fatalf("%T %+v with key %q: %+v, %v; want refusal %v, replayed %v, %d events", c.Body, c.Body, c.Key, out, err, refusal, replayed, events)
				}
				if v, used := m.answers[c.StreamID+"/"+c.Key]; used && !refusal && out.Events[0].Version != v {
					rt.Fatalf("key %q is answered with version %d, want %d", c.Key, out.Events[0].Version, v)
				}
			}
		}
		for id, want := range m.balance {
			if got := balance(t, s, id); got != want {
				rt.Fatalf("%s holds %d, want %d", id, got, want)
			}
		}
	})
}

// Any commands, while answers are lost at any point: each is answered, and what is stored is what was answered, once.
func TestWhatIsStoredIsWhatWasAnswered(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := &faulty{Store: memory.New()}
		x := newExecutor(t, f, es.ExecutorOptions{Batch: batch.Options{BatchMax: 4}})
		answered := map[string]int64{} // by event
		want := map[string]int64{}     // by purse
		for range rapid.IntRange(1, 3).Draw(rt, "groups") {
			for _, n := range []*atomic.Int64{&f.lostAnswers, &f.lostAppends, &f.lostLookups, &f.lostHeads} {
				n.Store(rapid.SampledFrom([]int64{0, 0, 0, 0, 1}).Draw(rt, "lost"))
			}
			for _, r := range x.ExecuteAll(t.Context(), drawGroup(rt)) {
				if r.Err != nil && !refused(r.Err, "INSUFFICIENT_FUNDS") {
					rt.Fatal(r.Err)
				}
				for _, e := range r.Value.Events {
					var f moved
					if err := json.Unmarshal(e.Data, &f); err != nil {
						rt.Fatal(err)
					}
					if answered[e.ID] == 0 {
						want[e.Stream.ID] += f.Change
					}
					answered[e.ID]++
				}
			}
		}
		stored := 0
		for e, err := range f.ReadAll(t.Context(), "", es.From{}) {
			if err != nil || answered[e.ID] == 0 {
				rt.Fatalf("%s is stored, and nobody was told: %v", e.ID, err)
			}
			stored++
		}
		if stored != len(answered) {
			rt.Fatalf("%d events were answered, %d are stored", len(answered), stored)
		}
		for id, n := range want {
			if got := balance(t, f.Store, id); got != n || got < 0 {
				rt.Fatalf("%s holds %d, the answers add up to %d", id, got, n)
			}
		}
	})
}
