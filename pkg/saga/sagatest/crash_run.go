package sagatest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/saga"
)

// runMax is how long a run may take at most.
const runMax = 20 * time.Second

// world is one run: the services, the store, and what goes wrong.
type world struct {
	schedule
	definition saga.Definition
	services   Services
	store      *saga.Memory
	sagaID     string
	rests      chan struct{} // closed when the stored saga rests
	crashed    chan struct{} // gets a value at each crash

	mu    sync.Mutex
	edge  int
	alive int                    // the living process
	epoch int64                  // its engine's
	calls []saga.Call            // sent so far
	first map[string]saga.Answer // by action
	wrong error                  // the first broken promise of a service
}

var errDead = &es.UnavailableError{Op: "call", Err: errors.New("the process has ended")}

// run carries the saga out once and returns how many edges there were.
func (s Subject) run(sc schedule) (edges int, err error) {
	ctx := context.Background()
	w := &world{
		schedule: sc, definition: s.Definition, services: s.New(), store: saga.NewMemory(), sagaID: uuid.NewString(),
		rests: make(chan struct{}), crashed: make(chan struct{}, 1), first: map[string]saga.Answer{},
	}
	trigger := saga.Trigger{SagaID: w.sagaID, EventID: uuid.NewString(), EventType: s.Definition.Trigger, Data: s.Input, CorrelationID: "crash", At: time.Now()}
	late := time.After(runMax)
	for start := true; ; start = false {
		stop, err := w.process(ctx, start, trigger)
		if err != nil {
			return 0, err
		}
		select {
		case <-w.crashed:
			stop()
			continue
		case <-w.rests:
			stop()
		case <-late:
			stop()
			now, _ := w.store.Get(ctx, w.sagaID)
			return w.edge, fmt.Errorf("it does not end: %s, %s", now.Status, now.ErrorMessage)
		}
		break
	}
	end, err := w.store.Get(ctx, w.sagaID)
	if err != nil {
		return w.edge, err
	}
	w.repeat() // once more, after the end
	return w.edge, errors.Join(w.wrong, w.ends(end), w.services.Check(end))
}

// process runs an engine as a process of its own until stop is called.
func (w *world) process(ctx context.Context, start bool, trigger saga.Trigger) (stop func(), err error) {
	w.mu.Lock()
	w.alive++
	p := process{world: w, Memory: w.store, number: w.alive}
	w.mu.Unlock()
	registry, err := saga.NewRegistry(w.definition)
	if err != nil {
		return nil, err
	}
	actions := map[string]saga.Action{}
	for name, action := range w.services.Actions {
		actions[name] = p.wrap(name, action)
	}
	engine, err := saga.NewEngine(saga.Config{
		Registry: registry, Actions: actions, Registers: w.services.Registers, Store: p, Log: slog.New(slog.DiscardHandler),
		Retry: saga.RetryPolicy{Initial: time.Millisecond, Max: 5 * time.Millisecond}, RecoverEvery: time.Millisecond, RecoverIdle: time.Millisecond,
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		if start {
			_, _ = engine.Start(ctx, []saga.Trigger{trigger}) // an error means that it has crashed
		}
		_ = engine.Run(ctx)
	}()
	return func() {
		cancel()
		<-ran
		ctx := context.WithoutCancel(ctx)
		_ = engine.Stop(ctx)
		_ = w.store.Release(ctx, w.epoch) // as if its lease had ended
	}, nil
}

// process is one engine's process: what it calls and stores stops working at its crash.
type process struct {
	*world
	*saga.Memory
	number int
}

// pass is an edge: it returns false when the process is dead.
func (p process) pass() bool {
	w := p.world
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.alive != p.number {
		return false
	}
	n := w.edge
	w.edge++
	if n == w.Repeat {
		w.repeat()
	}
	if n == w.Stop {
		w.stop()
	}
	if slices.Contains(w.Crashes, n) {
		w.alive++ // nobody, until the next one starts
		w.crashed <- struct{}{}
		return false
	}
	return true
}

// wrap is an action as the process calls it.
func (p process) wrap(name string, action saga.Action) saga.Action {
	return func(ctx context.Context, c saga.Call) (saga.Answer, error) {
		p.sent(c)
		if !p.pass() {
			return saga.Answer{}, errDead
		}
		if name == p.Refuse {
			return saga.Answer{Outcome: saga.Refused, Reason: "REFUSED", Message: "Refused by the test."}, nil
		}
		a, err := action(ctx, c)
		if err == nil {
			p.answered(c, a)
		}
		if !p.pass() {
			return saga.Answer{}, errDead
		}
		return a, err
	}
}

// sent notes a call that is on its way from now on: it may arrive late, or again. Not of steps that the test refuses.
func (w *world) sent(c saga.Call) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.Action != w.Refuse {
		w.calls = append(w.calls, c)
	}
}

// answered notes a call's answer, which is the same each time.
func (w *world) answered(c saga.Call, a saga.Answer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.same(c, a)
}

func (w *world) same(c saga.Call, a saga.Answer) {
	first, known := w.first[c.Action]
	if !known {
		w.first[c.Action] = a
		return
	}
	x, _ := json.Marshal(first)
	y, _ := json.Marshal(a)
	if string(x) != string(y) && w.wrong == nil {
		w.wrong = fmt.Errorf("action %s answered %s, then %s", c.Action, x, y)
	}
}

// repeat has every call so far arrive again.
func (w *world) repeat() {
	for _, c := range w.calls {
		if a, err := w.services.Actions[c.Action](context.Background(), c); err == nil {
			w.same(c, a)
		}
	}
}

// stop is a person who says compensate, if the rules let them.
func (w *world) stop() {
	ctx := context.Background()
	s, err := w.store.Get(ctx, w.sagaID)
	if err != nil {
		return
	}
	said := map[string]saga.Register{}
	for name, r := range w.services.Registers {
		if said[name], err = r.Read(ctx, saga.Call{SagaID: w.sagaID, Action: name}); err != nil {
			return
		}
	}
	after, err := saga.Operate(w.definition, s, saga.Intervention{Verb: saga.Compensate, Actor: "test", Why: "test", Registers: said, At: time.Now()})
	if err == nil {
		_ = w.store.Override(ctx, after)
	}
}

// Lease is saga.Store's.
func (p process) Lease(ctx context.Context, owner string, epoch int64, ttl time.Duration) (int64, error) {
	epoch, err := p.Memory.Lease(ctx, owner, epoch, ttl)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil && p.alive == p.number {
		p.epoch = epoch
	}
	return epoch, err
}

// Insert is saga.Store's.
func (p process) Insert(ctx context.Context, sagas []saga.State) ([]saga.State, error) {
	added, err := p.Memory.Insert(ctx, sagas) // that it is stored is where the test begins
	if err != nil || !p.pass() {
		return nil, errDead
	}
	return added, nil
}

// Save is saga.Store's.
func (p process) Save(ctx context.Context, sagas []saga.State) []error {
	dead := make([]error, len(sagas))
	for i := range dead {
		dead[i] = errDead
	}
	if !p.pass() {
		return dead
	}
	errs := p.Memory.Save(ctx, sagas)
	now, err := p.Get(ctx, p.sagaID)
	alive := p.pass()
	if err == nil && now.Status.Rests() {
		close(p.rests)
	}
	if !alive {
		return dead
	}
	return errs
}
