package es_test

import (
	"context"
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
