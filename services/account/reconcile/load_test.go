package reconcile_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"example.com/billing/pkg/job"
	"example.com/billing/pkg/projection"
	"example.com/billing/services/account"
)

// While random transfers go on, and the read model is rebuilt again and again, every check is clean.
func TestUnderLoadItStaysClean(t *testing.T) {
	w := newWorld(t)
	bank := w.openAccount(account.External)
	ids := []string{bank}
	for range 12 {
		ids = append(ids, w.openAccount(account.User))
	}
	stop, moved := make(chan struct{}), make(chan struct{})
	running := func() bool {
		select {
		case <-stop:
			return false
		default:
			return true
		}
	}
	end := sync.OnceFunc(func() { close(stop) })
	var busy sync.WaitGroup
	defer busy.Wait()
	defer end()
	for worker := range 6 {
		random := rand.New(rand.NewPCG(uint64(worker), 1))
		busy.Go(func() {
			for running() {
				from, to := bank, ids[1+random.IntN(len(ids)-1)] // the bank gives and takes without a limit: no leg is refused
				if random.IntN(2) == 0 {
					w.transfer(from, to, fmt.Sprintf("%d.%02d", random.IntN(100), 1+random.IntN(99)))
				} else {
					w.transfer(from, from, "1.00")
				}
				select {
				case moved <- struct{}{}:
				default:
				}
			}
		})
	}
	rebuilds := 0
	busy.Go(func() {
		for running() {
			if _, err := w.jobs.Start(context.Background(), "rebuild", w.model.Rebuild(w.store)); err != nil {
				t.Error(err)
				return
			}
			s, err := w.jobs.Wait(context.Background(), "rebuild", 0)
			for err == nil && s.Status == job.Running {
				s, err = w.jobs.Wait(context.Background(), "rebuild", time.Second)
			}
			var d projection.Rebuilt
			if err != nil || s.Status != job.Done || json.Unmarshal(s.Detail, &d) != nil || d.Repaired != 0 {
				t.Errorf("rebuild: %+v, %+v, %v", s, d, err)
				return
			}
			rebuilds++
		}
	})
	var events int32
	for range 12 {
		for range 4 {
			<-moved // at least so many between two checks
		}
		r := w.all()
		w.wantClean(r)
		if r.GetEvents() <= events {
			t.Errorf("%d events after %d", r.GetEvents(), events)
		}
		events = r.GetEvents()
		for _, id := range ids[:3] {
			w.wantClean(w.one(id))
		}
	}
	end()
	busy.Wait()
	w.wantClean(w.all())
	if rebuilds == 0 {
		t.Error("no rebuild came to its end")
	}
}
