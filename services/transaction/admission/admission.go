// Package admission decides which requests for transactions are taken when more is asked for than can be carried out. To accept
// one costs a fraction of carrying it out: without a limit those accepted would pile up, and wait ever longer.
package admission

import (
	"context"
	"math"
	"sync"
	"time"

	"example.com/billing/pkg/rpc"
)

const (
	// tick is how often the limit is set anew.
	tick = 100 * time.Millisecond
	// windowTicks is how far back settlements count, and windowMin how many of them there have to be: with fewer, nothing is known
	// of a queue. Either nothing is asked for, or something is away, and what is accepted is carried out when it is back.
	windowTicks, windowMin = 10, 10
	// recentTicks is how far back the least latency is looked for.
	recentTicks = 3
	// rateWeight smooths the rate of settlements over about a second.
	rateWeight = 0.1
	// retryMin and retryMax bound what callers are told to wait.
	retryMin, retryMax = time.Second, 30 * time.Second
)

// Controller limits what is admitted by what is settled: it holds the latency, from being asked for to being settled, below a
// target. Each instance of the service limits its own share. It reads no clock: its time is ticks. A nil controller admits
// everything. Safe for concurrent use.
type Controller struct {
	target time.Duration

	mu      sync.Mutex
	ticks   [windowTicks]settled // the newest first; the first is under way
	rate    float64              // settlements a tick, smoothed
	least   time.Duration        // the least latency of late; 0 = not known
	limit   float64              // transactions a tick; infinite = none
	callers callers
	shed    uint64
}

// settled are the settlements of one tick.
type settled struct {
	count int
	least time.Duration
}

// New makes a controller that begins without a limit; nil where the target is 0: nothing is ever shed. The target must be well
// above what a transaction takes when nothing waits: twice that at least.
func New(target time.Duration) *Controller {
	if target <= 0 {
		return nil
	}
	return &Controller{target: target, limit: math.Inf(1), callers: newCallers()}
}

// Run sets the limit anew at every tick until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	if c == nil {
		return nil
	}
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			c.Tick()
		case <-ctx.Done():
			return nil
		}
	}
}

// Settled notes that a transaction was settled this long after it was asked for.
func (c *Controller) Settled(latency time.Duration) {
	if c == nil {
		return
	}
	latency = max(latency, 0) // another instance's clock may be ahead
	c.mu.Lock()
	defer c.mu.Unlock()
	now := &c.ticks[0]
	if now.count == 0 || latency < now.least {
		now.least = latency
	}
	now.count++
}

// Admit admits n transactions of one call, or none: then it returns OVERLOADED, with the time after which it is worth asking again.
// A call of many is admitted whole where a single one would be, and its caller waits until the others have had as much.
func (c *Controller) Admit(who Caller, n int) error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.callers.find(who)
	s.offered += float64(n)
	if math.IsInf(c.limit, 1) {
		return nil
	}
	if s.credit > 0 {
		s.credit -= float64(n)
		return nil
	}
	c.shed += uint64(n) //nolint:gosec // 1 to 1,000
	ticks := 1 - s.credit/c.callers.level
	return rpc.Fail(rpc.ReasonOverloaded, "More is asked for than can be carried out at the moment; nothing of this was accepted. Ask again later, with the same key.").
		After(time.Duration(min(max(ticks*float64(tick), float64(retryMin)), float64(retryMax))))
}

// Tick sets the limit of the next tick, and what each caller may have of it. Run calls it.
func (c *Controller) Tick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rate += rateWeight * (float64(c.ticks[0].count) - c.rate)
	var known bool
	c.least, known = c.observed()
	c.limit = math.Inf(1)
	if known {
		c.limit = c.rate * factor(c.least, c.target)
	}
	copy(c.ticks[1:], c.ticks[:])
	c.ticks[0] = settled{}
	c.callers.next(c.limit)
}

// observed is the least latency of late: of the last ticks, or of as many more as have settlements enough. It shows a queue, in
// which the quickest waits too, and overlooks the slow ones that have reasons of their own.
func (c *Controller) observed() (least time.Duration, known bool) {
	least, count := time.Duration(math.MaxInt64), 0
	for i, t := range c.ticks {
		if t.count > 0 {
			least, count = min(least, t.least), count+t.count
		}
		if i+1 >= recentTicks && count >= windowMin {
			return least, true
		}
	}
	return 0, false
}

// factor is how much of what is settled may be admitted: more than all of it while the queue is short, so that it never runs dry,
// and less the longer it is. Infinite = there is no queue to speak of.
func factor(latency, target time.Duration) float64 {
	x := float64(latency) / float64(target)
	if x < 0.5 {
		return math.Inf(1)
	}
	return max(0.5, 1.1-0.4*(x-0.5)) // 1.1 at half the target, 0.9 at it, 0.5 from twice it on
}

// Stats are what the controller does at the moment.
type Stats struct {
	Shed    uint64        // transactions that were not admitted, since the start
	Limit   float64       // transactions admitted a second; infinite = no limit
	Latency time.Duration // the least of late; 0 = not known, for lack of settlements
}

// Stats reads them.
func (c *Controller) Stats() Stats {
	if c == nil {
		return Stats{Limit: math.Inf(1)}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return Stats{Shed: c.shed, Limit: c.limit * float64(time.Second/tick), Latency: c.least}
}
