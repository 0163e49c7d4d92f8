// Package progress finds background loops that stand still. A loop says that it begins a turn, and that it rests; one whose
// turn lasts for longer than its limit is stuck, whatever it waits for.
package progress

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Loops are the loops of a process. Safe for concurrent use. The zero value has none.
type Loops struct {
	mu  sync.Mutex
	all []*Loop
}

// Loop is one loop.
type Loop struct {
	name  string
	limit time.Duration
	begun atomic.Pointer[time.Time] // of the turn; nil = it rests
}

// Add adds a loop that rests. Each of its turns should end within limit, pauses included.
func (l *Loops) Add(name string, limit time.Duration) *Loop {
	loop := &Loop{name: name, limit: limit}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, loop)
	return loop
}

// StuckError says which loop makes no progress.
type StuckError struct {
	Loop string
	For  time.Duration
}

// Error names the loop and the time.
func (e *StuckError) Error() string {
	return fmt.Sprintf("%s has made no progress for %s", e.Loop, e.For.Round(time.Second))
}

// Stuck returns a *StuckError if a turn lasts for longer than times its loop's limit, or nil.
func (l *Loops) Stuck(times int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, loop := range l.all {
		begun := loop.begun.Load()
		if begun == nil {
			continue
		}
		if d := time.Since(*begun); d > time.Duration(times)*loop.limit {
			return &StuckError{loop.name, d}
		}
	}
	return nil
}

// key finds a context's loop.
type key struct{}

// Run runs a loop until it returns. Beat and Rest find it by the context.
func (l *Loop) Run(ctx context.Context, loop func(ctx context.Context) error) error {
	ctx = context.WithValue(ctx, key{}, l)
	Beat(ctx)
	defer Rest(ctx)
	return loop(ctx)
}

// Beat begins the next turn of the context's loop, if it has one.
func Beat(ctx context.Context) {
	if l, ok := ctx.Value(key{}).(*Loop); ok {
		now := time.Now()
		l.begun.Store(&now)
	}
}

// Rest says that the context's loop waits for something that may never come. It is not stuck until its next Beat.
func Rest(ctx context.Context) {
	if l, ok := ctx.Value(key{}).(*Loop); ok {
		l.begun.Store(nil)
	}
}
