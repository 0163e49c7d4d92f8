package progress_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"example.com/billing/pkg/progress"
)

func TestALoopIsStuckWhenATurnTakesTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var loops progress.Loops
		idle := loops.Add("idle", time.Second)
		_ = idle // it has not begun
		next, done := make(chan func(context.Context)), make(chan struct{})
		go func() {
			defer close(done)
			_ = loops.Add("relay", time.Minute).Run(t.Context(), func(ctx context.Context) error {
				for f := range next {
					f(ctx)
				}
				return nil
			})
		}()
		for _, step := range []struct {
			f        func(context.Context)
			wait     time.Duration
			ready    bool
			stillOne bool // with five times the limit
		}{
			{progress.Beat, 59 * time.Second, true, true},
			{progress.Beat, 59 * time.Second, true, true},
			{progress.Beat, 61 * time.Second, false, true},
			{func(context.Context) {}, 5 * time.Minute, false, false},
			{progress.Beat, time.Second, true, true},
			{progress.Rest, time.Hour, true, true},
		} {
			next <- step.f
			time.Sleep(step.wait) // on the bubble's clock
			err := loops.Stuck(1)
			var stuck *progress.StuckError
			if (err == nil) != step.ready || err != nil && (!errors.As(err, &stuck) || stuck.Loop != "relay") {
				t.Errorf("after %s: %v", step.wait, err)
			}
			if err := loops.Stuck(5); (err == nil) != step.stillOne {
				t.Errorf("after %s, five times: %v", step.wait, err)
			}
		}
		next <- progress.Beat
		close(next)
		<-done
		time.Sleep(time.Hour)
		if err := loops.Stuck(1); err != nil {
			t.Errorf("a loop that has ended: %v", err)
		}
	})
}

// A function that is used without a loop says nothing to anybody.
func TestBeatWithoutALoop(t *testing.T) {
	progress.Beat(t.Context())
	progress.Rest(t.Context())
}
