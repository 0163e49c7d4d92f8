package saga

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// noAnswerAfter is after how many attempts the timeline tells that an action has no answer.
const noAnswerAfter = 5

// question is what an action is asked, and what there is to know of the saga that asks.
type question struct {
	did      Decision
	call     Call
	policy   RetryPolicy
	subjects []string
	naps     int
	due      time.Time // when the passing of time changes the saga; zero = never
}

func (j *journey) question(did Decision) question {
	policy := j.definition.Retry.or(j.engine.cfg.Retry)
	if did.Step.Retry != nil {
		policy = did.Step.Retry.or(policy)
	}
	return question{
		did: did, call: callOf(j.state, did), policy: policy, subjects: j.state.Subjects, naps: j.state.Naps,
		due: Due(j.definition, j.state),
	}
}

// ask asks an action until it has an answer, with a growing pause. It ends without one when ctx ends, or when the saga should
// sleep.
func (j *journey) ask(ctx context.Context, q question, told chan<- report) {
	pause := newPause(q.policy)
	began := time.Now()
	for attempt := 1; ; attempt++ {
		if j.lease.check(ctx, j.epoch) != nil || ctx.Err() != nil {
			break
		}
		answer, err := j.engine.act(q.did.Op, q.call)
		if err == nil {
			answer.StartedAt, answer.Attempts = began, attempt
			told <- report{did: q.did, answer: answer, ok: true, last: true}
			return
		}
		wait := pause.NextBackOff()
		if ctx.Err() == nil && attempt > 1 { // one hiccup is not news
			j.log.Warn("saga action has no answer", "action", q.did.Action, "attempt", attempt, "error", err, "again_in", wait)
		}
		if attempt == 1 {
			leave := j.engine.unanswered(q.subjects)
			defer leave()
		}
		if ctx.Err() == nil && j.engine.tired(q, attempt, time.Since(began)+wait) {
			told <- report{did: q.did, cause: err, nap: napFor(q.policy.Max, q.naps), last: true}
			return
		}
		if attempt == noAnswerAfter {
			told <- report{did: q.did, cause: err}
		}
		select {
		case <-time.After(wait):
			continue
		case <-ctx.Done():
		}
		break
	}
	told <- report{did: q.did, last: true}
}

// unanswered counts an action without an answer until leave is called.
func (e *Engine) unanswered(subjects []string) (leave func()) {
	e.crowds.enter(subjects)
	e.counts.unanswered.Add(1)
	return func() {
		e.crowds.leave(subjects)
		e.counts.unanswered.Add(-1)
	}
}

// awakeAfterNap is how often a saga that has slept asks before it sleeps again.
const awakeAfterNap = 3

// tired decides whether a saga whose action has no answer leaves its slot to others and sleeps.
func (e *Engine) tired(q question, attempt int, asked time.Duration) bool {
	if e.looking.Load() == 0 {
		return false // nobody would wake it
	}
	if !q.due.IsZero() && !time.Now().Before(q.due) {
		return false // it is tried for a while, and then given up: see Grace
	}
	scarce := len(e.slots) >= (cap(e.slots)+1)/2
	switch {
	case q.naps > 0:
		return attempt >= awakeAfterNap
	case scarce && e.crowds.largest(q.subjects) > e.cfg.CrowdMax:
		return true
	case scarce:
		return asked >= e.cfg.AwakeMax/6
	}
	return asked >= e.cfg.AwakeMax
}

// napFor is how long a saga sleeps that has slept so often before: the longest pause between attempts at first, six times as
// long in the end, and a quarter more or less, so that not all of an account's sagas wake at the same time.
func napFor(longest time.Duration, naps int) time.Duration {
	nap := min(longest<<min(naps, 3), 6*longest)
	return nap*3/4 + time.Duration(rand.Int64N(int64(nap)/2+1)) //nolint:gosec // it spreads load
}

// nap puts the saga to sleep, in the store and not in memory: nobody holds a slot for it until it wakes.
func (j *journey) nap(t report) error {
	now := time.Now()
	s := Unanswered(j.state, t.did.Action, t.cause, now)
	s.WakeAt, s.UpdatedAt = round(now.Add(t.nap)), round(now)
	if due := Due(j.definition, j.state); !due.IsZero() && due.Before(s.WakeAt) {
		s.WakeAt = due
	}
	s.Naps++
	if err := j.keep(s, true); err != nil {
		return err
	}
	j.engine.counts.naps.Add(1)
	j.log.Warn("saga sleeps: its action has no answer", "action", t.did.Action, "naps", s.Naps, "until", s.WakeAt)
	return nil
}

// waitsFor reports whether a decision is among the next ones.
func waitsFor(next []Decision, did Decision) bool {
	return slices.ContainsFunc(next, func(n Decision) bool { return n.Op == did.Op && n.Action == did.Action })
}

// crowds counts the actions without an answer by subject. Safe for concurrent use.
type crowds struct {
	mu sync.Mutex
	of map[string]int
}

func (c *crowds) enter(subjects []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range subjects {
		c.of[s]++
	}
}

func (c *crowds) leave(subjects []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range subjects {
		if c.of[s]--; c.of[s] <= 0 {
			delete(c.of, s)
		}
	}
}

// largest is the size of the largest crowd that a saga of these subjects stands in.
func (c *crowds) largest(subjects []string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range subjects {
		n = max(n, c.of[s])
	}
	return n
}
