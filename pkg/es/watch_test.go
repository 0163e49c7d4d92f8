package es_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
)

// A watcher that is cut off again and again, and resumes with the last version it saw, sees every event once and in order;
// half of the commits are told to its hub, half are another process's.
func TestWatchResumes(t *testing.T) {
	const total = 200
	var (
		hub   es.Hub
		store = memory.New()
		st    = es.Stream{Type: "Test", ID: uuid.NewString()}
		wg    sync.WaitGroup
	)
	wg.Go(func() {
		for v := int64(1); v <= total; v++ {
			e := es.Event{ID: uuid.NewString(), Type: "Happened", Stream: st, Version: v, Data: []byte(fmt.Sprintf(`{"n":%d}`, v))}
			if err := store.Append(context.Background(), es.Append{Stream: st, Expected: v - 1, Events: []es.Event{e}}); err != nil {
				t.Error(err)
				return
			}
			if v%2 == 0 {
				hub.Notify([]es.Event{e})
			}
		}
	})
	var seen int64
	for cut := int64(1); seen < total; cut++ {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		n := int64(0)
		for e, err := range hub.Watch(ctx, store, st, seen) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Version != seen+1 {
				t.Fatalf("version %d follows %d", e.Version, seen)
			}
			seen = e.Version
			if n++; n == cut%17+1 || seen == total {
				break
			}
		}
		if ctx.Err() != nil {
			t.Fatalf("nothing follows version %d", seen)
		}
		cancel()
	}
	wg.Wait()
}

// losing is a store that loses the end of its streams.
type losing struct {
	*memory.Store
	mu   sync.Mutex
	left int64 // versions of a stream; 0 = all
}

func (l *losing) Heads(ctx context.Context, streams []es.Stream) ([]es.Head, error) {
	heads, err := l.Store.Heads(ctx, streams)
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range heads {
		if l.left > 0 {
			heads[i].Version = min(heads[i].Version, l.left)
		}
	}
	return heads, err
}

// A watcher that has seen more than the store has does not stand still for ever: it is told, at once where it resumes there,
// and soon where the store loses it meanwhile.
func TestWatchOfALostHistoryEnds(t *testing.T) {
	var hub es.Hub
	store, st := &losing{Store: memory.New()}, es.Stream{Type: "Test", ID: uuid.NewString()}
	for v := int64(1); v <= 3; v++ {
		e := es.Event{ID: uuid.NewString(), Type: "Happened", Stream: st, Version: v, Data: []byte(`{}`)}
		if err := store.Append(t.Context(), es.Append{Stream: st, Expected: v - 1, Events: []es.Event{e}}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ends := func(after, head int64) {
		t.Helper()
		for e, err := range hub.Watch(ctx, store, st, after) {
			if err == nil {
				if e.Version == 3 {
					store.mu.Lock()
					store.left = 2
					store.mu.Unlock()
				}
				continue
			}
			var gone *es.GoneError
			if !errors.As(err, &gone) || gone.Stream != st || gone.Head != head {
				t.Errorf("got %v", err)
			}
		}
		if ctx.Err() != nil {
			t.Fatal("the watch stands still")
		}
	}
	ends(7, 3)
	ends(0, 2)
}
