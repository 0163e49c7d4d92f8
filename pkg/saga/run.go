package saga

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// run is a saga being worked on.
type run struct {
	engine *Engine
	log    *slog.Logger
	news   chan struct{} // someone else has written the saga

	mu      sync.Mutex
	state   State         // newest state that may be shown
	durable State         // newest state that is stored
	changed chan struct{} // closed at the next change of either
}

func newRun(e *Engine, s State) *run {
	return &run{
		engine: e, news: make(chan struct{}, 1), changed: make(chan struct{}),
		log: e.cfg.Log.With("saga", s.SagaID, "type", s.SagaType, "correlation_id", s.CorrelationID),
	}
}

// look has the run read its saga again.
func (r *run) look() {
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// show makes a state visible.
func (r *run) show(s State) { r.note(&r.state, s) }

// stored notes that a state is stored.
func (r *run) stored(s State) { r.note(&r.durable, s) }

// note keeps a state and wakes who waits for a change.
func (r *run) note(as *State, s State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*as = s
	close(r.changed)
	r.changed = make(chan struct{})
}

// drive works on one saga until it rests, sleeps, is another's, or the engine stops. When a write is refused or has no answer, the
// stored state is the truth: the work goes on from there, and what is done twice has its effect once.
func (r *run) drive(s State, found bool) {
	e := r.engine
	d, ok := e.cfg.Registry.Find(s.SagaType, s.Definition)
	if !ok {
		r.log.Error("saga cannot run: its definition is gone", "definition", s.Definition)
		return
	}
	pause := newPause(e.cfg.Retry)
	for {
		if found {
			if s, ok = r.reread(s.SagaID, pause); !ok {
				return
			}
			if epoch := e.lease.present(); s.Epoch != epoch {
				r.log.Info("saga is not this engine's any more", "epoch", epoch, "owner", s.Epoch)
				return
			}
		}
		err := r.advance(d, s)
		switch {
		case err == nil || e.ctx.Err() != nil:
			return
		case !errors.Is(err, errNews) && !errors.Is(err, errLost):
			wait := pause.NextBackOff()
			r.log.Info("saga goes on from its stored state", "error", err, "in", wait)
			if !e.sleep(wait) {
				return
			}
		}
		found = true
	}
}

// reread reads a saga until the store answers; ok is false when the engine stops.
func (r *run) reread(sagaID string, pause *backoff.ExponentialBackOff) (s State, ok bool) {
	for {
		s, err := r.engine.cfg.Store.Get(r.engine.ctx, sagaID)
		if err == nil {
			return s, true
		}
		wait := pause.NextBackOff()
		r.log.Warn("saga cannot be read", "error", err, "again_in", wait)
		if !r.engine.sleep(wait) {
			return s, false
		}
	}
}

// errNews ends an advance whose saga someone else has written.
var errNews = errors.New("the saga was changed by someone else")

// advance carries a saga from a stored state as far as it goes. It returns an error when a write did not succeed, or would not.
func (r *run) advance(d Definition, s State) error {
	s.WakeAt = time.Time{} // it is awake
	r.show(s)
	r.stored(s)
	j := &journey{run: r, definition: d, state: s, began: time.Now()}
	j.writer = writer{queue: r.engine.saves, lease: r.engine.lease, alive: r.engine.ctx, epoch: s.Epoch, revision: s.Revision, stored: r.stored}
	for {
		if len(Next(d, j.state)) == 0 {
			return nil
		}
		if asleep, err := j.wait(); asleep || err != nil {
			return err
		}
		if err := j.carryOut(Next(d, j.state)); err != nil { // its time may have come meanwhile
			return err
		}
		if !j.state.WakeAt.IsZero() {
			return nil // it sleeps
		}
	}
}

// journey is an advance under way.
type journey struct {
	*run
	writer
	definition Definition
	state      State
	began      time.Time
}

// wait waits until the saga's next steps may begin. asleep: that is long, and the saga was put to sleep.
func (j *journey) wait() (asleep bool, err error) {
	at := Wake(j.definition, j.state)
	left := time.Until(at)
	if at.IsZero() || left <= 0 {
		return false, nil
	}
	due := Due(j.definition, j.state)
	if !due.IsZero() && !time.Now().Before(due) {
		return false, j.keep(Expire(j.definition, j.state, time.Now()), true) // it was not waiting for anybody's answer
	}
	if left > j.engine.cfg.SleepMax {
		s := j.state
		if s.WakeAt = at; !due.IsZero() && due.Before(at) {
			s.WakeAt = due
		}
		s.UpdatedAt = round(time.Now())
		return true, j.keep(s, true)
	}
	begins, expires := time.NewTimer(left), j.timer()
	defer begins.Stop()
	defer expires.Stop()
	for {
		if !j.behind.IsZero() {
			if err := j.begin(context.WithoutCancel(j.engine.ctx), j.state); err != nil {
				return false, err
			}
		}
		select {
		case <-begins.C:
			return false, nil
		case <-expires.C:
			return false, j.keep(Expire(j.definition, j.state, time.Now()), true)
		case landed := <-j.flight: // a newer state may have to follow
			if err := j.landed(landed); err != nil {
				return false, err
			}
		case <-j.news:
			return false, errNews
		case <-j.engine.ctx.Done():
			return false, j.engine.ctx.Err()
		}
	}
}

// due is when the passing of time changes the saga, though not before it was tried for a while; zero = never.
func (j *journey) due() time.Time {
	due := Due(j.definition, j.state)
	if !due.IsZero() {
		due = latest(due, j.began.Add(j.engine.cfg.Grace))
	}
	return due
}

// timer fires when the passing of time changes the saga; perhaps never.
func (j *journey) timer() *time.Timer {
	due := j.due()
	if due.IsZero() {
		t := time.NewTimer(time.Hour)
		t.Stop()
		return t
	}
	return time.NewTimer(time.Until(due))
}

// carryOut asks actions at the same time and records what each came to, as it comes. No answer outlives it: where it returns early,
// calls under way are waited for first, and the pauses between calls are not.
func (j *journey) carryOut(next []Decision) (err error) {
	ctx, leave := context.WithCancel(j.engine.ctx)
	defer leave()
	told := make(chan report)
	for _, did := range next {
		go j.ask(ctx, j.question(did), told)
	}
	due := j.timer()
	defer due.Stop()
	expired, tired := false, report{}
	for left := len(next); left > 0; {
		var late <-chan time.Time
		if !j.behind.IsZero() && j.flight == nil && err == nil {
			late = time.After(time.Until(j.behind.Add(progressWithin)))
		}
		select {
		case <-late:
			if err = j.begin(context.WithoutCancel(j.engine.ctx), j.state); err != nil {
				leave()
			}
		case t := <-told:
			if t.last {
				left--
			}
			if err != nil {
				continue // the saga is to be read again: it will be asked again too
			}
			if t.nap > 0 {
				tired = t
			}
			if err = j.hear(t); err != nil || j.state.Status != InProgress && j.state.Status != Compensating || goneBack(next, j.state) {
				leave()
			}
		case <-due.C:
			expired = true
			leave()
		case landed := <-j.flight:
			if err = errors.Join(err, j.landed(landed)); err == nil && !j.behind.IsZero() {
				err = j.begin(context.WithoutCancel(j.engine.ctx), j.state)
			}
			if err != nil {
				leave()
			}
		case <-j.news:
			err = errNews
			leave()
		}
	}
	if err != nil || j.engine.ctx.Err() != nil {
		return errors.Join(err, j.engine.ctx.Err())
	}
	if j.lease.present() != j.epoch {
		return errLost
	}
	if at := j.due(); expired && !at.IsZero() && !time.Now().Before(at) {
		return j.keep(Expire(j.definition, j.state, time.Now()), true)
	}
	if tired.nap > 0 && waitsFor(Next(j.definition, j.state), tired.did) {
		return j.nap(tired)
	}
	return nil
}

// goneBack: steps were asked, one was refused, and the saga is being undone.
func goneBack(asked []Decision, s State) bool {
	return asked[0].Op == OpStep && (s.Status == Compensating || s.ErrorReason != "")
}

// report is what an ask tells of.
type report struct {
	did    Decision
	answer Answer // of the last report, where ok
	ok     bool
	cause  error // of another report: why there is no answer yet
	last   bool
	nap    time.Duration // how long the saga should sleep before it asks again; 0 = not at all
}

// hear records a report.
func (j *journey) hear(t report) error {
	switch {
	case t.ok:
		s := Apply(j.definition, j.state, t.did, t.answer, time.Now())
		next := Next(j.definition, s)
		// Forward: the step is done for good, so what comes next need not wait for the write. A decision to go back, and an end, do.
		return j.keep(s, len(next) == 0 || next[0].Op != OpStep)
	case t.cause != nil:
		return j.keep(Unanswered(j.state, t.did.Action, t.cause, time.Now()), false)
	}
	return nil
}

// keep makes a state the saga's: stored before it returns where it is to be sure, else within progressWithin.
func (j *journey) keep(s State, sure bool) error {
	stored := context.WithoutCancel(j.engine.ctx) // a write that was begun is waited for, also by Stop: its answer is worth having
	was := j.state.Status
	j.state = s
	if !sure {
		j.later()
		j.show(s)
		return nil
	}
	if err := j.write(stored, s); err != nil {
		return err
	}
	j.show(s)
	if s.Status != was && s.Status.Rests() && j.engine.cfg.OnEnd != nil {
		j.engine.cfg.OnEnd(s)
	}
	if s.Status != was && s.Status == NeedsAttention {
		j.log.Error("saga needs attention", "reason", s.ErrorReason, "message", s.ErrorMessage)
	}
	return nil
}

// callOf is the call that a decision about a saga leads to.
func callOf(s State, did Decision) Call {
	c := Call{
		SagaID: s.SagaID, SagaType: s.SagaType, Action: did.Action, Input: s.Input,
		ErrorReason: s.ErrorReason, ErrorMessage: s.ErrorMessage, CorrelationID: s.CorrelationID, CausedBy: s.CausedBy, Metadata: s.Metadata,
	}
	if did.Op == OpUndo {
		c.Undoes = did.Step.Name
	}
	return c
}

// act runs an action; a panic in it needs a person.
func (e *Engine) act(op Op, c Call) (a Answer, err error) {
	defer func() {
		if p := recover(); p != nil {
			a, err = Answer{Outcome: Stuck, Reason: "INTERNAL", Message: fmt.Sprintf("panicked: %v", p)}, nil
		}
	}()
	if op != OpCancel {
		return e.cfg.Actions[c.Action](e.ctx, c)
	}
	if registers := e.cfg.Registers[c.Action]; registers != nil {
		return registers.Cancel(e.ctx, c)
	}
	return Answer{Outcome: Stuck, Reason: "INTERNAL", Message: "it has no register that says whether it was done"}, nil
}

// sleep waits; false means that the engine stops.
func (e *Engine) sleep(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-e.ctx.Done():
		return false
	}
}

func newPause(policy RetryPolicy) *backoff.ExponentialBackOff {
	p := backoff.NewExponentialBackOff()
	p.InitialInterval, p.MaxInterval = policy.Initial, policy.Max
	return p
}
