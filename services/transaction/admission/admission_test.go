package admission

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"example.com/billing/pkg/rpc"
)

const target = time.Second

var ann, bob = Caller{"default", "ann"}, Caller{"default", "bob"}

// simulation is a controller in front of one server that settles what was admitted in its order, in steps of a millisecond.
type simulation struct {
	*Controller
	capacity float64       // settled a second
	least    time.Duration // a transaction takes this long where nothing waits
	offered  map[Caller]float64
	draw     *rand.Rand

	now     time.Duration
	queue   []time.Duration // when those admitted and not settled were asked for
	served  float64         // of a transaction, that the server has ahead
	settled int
	longest time.Duration // latency
	shed    map[Caller]int
}

func simulate(capacity float64) *simulation {
	return &simulation{
		Controller: New(target), capacity: capacity, least: 100 * time.Millisecond, offered: map[Caller]float64{},
		draw: rand.New(rand.NewPCG(1, 2)), shed: map[Caller]int{},
	}
}

// run goes on for a time, and tells of that time only.
func (s *simulation) run(d time.Duration) *simulation {
	s.settled, s.longest, s.shed = 0, 0, map[Caller]int{}
	for end := s.now + d; s.now < end; {
		s.now += time.Millisecond
		for _, who := range []Caller{ann, bob} {
			for range arrivals(s.draw, s.offered[who]/1000) {
				if s.Admit(who, 1) == nil {
					s.queue = append(s.queue, s.now)
				} else {
					s.shed[who]++
				}
			}
		}
		s.serve()
		if s.now%tick == 0 {
			s.Tick()
		}
	}
	return s
}

func (s *simulation) serve() {
	s.served = min(s.served, 1) + s.capacity/1000 // what the server did not use is gone
	for s.served >= 1 && len(s.queue) > 0 && s.queue[0]+s.least <= s.now {
		latency := s.now - s.queue[0]
		s.queue, s.served = s.queue[1:], s.served-1
		s.Settled(latency)
		s.settled++
		s.longest = max(s.longest, latency)
	}
}

// arrivals is drawn from Poisson's distribution.
func arrivals(draw *rand.Rand, mean float64) int {
	n := 0
	for p := draw.Float64(); p > math.Exp(-mean); p *= draw.Float64() {
		n++
	}
	return n
}

func (s *simulation) perSecond(d time.Duration) float64 { return float64(s.settled) / d.Seconds() }

func TestThreeTimesTheCapacity(t *testing.T) {
	for _, capacity := range []float64{50, 700, 2000} {
		t.Run(fmt.Sprint(capacity), func(t *testing.T) {
			s := simulate(capacity)
			s.offered[ann] = 3 * capacity
			s.run(30 * time.Second)
			if s.longest >= 3*target {
				t.Errorf("from idle: latencies up to %v", s.longest)
			}
			s.run(30 * time.Second)
			if rate := s.perSecond(30 * time.Second); s.longest >= 2*target || rate < 0.95*capacity {
				t.Errorf("steady: %.0f settled a second, latencies up to %v", rate, s.longest)
			}
			s.capacity /= 2
			s.run(10 * time.Second)
			if rate := s.perSecond(10 * time.Second); s.longest >= 3*target || rate < 0.9*s.capacity {
				t.Errorf("half the capacity: %.0f settled a second, latencies up to %v", rate, s.longest)
			}
			s.capacity *= 2
			s.offered[ann] = 0.5 * capacity
			s.run(10 * time.Second)
			s.run(10 * time.Second)
			if rate := s.perSecond(10 * time.Second); s.shed[ann] > 0 || s.longest >= target/2 || rate < 0.45*capacity {
				t.Errorf("afterwards: %d shed, %.0f settled a second, latencies up to %v", s.shed[ann], rate, s.longest)
			}
		})
	}
}

func TestNothingIsShedBelowTheCapacity(t *testing.T) {
	s := simulate(700)
	s.offered[ann], s.offered[bob] = 500, 100
	if s.run(time.Minute); s.shed[ann]+s.shed[bob] > 0 || s.perSecond(time.Minute) < 570 {
		t.Errorf("%v shed, %.0f settled a second", s.shed, s.perSecond(time.Minute))
	}
}

// While nothing is settled everything is accepted. What was accepted is carried out when settlements come again, and so does the
// limit, at once.
func TestAnOutageAdmitsAll(t *testing.T) {
	const capacity = 500.0
	s := simulate(capacity)
	s.offered[ann] = 3 * capacity
	s.run(10 * time.Second)
	s.capacity = 0
	s.run(windowTicks * tick) // the last that is known
	s.run(10 * time.Second)
	if s.shed[ann] > 0 {
		t.Errorf("%d shed while nothing is settled", s.shed[ann])
	}
	backlog := len(s.queue)
	s.capacity = capacity
	s.run(recentTicks * tick)
	if s.Stats().Limit > capacity {
		t.Errorf("limit %v as settlements come again", s.Stats().Limit)
	}
	s.run(10 * time.Second)
	if s.settled < int(0.98*10*capacity) || len(s.queue) > backlog-int(0.4*10*capacity) {
		t.Errorf("%d settled of a backlog of %d, %d left", s.settled, backlog, len(s.queue))
	}
	s.run(time.Minute)
	if s.run(10 * time.Second); s.longest >= 2*target || s.perSecond(10*time.Second) < 0.95*capacity {
		t.Errorf("with the backlog gone: %.0f settled a second, latencies up to %v", s.perSecond(10*time.Second), s.longest)
	}
}

func TestWhoAsksForLittleIsNeverShed(t *testing.T) {
	const capacity = 300.0
	s := simulate(capacity)
	s.offered[ann], s.offered[bob] = 3*capacity, 5
	s.run(time.Minute)
	if s.shed[bob] > 0 || s.shed[ann] == 0 || s.longest >= 3*target {
		t.Errorf("%v shed, latencies up to %v", s.shed, s.longest)
	}
}

// The slow ones among many have reasons of their own; a few settlements say nothing of a queue.
func TestOneSlowTransactionIsNoQueue(t *testing.T) {
	c := New(target)
	for range 50 {
		c.Settled(time.Hour)
		for range 20 {
			c.Settled(100 * time.Millisecond)
		}
		c.Tick()
	}
	if s := c.Stats(); !math.IsInf(s.Limit, 1) || s.Latency != 100*time.Millisecond {
		t.Errorf("one in twenty: %+v", s)
	}
	c = New(target)
	for range 50 {
		c.Settled(time.Hour)
		for range 2 {
			c.Tick()
		}
	}
	if s := c.Stats(); !math.IsInf(s.Limit, 1) {
		t.Errorf("five a second: %+v", s)
	}
}

// limited is a controller whose limit stays at n transactions a tick, at a latency of 0.75 of the target.
func limited(t interface{ Fatalf(string, ...any) }, n int) (c *Controller, next func()) {
	c = New(target)
	next = func() {
		for range n {
			c.Settled(target * 3 / 4)
		}
		c.Tick()
	}
	for range 200 {
		next()
	}
	if got := c.Stats().Limit / 10; math.Abs(got-float64(n)) > 1e-3 {
		t.Fatalf("limit %v a tick, want %d", got, n)
	}
	return c, next
}

// A batch is admitted whole; its caller then waits until it has paid for it, and nobody else does.
func TestABatchIsPaidFor(t *testing.T) {
	c, next := limited(t, 100)
	batches, singles := 0, 0
	for range 200 {
		for range 3 {
			if err := c.Admit(ann, 1000); err == nil {
				batches++
			} else if e := rpc.ErrorOf(err); e.Reason != rpc.ReasonOverloaded || e.RetryAfter < time.Second || e.RetryAfter > 2100*time.Millisecond {
				t.Fatalf("shed with %v after %v", err, e.RetryAfter)
			}
		}
		for range 200 {
			if c.Admit(bob, 1) == nil {
				singles++
			}
		}
		next()
	}
	if batches < 9 || batches > 11 || singles < 9_500 || singles > 10_500 { // half each of 20,000, and the first one on credit
		t.Errorf("%d batches of 1,000 and %d single ones of 20,000", batches, singles)
	}
	if got := c.Stats().Shed; got != uint64(1000*(600-batches)+200*200-singles) {
		t.Errorf("%d noted as shed", got)
	}
}

// Who asks again only when told to has to pay as well, while it asks for nothing.
func TestABatchIsPaidForInSilence(t *testing.T) {
	c, next := limited(t, 100)
	admitted, quiet := 0, time.Duration(0)
	for now := time.Duration(0); now < 40*time.Second; now += tick {
		if now >= quiet {
			if err := c.Admit(ann, 1000); err == nil {
				admitted += 1000
			} else {
				quiet = now + rpc.ErrorOf(err).RetryAfter
			}
		}
		for range 200 {
			if c.Admit(bob, 1) == nil {
				admitted++
			}
		}
		next()
	}
	if admitted < 36_000 || admitted > 44_000 {
		t.Errorf("%d admitted, the limit is 40,000 and the last one on credit", admitted)
	}
}

// With a demand that stays, what is admitted in a tick is the limit and at most a fraction more for each caller; who asks for less
// than an even part gets it all.
func TestTheLimitHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 300).Draw(t, "limit")
		wants := rapid.SliceOfN(rapid.IntRange(1, 200), 1, 50).Draw(t, "wants")
		c, next := limited(t, n)
		total, rounds := 0, 0
		for round := range 20 {
			admitted := 0
			for i, want := range wants {
				got := 0
				for range want {
					if c.Admit(Caller{Actor: fmt.Sprint(i)}, 1) == nil {
						got++
					}
				}
				if round > 0 && got < want && want <= n/len(wants) {
					t.Fatalf("%d of %d although %d even parts are %d", got, want, len(wants), n/len(wants))
				}
				admitted += got
			}
			if round > 0 && admitted > n+len(wants)+1 { // and one for the limit's own fraction
				t.Fatalf("%d admitted of %v, the limit is %d", admitted, wants, n)
			}
			if round >= 5 {
				total, rounds = total+admitted, rounds+1
			}
			next()
		}
		all := 0
		for _, want := range wants {
			all += want
		}
		if mean, want := float64(total)/float64(rounds), min(float64(all), float64(n)); math.Abs(mean-want) > 0.1*want+float64(len(wants))/10 {
			t.Fatalf("%.1f admitted a tick of %v, the limit is %d", mean, wants, n)
		}
	})
}

func TestLevel(t *testing.T) {
	for _, tt := range []struct {
		wanted []float64
		limit  float64
		want   float64
	}{
		{nil, 10, 10},
		{[]float64{1, 2}, 10, 9}, // 7 more for whoever wants them
		{[]float64{30, 1, 2}, 10, 7},
		{[]float64{30, 30, 1, 40}, 10, 3},
		{[]float64{1, 1, 1, 1}, 1, 0.25},
	} {
		if got := level(slices.Clone(tt.wanted), tt.limit); math.Abs(got-tt.want) > 1e-9 {
			t.Errorf("%v of %v: %v, want %v", tt.wanted, tt.limit, got, tt.want)
		}
	}
}

// Many who ask for one thing each and never again get no more than the limit; memory has a bound, and lets go.
func TestManyCallers(t *testing.T) {
	c, next := limited(t, 50)
	admitted := 0
	for round := range 400 {
		for i := range 200 {
			if c.Admit(Caller{Actor: fmt.Sprint(round, i)}, 1) == nil && round >= 10 {
				admitted++
			}
		}
		next()
	}
	if mean := float64(admitted) / 390; mean < 40 || mean > 55 {
		t.Errorf("%.1f admitted a tick, the limit is 50", mean)
	}
	for i := range 2 * callersMax {
		_ = c.Admit(Caller{Actor: fmt.Sprint("more", i)}, 1)
	}
	if n := len(c.callers.shares); n > callersMax+1 {
		t.Errorf("%d callers remembered", n)
	}
	for range 3 * idleTicks {
		next()
	}
	if n := len(c.callers.shares); n > 1 {
		t.Errorf("%d idle callers remembered", n)
	}
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(target)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- c.Run(ctx) }()
		for range 10 {
			for range 20 {
				c.Settled(2 * target)
			}
			time.Sleep(tick)
		}
		synctest.Wait()
		if got := c.Stats(); math.IsInf(got.Limit, 1) || got.Latency != 2*target {
			t.Errorf("got %+v", got)
		}
		time.Sleep(windowTicks * tick)
		synctest.Wait()
		if got := c.Stats(); !math.IsInf(got.Limit, 1) || got.Latency != 0 {
			t.Errorf("a second after the last settlement: %+v", got)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestWithoutATargetNothingIsShed(t *testing.T) {
	c := New(0)
	for range 100 {
		c.Settled(time.Hour)
		if err := c.Admit(ann, 1000); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Run(t.Context()); err != nil || !math.IsInf(c.Stats().Limit, 1) {
		t.Errorf("got %v, %+v", err, c.Stats())
	}
}
