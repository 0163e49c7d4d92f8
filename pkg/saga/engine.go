package saga

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"example.com/billing/pkg/batch"
)

// Call is one request to an action. SagaID and Action together are its idempotency key: however often it is sent, it has
// the effect and the answer of once.
type Call struct {
	SagaID        string
	SagaType      string
	Action        string
	Undoes        string          // of a compensation: the step it undoes
	Input         json.RawMessage // the trigger's data
	ErrorReason   string          // of OnFailed and OnCompensated: why
	ErrorMessage  string
	CorrelationID string
	CausedBy      string
	Metadata      map[string]any
}

// Action carries out calls of one name. An error means "unknown": the engine asks again, with the same call. Actions must be
// safe for concurrent use.
type Action func(ctx context.Context, c Call) (Answer, error)

// Trigger starts a saga.
type Trigger struct {
	SagaID        string
	EventID       string
	EventType     string
	Data          json.RawMessage
	CorrelationID string
	Metadata      map[string]any
	At            time.Time
}

// Config of an engine. Zero durations and counts mean the default.
type Config struct {
	Registry Registry
	Actions  map[string]Action // by step, compensation, OnFailed and OnCompensated
	Store    Store
	Log      *slog.Logger
	Retry    RetryPolicy

	ActiveMax    int           // sagas worked on at the same time; further ones wait; 10,000
	RecoverEvery time.Duration // how often to look for sagas that nobody works on; 5 s
	RecoverIdle  time.Duration // a saga unchanged for this long is looked after; 15 s
	OnEnd        func(State)   // called after a saga that ended, or needs a person, was stored; may be nil
}

// Engine carries out sagas: each in order, many at the same time. A saga that another engine works on as well comes to no
// harm: actions have their effect once, and the state is written under its revision.
type Engine struct {
	cfg   Config
	saves *batch.Queue[State, struct{}]
	slots chan struct{}

	mu     sync.Mutex
	active map[string]*run
	done   sync.WaitGroup
	ctx    context.Context // of everything the engine does; ends with Stop
	cancel context.CancelFunc
}

// run is a saga being worked on.
type run struct {
	mu      sync.Mutex
	state   State         // newest state that may be shown
	changed chan struct{} // closed at the next change
}

// NewEngine checks that every action of every definition is there.
func NewEngine(cfg Config) (*Engine, error) {
	var errs []error
	for _, d := range cfg.Registry.byKey {
		for _, a := range d.actions() {
			if cfg.Actions[a] == nil {
				errs = append(errs, fmt.Errorf("saga %s version %d: there is no action %q", d.Name, d.Version, a))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.ActiveMax <= 0 {
		cfg.ActiveMax = 10_000
	}
	if cfg.RecoverEvery <= 0 {
		cfg.RecoverEvery = 5 * time.Second
	}
	if cfg.RecoverIdle <= 0 {
		cfg.RecoverIdle = 15 * time.Second
	}
	cfg.Retry = cfg.Retry.orDefault()
	e := &Engine{cfg: cfg, slots: make(chan struct{}, cfg.ActiveMax), active: map[string]*run{}}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.saves = batch.New(batch.Options{WaitingMax: 4 * cfg.ActiveMax}, func(ctx context.Context, states []State) []batch.Result[struct{}] {
		results := make([]batch.Result[struct{}], len(states))
		for i, err := range cfg.Store.Save(ctx, states) {
			results[i].Err = err
		}
		return results
	})
	return e, nil
}

// Start stores a saga for each trigger that has none yet, all before it returns, and begins to work on the new ones. It
// returns how many are new. Triggers of unknown types are refused.
func (e *Engine) Start(ctx context.Context, triggers []Trigger) (int, error) {
	sagas := make([]State, 0, len(triggers))
	now := time.Now().UTC().Truncate(time.Millisecond)
	for _, t := range triggers {
		at := t.At.UTC().Truncate(time.Millisecond)
		d, ok := e.cfg.Registry.ByTrigger(t.EventType)
		if !ok {
			return 0, fmt.Errorf("start saga %s: no saga is triggered by %s", t.SagaID, t.EventType)
		}
		sagas = append(sagas, State{
			SagaID: t.SagaID, SagaType: d.Name, Definition: d.Version, Status: InProgress, Steps: d.StepNames(),
			Input: t.Data, CorrelationID: t.CorrelationID, CausedBy: t.EventID, Metadata: t.Metadata, CreatedAt: at, UpdatedAt: now,
			Timeline: []Entry{{Type: EntryStarted, At: at}},
		})
	}
	added, err := e.cfg.Store.Insert(ctx, sagas)
	if err != nil {
		return 0, fmt.Errorf("start sagas: %w", err)
	}
	for _, s := range added {
		if err := e.work(ctx, s, false); err != nil {
			return len(added), nil //nolint:nilerr // stored: recovery finds it
		}
	}
	return len(added), nil
}

// Stop ends the work at the next safe point; what is unfinished is taken up at the next start.
func (e *Engine) Stop(ctx context.Context) error {
	e.cancel()
	idle := make(chan struct{})
	go func() { e.done.Wait(); close(idle) }()
	select {
	case <-idle:
	case <-ctx.Done():
	}
	return e.saves.Close(ctx)
}

// Active is how many sagas are being worked on here.
func (e *Engine) Active() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.active)
}

// settleWait is how long Get waits for a saga whose last step is under way.
const settleWait = 500 * time.Millisecond

// Get reads a saga as it is now: a step's end shows at once, the saga's end once it is stored. The last step tells others
// that the work is done a moment before the saga itself has ended, so Get waits that moment.
func (e *Engine) Get(ctx context.Context, sagaID string) (State, error) {
	deadline := time.After(settleWait)
	for {
		s, changed, err := e.Look(ctx, sagaID)
		if err != nil || changed == nil || s.Status.Ended() || !e.ending(s) {
			return s, err
		}
		select {
		case <-changed:
		case <-deadline:
			return s, nil
		case <-ctx.Done():
			return State{}, ctx.Err()
		}
	}
}

// ending: what is under way now is the last thing the saga does.
func (e *Engine) ending(s State) bool {
	d, ok := e.cfg.Registry.Find(s.SagaType, s.Definition)
	if !ok {
		return false
	}
	next := Next(d, s)
	return next.Op == OpReport || next.Op == OpStep && s.CurrentStep == len(d.Steps)-1
}

// work begins to work on a stored saga, waiting for a free slot. One that was found, not just stored, is read again first:
// another engine may have gone on with it.
func (e *Engine) work(ctx context.Context, s State, found bool) error {
	select {
	case e.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-e.ctx.Done():
		return e.ctx.Err()
	}
	r := &run{changed: make(chan struct{})}
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, busy := e.active[s.SagaID]; busy || e.ctx.Err() != nil {
		<-e.slots
		return e.ctx.Err()
	}
	e.active[s.SagaID] = r
	e.done.Go(func() {
		defer func() {
			e.mu.Lock()
			delete(e.active, s.SagaID)
			e.mu.Unlock()
			<-e.slots
		}()
		e.drive(r, s, found)
	})
	return nil
}

// drive works on one saga until it ends, needs a person, or the engine stops. When a write is refused or has no answer, the
// stored state is the truth: the work goes on from there, and what is done twice has its effect once.
func (e *Engine) drive(r *run, s State, found bool) {
	log := e.cfg.Log.With("saga", s.SagaID, "type", s.SagaType, "correlation_id", s.CorrelationID)
	d, ok := e.cfg.Registry.Find(s.SagaType, s.Definition)
	if !ok {
		log.Error("saga cannot run: its definition is gone", "definition", s.Definition)
		return
	}
	pause := e.pause()
	for {
		if found {
			if s, ok = e.reread(s.SagaID, pause, log); !ok {
				return
			}
		}
		err := e.advance(d, r, s, log)
		if err == nil || e.ctx.Err() != nil {
			return
		}
		wait := pause.NextBackOff()
		log.Info("saga goes on from its stored state", "error", err, "in", wait)
		if !e.sleep(wait) {
			return
		}
		found = true
	}
}

// reread reads a saga until the store answers; ok is false when the engine stops.
func (e *Engine) reread(sagaID string, pause *backoff.ExponentialBackOff, log *slog.Logger) (s State, ok bool) {
	for {
		s, err := e.cfg.Store.Get(e.ctx, sagaID)
		if err == nil {
			return s, true
		}
		wait := pause.NextBackOff()
		log.Warn("saga cannot be read", "error", err, "again_in", wait)
		if !e.sleep(wait) {
			return s, false
		}
	}
}

// advance carries a saga from a stored state as far as it goes. It returns an error when a write did not succeed.
func (e *Engine) advance(d Definition, r *run, s State, log *slog.Logger) error {
	r.show(s)
	w := writer{queue: e.saves, revision: s.Revision}
	stored := context.WithoutCancel(e.ctx) // a write that was begun is waited for, also by Stop: its answer is worth having
	for {
		next := Next(d, s)
		if next.Op == OpNone {
			return nil
		}
		answer, err := e.call(next, s, log)
		if err != nil {
			return err // stopping
		}
		s = Apply(d, s, next, answer, time.Now())
		if Next(d, s).Op == OpStep {
			// Forward: the step is done for good, so what comes next need not wait for the write.
			if err := w.begin(stored, s); err != nil {
				return err
			}
		} else if err := w.write(stored, s); err != nil {
			return err
		}
		r.show(s)
		if (s.Status.Ended() || s.Status == NeedsAttention) && e.cfg.OnEnd != nil {
			e.cfg.OnEnd(s)
		}
		if s.Status == NeedsAttention {
			log.Error("saga needs attention", "reason", s.ErrorReason, "message", s.ErrorMessage)
		}
	}
}

func (e *Engine) pause() *backoff.ExponentialBackOff {
	p := backoff.NewExponentialBackOff()
	p.InitialInterval, p.MaxInterval = e.cfg.Retry.Initial, e.cfg.Retry.Max
	return p
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

// call asks an action until it has an answer, with a growing pause; it returns an error only when the engine stops.
func (e *Engine) call(next Decision, s State, log *slog.Logger) (Answer, error) {
	c := Call{
		SagaID: s.SagaID, SagaType: s.SagaType, Action: next.Action, Input: s.Input, ErrorReason: s.ErrorReason, ErrorMessage: s.ErrorMessage,
		CorrelationID: s.CorrelationID, CausedBy: s.CausedBy, Metadata: s.Metadata,
	}
	if next.Op == OpUndo {
		c.Undoes = next.Step.Name
	}
	pause := e.pause()
	for attempt := 1; ; attempt++ {
		answer, err := e.act(c)
		if err == nil {
			return answer, nil
		}
		wait := pause.NextBackOff()
		if e.ctx.Err() == nil && attempt > 1 { // one hiccup is not news
			log.Warn("saga action has no answer", "action", next.Action, "attempt", attempt, "error", err, "again_in", wait)
		}
		if !e.sleep(wait) {
			return Answer{}, e.ctx.Err()
		}
	}
}

// act runs an action; a panic in it needs a person.
func (e *Engine) act(c Call) (a Answer, err error) {
	defer func() {
		if p := recover(); p != nil {
			a, err = Answer{Outcome: Stuck, Reason: "INTERNAL", Message: fmt.Sprintf("panicked: %v", p)}, nil
		}
	}()
	return e.cfg.Actions[c.Action](e.ctx, c)
}

// show makes a state visible and wakes who waits for a change.
func (r *run) show(s State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state = s
	close(r.changed)
	r.changed = make(chan struct{})
}
