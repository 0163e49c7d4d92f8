package saga

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"example.com/billing/pkg/batch"
)

// Call is one request to an action. SagaID and Action together are its idempotency key: however often it is sent, it has
// the effect and the answer of once. A compensation also works where the step it undoes has not been done: then the step
// never will be, however late its call arrives.
type Call struct {
	SagaID        string
	SagaType      string
	Action        string
	Undoes        string          // of a compensation: the step it undoes
	Input         json.RawMessage // the trigger's data
	ErrorReason   string          // while the saga is undone, and of OnFailed and OnCompensated: why
	ErrorMessage  string
	CorrelationID string
	CausedBy      string
	Metadata      map[string]any
}

// Action carries out calls of one name. An error means "unknown": the engine asks again, with the same call. Actions must be
// safe for concurrent use.
type Action func(ctx context.Context, c Call) (Answer, error)

// Registers are the write-once registers of an action, in the service that it belongs to. Safe for concurrent use.
type Registers interface {
	// Cancel closes the register if nothing is in it: Done, with its result, where it had been done; Refused where it never will be.
	Cancel(ctx context.Context, c Call) (Answer, error)
	// Read only looks.
	Read(ctx context.Context, c Call) (Register, error)
}

// ReadReport says whether the subject of a saga has heard what an action tells: RegisterOpen as long as it waits for an end, RegisterDone
// once it has heard this one; otherwise it never will.
type ReadReport func(ctx context.Context, c Call) (Register, error)

// Config of an engine. Zero durations and counts mean the default.
type Config struct {
	Registry Registry
	Actions  map[string]Action // by step, compensation, OnFailed and OnCompensated
	// Registers are those that actions have. A pivot needs one where its saga has deadlines, or a person shall be able to compensate.
	Registers map[string]Registers
	// Reports read what the subject has heard, for the actions that tell it of an end. What has one is not skipped while the subject
	// waits.
	Reports map[string]ReadReport
	Store   Store
	Log     *slog.Logger
	Retry   RetryPolicy // of definitions that have none

	ActiveMax    int           // sagas worked on at the same time; further ones wait; 10,000. 1 = strictly one after the other
	RecoverEvery time.Duration // how often to look for sagas that nobody works on; 1 s
	RecoverIdle  time.Duration // a saga of this engine that is left alone for this long is looked after; 15 s
	Grace        time.Duration // a saga that was just taken up, perhaps after a long outage, is tried for this long whatever its deadline; 30 s
	LeaseTTL     time.Duration // how long an engine that fell silent is waited for; 5 s
	SleepMax     time.Duration // a saga that has nothing to do for longer leaves memory, and is taken up when it is time; 10 s
	AwakeMax     time.Duration // an action without an answer has its saga sleep after this long, or a sixth of it where slots are scarce; 30 s
	// CrowdMax is how many actions of one subject may have no answer at the same time where slots are scarce: sagas beyond it sleep at
	// once, so that one account that cannot be read does not take the slots of all others. ActiveMax / 20
	CrowdMax int
	OnEnd    func(State) // called after a saga that ended, or needs a person, was stored; may be nil
}

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.ActiveMax <= 0 {
		c.ActiveMax = 10_000
	}
	if c.CrowdMax <= 0 {
		c.CrowdMax = max(c.ActiveMax/20, 1)
	}
	for _, d := range []struct {
		of *time.Duration
		is time.Duration
	}{{&c.RecoverEvery, time.Second}, {&c.RecoverIdle, 15 * time.Second}, {&c.Grace, 30 * time.Second}, {&c.LeaseTTL, 5 * time.Second}, {&c.SleepMax, 10 * time.Second}, {&c.AwakeMax, 30 * time.Second}} {
		if *d.of <= 0 {
			*d.of = d.is
		}
	}
	c.Retry = c.Retry.or(RetryPolicy{Initial: 50 * time.Millisecond, Max: 10 * time.Second})
	return c
}

// check says which actions and registers are missing.
func (c Config) check() error {
	var errs []error
	for _, d := range c.Registry.byKey {
		for _, a := range d.actions() {
			if c.Actions[a] == nil {
				errs = append(errs, fmt.Errorf("saga %s version %d: there is no action %q", d.Name, d.Version, a))
			}
		}
		if i := d.pivot(); i >= 0 && d.timed() && c.Registers[d.Steps[i].Name] == nil {
			errs = append(errs, fmt.Errorf("saga %s version %d has a deadline: its pivot %q needs a register", d.Name, d.Version, d.Steps[i].Name))
		}
	}
	return errors.Join(errs...)
}

// Engine carries out sagas: each in order, many at the same time. Several engines share a store: a saga belongs to one of them, and
// is taken over when that one falls silent. One that wakes up late comes to no harm: its writes are refused, and actions
// have their effect once.
type Engine struct {
	cfg   Config
	owner string
	lease *lease
	saves *batch.Queue[State, struct{}]
	slots chan struct{}
	now   chan struct{} // has Run look for sagas that are nobody's at once

	left    backlog
	counts  counts
	looking atomic.Int32 // calls of Run under way
	crowds  crowds

	keeping  sync.Once
	renewing sync.Mutex

	mu     sync.Mutex
	active map[string]*run
	done   sync.WaitGroup
	ctx    context.Context // of everything the engine does; ends with Stop
	cancel context.CancelFunc
}

// NewEngine checks that every action of every definition is there.
func NewEngine(cfg Config) (*Engine, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	e := &Engine{cfg: cfg, owner: uuid.NewString(), slots: make(chan struct{}, cfg.ActiveMax), now: make(chan struct{}, 1), active: map[string]*run{}}
	e.lease, e.left = newLease(cfg.LeaseTTL), newBacklog()
	e.crowds.of = map[string]int{}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.saves = batch.New(batch.Options{WaitingMax: 4 * cfg.ActiveMax, Linger: savesLinger}, func(ctx context.Context, states []State) []batch.Result[struct{}] {
		results := make([]batch.Result[struct{}], len(states))
		for i, err := range cfg.Store.Save(ctx, states) {
			if results[i].Err = err; errors.Is(err, ErrStale) {
				cfg.Log.Info("saga write refused", "error", err) // whose it was may not wait for it any more
			}
		}
		return results
	})
	return e, nil
}

// Start stores a saga for each trigger that has none yet, all before it returns, and begins to work on the new ones. It
// returns how many are new. Triggers of unknown types are refused.
//
// Who asks for a saga that has ended has not heard of its end, or has lost it with the last moments of a database: the saga's
// last report is sent again, after Start has returned.
func (e *Engine) Start(ctx context.Context, triggers []Trigger) (int, error) {
	epoch, err := e.hold(ctx)
	if err != nil {
		return 0, fmt.Errorf("start sagas: %w", err)
	}
	sagas := make([]State, 0, len(triggers))
	now := time.Now()
	for _, t := range triggers {
		d, ok := e.cfg.Registry.ByTrigger(t.EventType)
		if !ok {
			return 0, fmt.Errorf("start saga %s: no saga is triggered by %s", t.SagaID, t.EventType)
		}
		s := NewState(d, t, now)
		s.Epoch = epoch
		sagas = append(sagas, s)
	}
	added, err := e.insert(ctx, sagas)
	if err != nil {
		e.left.add(stateIDs(sagas), false) // some may be stored all the same: a repeat would not find them new
		return 0, fmt.Errorf("start sagas: %w", err)
	}
	e.left.add(missing(sagas, added), true)
	for i, s := range added {
		if err := e.work(ctx, s, false); err != nil {
			e.left.add(stateIDs(added[i:]), false)
			return len(added), nil //nolint:nilerr // stored: they begin as soon as there is a slot
		}
	}
	return len(added), nil
}

// insertMax bounds an insert, which does not end with the context of who asks.
const insertMax = 10 * time.Second

// insert stores new sagas. An insert that was begun is waited for, whatever happens to who asks: a consumer that loses its partition
// would leave stored sagas that nobody works on.
func (e *Engine) insert(ctx context.Context, sagas []State) ([]State, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), insertMax)
	defer cancel()
	return e.cfg.Store.Insert(ctx, sagas)
}

// missing are the ids of sagas that are not among those added.
func missing(sagas, added []State) (ids []string) {
	isNew := make(map[string]bool, len(added))
	for _, s := range added {
		isNew[s.SagaID] = true
	}
	for _, s := range sagas {
		if !isNew[s.SagaID] {
			ids = append(ids, s.SagaID)
		}
	}
	return ids
}

// Stop ends the work at the next safe point; what is unfinished is taken up by another engine, or at the next start.
func (e *Engine) Stop(ctx context.Context) error {
	e.cancel()
	idle := make(chan struct{})
	go func() { e.done.Wait(); close(idle) }()
	select {
	case <-idle:
	case <-ctx.Done():
	}
	err := e.saves.Close(ctx)
	if epoch := e.lease.end(); epoch != 0 && err == nil {
		_ = e.cfg.Store.Release(ctx, epoch) // it ends by itself if this fails
	}
	return err
}

// Active is how many sagas are being worked on here.
func (e *Engine) Active() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.active)
}

// savesLinger is how long a state waits for others to be stored with while many are.
const savesLinger = time.Millisecond

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
	if len(next) == 0 {
		return false
	}
	left := 0
	for _, r := range s.Records() {
		if r.Status == StepPending {
			left++
		}
	}
	return next[0].Op == OpReport || next[0].Op == OpStep && left == len(next)
}

// Look reads a saga as it is now. Where this engine works on it, that is what its memory says, and changed closes at the next
// change; otherwise it is the stored state, or ErrNotFound, and changed is nil.
func (e *Engine) Look(ctx context.Context, sagaID string) (s State, changed <-chan struct{}, err error) {
	return e.look(ctx, sagaID, func(r *run) State { return r.state })
}

// LookStored is Look of what is stored, whatever memory knows more: what it shows once is never taken back.
func (e *Engine) LookStored(ctx context.Context, sagaID string) (s State, changed <-chan struct{}, err error) {
	return e.look(ctx, sagaID, func(r *run) State { return r.durable })
}

func (e *Engine) look(ctx context.Context, sagaID string, of func(*run) State) (s State, changed <-chan struct{}, err error) {
	if r := e.running(sagaID); r != nil {
		r.mu.Lock()
		s, changed = of(r), r.changed
		r.mu.Unlock()
	}
	if s.SagaID == "" || s.Epoch != e.lease.held() { // not at work here, just taken up, or perhaps another engine's by now
		s, err = e.cfg.Store.Get(ctx, sagaID)
		return s, nil, err
	}
	return s, changed, nil
}

func (e *Engine) running(sagaID string) *run {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.active[sagaID]
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
	r := newRun(e, s)
	e.mu.Lock()
	defer e.mu.Unlock()
	if before, busy := e.active[s.SagaID]; busy || e.ctx.Err() != nil {
		<-e.slots
		if busy {
			before.look() // it is ours anew: someone stepped in
		}
		return e.ctx.Err()
	}
	e.active[s.SagaID] = r
	e.done.Go(func() {
		defer func() { <-e.slots }()
		for {
			r.drive(s, found)
			if e.leave(r, s.SagaID) {
				return
			}
			found = true
		}
	})
	return nil
}

// leave ends a run, unless somebody has told it to look again meanwhile.
func (e *Engine) leave(r *run, sagaID string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-r.news:
		if e.ctx.Err() == nil {
			return false
		}
	default:
	}
	delete(e.active, sagaID)
	return true
}
