package es_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/google/uuid"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
)

// reading is a store that counts reads of heads. Where hold is set the answers wait for it, once they were read.
type reading struct {
	es.Store
	heads, streams atomic.Int64
	hold           chan struct{}
}

func (r *reading) Heads(ctx context.Context, s []es.Stream) ([]es.Head, error) {
	r.heads.Add(1)
	r.streams.Add(int64(len(s)))
	heads, err := r.Store.Heads(ctx, s)
	if r.hold != nil {
		<-r.hold
	}
	return heads, err
}

// Recall knows what commits of its executor led to, and asks nobody; it knows nothing of what others did.
func TestRecallIsWhatThisProcessKnows(t *testing.T) {
	eachStore(t, func(t *testing.T, s es.Store) {
		store := &reading{Store: s}
		x, other, id := newExecutor(t, store, es.ExecutorOptions{}), newExecutor(t, s, es.ExecutorOptions{}), uuid.NewString()
		if out, ok := x.Recall(id); ok || out.Version != 0 || out.State != (purse{}) {
			t.Errorf("an unknown stream: %+v, %v", out, ok)
		}
		must(t, x, id, "", put{10})
		must(t, x, id, "", spend{3})
		before := store.heads.Load()
		if out, ok := x.Recall(id); !ok || out.Version != 2 || out.State.Balance != 7 {
			t.Errorf("%+v, %v", out, ok)
		}
		if _, ok := other.Recall(id); ok {
			t.Error("the other one knows a stream that it had nothing to do with")
		}
		must(t, other, id, "", put{1})
		if out, ok := x.Recall(id); !ok || out.Version != 2 {
			t.Errorf("%+v, %v", out, ok)
		}
		if n := store.heads.Load() - before; n != 0 {
			t.Errorf("%d reads", n)
		}
		if out, err := x.Get(t.Context(), id); err != nil || out.Version != 3 || out.State.Balance != 8 {
			t.Errorf("read: %+v, %v", out, err)
		}
	})
}

// Notify is told of all events of a commit, and of nothing else, once Recall knows them.
func TestNotifyComesAfterRecallKnows(t *testing.T) {
	eachStore(t, func(t *testing.T, s es.Store) {
		var (
			x    *executor
			mu   sync.Mutex
			told = map[string]int64{} // version by stream
		)
		x = newExecutor(t, s, es.ExecutorOptions{Notify: func(events []es.Event) {
			mu.Lock()
			defer mu.Unlock()
			for _, e := range events {
				if out, ok := x.Recall(e.Stream.ID); !ok || out.Version < e.Version {
					t.Errorf("told of version %d of %s, known is %d", e.Version, e.Stream, out.Version)
				}
				if e.Version != told[e.Stream.ID]+1 {
					t.Errorf("%s: told of version %d after %d", e.Stream, e.Version, told[e.Stream.ID])
				}
				told[e.Stream.ID] = e.Version
			}
		}})
		ids := []string{uuid.NewString(), uuid.NewString(), uuid.NewString()}
		results := atOnce(t, 60, same(x), func(i int) es.Command[any] { return command(ids[i%3], "", put{1}) })
		if stored, _, _ := counted(t, results); stored != 60 {
			t.Fatalf("%d stored", stored)
		}
		if _, err := x.Execute(t.Context(), command(ids[0], "", spend{100})); !refused(err, "INSUFFICIENT_FUNDS") {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, id := range ids {
			if told[id] != 20 {
				t.Errorf("told of %d of 20 events", told[id])
			}
		}
	})
}

// What others have gone on from is forgotten, and nothing else; the next command is decided at once on what is stored.
func TestForget(t *testing.T) {
	eachStore(t, func(t *testing.T, s es.Store) {
		x, other := newExecutor(t, s, es.ExecutorOptions{}), newExecutor(t, s, es.ExecutorOptions{})
		if x.Used() {
			t.Error("used before the first command")
		}
		theirs, mine, unknown := uuid.NewString(), uuid.NewString(), uuid.NewString()
		must(t, x, theirs, "", put{10})
		must(t, x, mine, "", put{10})
		must(t, other, theirs, "", put{5})
		if !x.Used() || x.Used() {
			t.Error("it was used, and not since")
		}
		event := func(id string, version int64) es.Event {
			return es.Event{Stream: es.Stream{Type: "Purse", ID: id}, Version: version}
		}
		x.Forget([]es.Event{event(theirs, 1), event(theirs, 2), event(mine, 1), event(unknown, 1)})
		if _, ok := x.Recall(theirs); ok {
			t.Error("an older version is still known")
		}
		if out, ok := x.Recall(mine); !ok || out.Version != 1 {
			t.Errorf("its own commit is forgotten: %+v, %v", out, ok)
		}
		if out, err := x.Execute(t.Context(), command(theirs, "", spend{15})); err != nil || out.State.Balance != 0 {
			t.Errorf("%+v, %v", out, err)
		}
	})
}

// Many who read at the same time share reads of the store, of the same streams and of others.
func TestGetSharesReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &reading{Store: memory.New()}
		x := newExecutor(t, store, es.ExecutorOptions{})
		ids := []string{uuid.NewString(), uuid.NewString(), uuid.NewString()}
		for i, id := range ids {
			must(t, x, id, "", put{int64(i + 1)})
		}
		store.hold = make(chan struct{})
		before := store.heads.Load()
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				if out, err := x.Get(t.Context(), ids[i%3]); err != nil || out.State.Balance != int64(i%3+1) {
					t.Errorf("%+v, %v", out, err)
				}
			})
			synctest.Wait()
		}
		if n := store.heads.Load() - before; n != 2 {
			t.Errorf("%d reads under way", n)
		}
		close(store.hold)
		wg.Wait()
		if n := store.heads.Load() - before; n != 3 {
			t.Errorf("%d reads for 50 callers", n)
		}
		if err := x.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := x.Get(context.Background(), ids[0]); err == nil {
			t.Error("a closed executor reads")
		}
	})
}

// A Get that begins after an append has ended sees it, whatever reads were under way.
func TestASharedReadIsNotStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plain := memory.New()
		store := &reading{Store: plain}
		x, other, id := newExecutor(t, store, es.ExecutorOptions{}), newExecutor(t, plain, es.ExecutorOptions{}), uuid.NewString()
		must(t, x, id, "", put{1})
		store.hold = make(chan struct{})
		var wg sync.WaitGroup
		get := func(atLeast int64) {
			wg.Go(func() {
				if out, err := x.Get(t.Context(), id); err != nil || out.Version < atLeast {
					t.Errorf("version %d (%v), want %d", out.Version, err, atLeast)
				}
			})
			synctest.Wait()
		}
		for version := int64(1); version <= 5; version++ {
			get(version)
			get(version)
			must(t, other, id, "", put{1})
		}
		get(6)
		close(store.hold)
		wg.Wait()
		for _, x := range []*executor{x, other} {
			if err := x.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
}

// Executors and readers at the same time: nobody sees less than was answered before.
func TestGetSeesWhatWasAnswered(t *testing.T) {
	eachStore(t, func(t *testing.T, s es.Store) {
		a, b, id := newExecutor(t, s, es.ExecutorOptions{}), newExecutor(t, s, es.ExecutorOptions{}), uuid.NewString()
		var answered atomic.Int64
		var writers, readers sync.WaitGroup
		writers.Go(func() {
			for range 50 {
				out, err := b.Execute(t.Context(), command(id, "", put{1}))
				if err != nil {
					t.Error(err)
				}
				answered.Store(out.Version)
			}
		})
		ended := make(chan struct{})
		for range 8 {
			readers.Go(func() {
				for {
					select {
					case <-ended:
						return
					default:
					}
					least := answered.Load()
					if out, err := a.Get(t.Context(), id); err != nil || out.Version < least {
						t.Errorf("version %d (%v), %d was answered before", out.Version, err, least)
						return
					}
				}
			})
		}
		writers.Wait()
		close(ended)
		readers.Wait()
	})
}
