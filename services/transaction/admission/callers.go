package admission

import (
	"math"
	"math/rand/v2"
	"slices"
)

const (
	// callersMax is how many callers are told apart; the others count as one.
	callersMax = 4096
	// idleTicks is for how long a caller is remembered who asks for nothing and owes nothing.
	idleTicks = 10
)

// Caller is whose requests are counted together.
type Caller struct{ Tenant, Actor string }

// callers divide a limit fairly: who asks for little gets all of it, and the rest is divided evenly among those who want more.
type callers struct {
	level  float64 // what each may have in a tick; infinite = anything
	shares map[Caller]*share
}

// share is what one caller asked for and may have.
type share struct {
	offered float64 // transactions asked for in this tick
	credit  float64 // transactions still admitted; below 0: had already, by a call of many
	idle    int     // ticks since anything was asked for or owed
}

func newCallers() callers { return callers{level: math.Inf(1), shares: map[Caller]*share{}} }

// find is the caller's share. One who is new may have as much as the others.
func (c *callers) find(who Caller) *share {
	s := c.shares[who]
	if s == nil && len(c.shares) >= callersMax {
		who = Caller{}
		s = c.shares[who]
	}
	if s == nil {
		s = &share{}
		if !math.IsInf(c.level, 1) {
			// A fraction is drawn by lot: of many who come once each, no more get through than the level allows.
			s.credit = math.Floor(c.level + rand.Float64()) //nolint:gosec // nobody gains by guessing it
		}
		c.shares[who] = s
	}
	return s
}

// next divides the limit of the next tick by what was asked for in the last one.
func (c *callers) next(limit float64) {
	if math.IsInf(limit, 1) {
		c.level = limit
		for who, s := range c.shares {
			s.credit = 0
			c.rest(who, s)
		}
		return
	}
	wanted := make([]float64, 0, len(c.shares))
	for _, s := range c.shares {
		wanted = append(wanted, max(s.offered, -s.credit))
	}
	c.level = level(wanted, limit)
	for who, s := range c.shares {
		s.credit = min(s.credit+c.level, max(c.level, 1)) // a whole one is saved up where the level is a fraction
		c.rest(who, s)
	}
}

// rest begins a new tick for the caller, and forgets one who has been idle.
func (c *callers) rest(who Caller, s *share) {
	s.idle++
	if s.offered > 0 || s.credit < 0 {
		s.idle = 0
	}
	s.offered = 0
	if s.idle > idleTicks {
		delete(c.shares, who)
	}
}

// level is the l for which the sum of min(wanted, l) is the limit; above all that is wanted where there is enough for it.
func level(wanted []float64, limit float64) float64 {
	slices.Sort(wanted)
	last := 0.0
	for i, w := range wanted {
		if even := limit / float64(len(wanted)-i); w > even {
			return even
		}
		last, limit = w, limit-w
	}
	return last + limit
}
