package saga_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/saga"
	"example.com/billing/pkg/saga/sagatest"
)

// plan is a saga on a sagatest.Service: what it did, when, and what it refuses or hangs on.
type plan struct {
	definition saga.Definition
	refuse     string
	late       string        // this action answers a moment after the others
	hang       string        // this action has no answer
	open       chan struct{} // until this is closed
	stuck      string

	service *sagatest.Service
	mu      sync.Mutex
	did     []string
	began   time.Time
}

func newPlan(steps ...saga.Step) *plan {
	return &plan{
		service: sagatest.NewService(), open: make(chan struct{}), began: time.Now(),
		definition: saga.Definition{Name: "plan", Version: 1, Trigger: "Asked", Steps: steps, OnFailed: "tell_failed", OnCompensated: "tell_compensated"},
	}
}

func (p *plan) engine(t *testing.T, store saga.Store, change func(*saga.Config)) *saga.Engine {
	t.Helper()
	registry, err := saga.NewRegistry(p.definition)
	if err != nil {
		t.Fatal(err)
	}
	cfg := saga.Config{Registry: registry, Actions: map[string]saga.Action{}, Registers: map[string]saga.Registers{}, Store: store, Log: slog.New(slog.DiscardHandler)}
	for _, s := range p.definition.Steps {
		cfg.Actions[s.Name] = p.action(s.Name, p.service.Do)
		cfg.Registers[s.Name] = p.service
		if s.Compensation != "" {
			cfg.Actions[s.Compensation] = p.action(s.Compensation, p.service.Undo)
			cfg.Registers[s.Compensation] = p.service
		}
	}
	for _, name := range []string{p.definition.OnFailed, p.definition.OnCompensated} {
		cfg.Actions[name] = p.action(name, p.service.Do)
	}
	if change != nil {
		change(&cfg)
	}
	e, err := saga.NewEngine(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (p *plan) action(name string, kind func(func(saga.Call) (map[string]any, error)) saga.Action) saga.Action {
	do := kind(func(saga.Call) (map[string]any, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if name == p.refuse {
			return nil, es.Refuse("NO", "It may not be.")
		}
		p.did = append(p.did, name)
		return nil, nil
	})
	return func(ctx context.Context, c saga.Call) (saga.Answer, error) {
		p.mu.Lock()
		late, hang, isStuck := name == p.late, name == p.hang, name == p.stuck
		p.mu.Unlock()
		if late {
			time.Sleep(time.Millisecond)
		}
		if isStuck {
			return saga.Answer{Outcome: saga.Stuck, Reason: "LOST", Message: "Nobody knows."}, nil
		}
		if hang {
			select {
			case <-p.open:
			case <-time.After(time.Second):
				return saga.Answer{}, errLost
			case <-ctx.Done():
				return saga.Answer{}, ctx.Err()
			}
		}
		return do(ctx, c)
	}
}

func (p *plan) start(t *testing.T, e *saga.Engine, id, data string) {
	t.Helper()
	if n, err := e.Start(t.Context(), []saga.Trigger{{SagaID: id, EventType: "Asked", Data: json.RawMessage(data), At: time.Now()}}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
}

func (p *plan) effects() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.did)
}

func undo(name string) saga.Step {
	return saga.Step{Name: name, Kind: saga.Compensatable, Compensation: name + "_back"}
}

// types is a timeline without its texts.
func types(s saga.State) string {
	var out []string
	for _, e := range s.History() {
		out = append(out, strings.TrimSuffix(string(e.Type)+":"+e.Action, ":"))
	}
	return strings.Join(out, " ")
}

func TestDeadlines(t *testing.T) {
	pivot, tell := saga.Step{Name: "p", Kind: saga.Pivot}, saga.Step{Name: "r", Kind: saga.Retriable}
	for _, tc := range []struct {
		name    string
		steps   []saga.Step
		whole   time.Duration
		hang    string
		status  saga.Status // after two hours
		effects string
		told    string
	}{
		{"a step in time", []saga.Step{undo("a"), pivot}, time.Hour, "", saga.Completed, "a p", "started step_completed:a step_completed:p completed"},
		{"a first step without an answer", []saga.Step{undo("a"), pivot, tell}, time.Hour, "a", saga.Compensated, "tell_compensated",
			"started no_answer:a given_up step_cancelled:p compensation_completed:a_back compensated"},
		{"a pivot without an answer", []saga.Step{undo("a"), pivot, tell}, time.Hour, "p", saga.Compensated, "a a_back tell_compensated",
			"started step_completed:a no_answer:p given_up step_cancelled:p compensation_completed:a_back compensated"},
		{"after the pivot there is only forward", []saga.Step{undo("a"), pivot, tell}, time.Hour, "r", saga.InProgress, "a p",
			"started step_completed:a step_completed:p no_answer:r overdue"},
		{"of one step", []saga.Step{undo("a"), {Name: "p", Kind: saga.Pivot, Deadline: time.Minute}}, 0, "p", saga.Compensated, "a a_back tell_compensated",
			"started step_completed:a no_answer:p given_up step_cancelled:p compensation_completed:a_back compensated"},
		{"none: asked for ever", []saga.Step{undo("a"), pivot}, 0, "p", saga.InProgress, "a", "started step_completed:a no_answer:p"},
	} {
		for _, sleeps := range []bool{false, true} { // between attempts, once an engine runs that wakes it
			synctest.Test(t, func(t *testing.T) {
				p := newPlan(tc.steps...)
				p.definition.Deadline, p.hang = tc.whole, tc.hang
				store := saga.NewMemory()
				e := p.engine(t, store, nil)
				end := func() { stop(t, e) }
				if sleeps {
					end = running(t, e)
				}
				p.start(t, e, "s", `{}`)
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				s, err := store.Get(t.Context(), "s")
				if err != nil || s.Status != tc.status || strings.Join(p.effects(), " ") != tc.effects || types(s) != tc.told {
					t.Errorf("%s, sleeps %v: %s (%v), effects %v\n%s", tc.name, sleeps, s.Status, err, p.effects(), types(s))
				}
				if s.Status == saga.Compensated && s.ErrorReason != saga.ReasonTimedOut {
					t.Errorf("given up for %s", s.ErrorReason)
				}
				if sleeps && tc.hang != "" && e.Stats().Naps == 0 {
					t.Errorf("%s: it did not sleep", tc.name)
				}
				end()
			})
		}
	}
}

// A deadline passes, and the pivot turns out to have been done: there is only forward.
func TestADeadlineComesTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan(undo("a"), saga.Step{Name: "p", Kind: saga.Pivot}, saga.Step{Name: "r", Kind: saga.Retriable})
		p.definition.Deadline = time.Minute
		store := saga.NewMemory()
		e := p.engine(t, store, func(c *saga.Config) {
			pivot := c.Actions["p"]
			c.Actions["p"] = func(ctx context.Context, call saga.Call) (saga.Answer, error) {
				_, _ = pivot(ctx, call)
				return saga.Answer{}, errLost // it is done, and the answer is lost each time
			}
		})
		p.start(t, e, "s", `{}`)
		time.Sleep(time.Hour)
		synctest.Wait()
		s, err := store.Get(t.Context(), "s")
		want := "started step_completed:a no_answer:p given_up step_completed:p overdue step_completed:r completed"
		if err != nil || s.Status != saga.Completed || s.ErrorReason != "" || types(s) != want || strings.Join(p.effects(), " ") != "a p r" {
			t.Errorf("%s (%v), effects %v\n%s", s.Status, err, p.effects(), types(s))
		}
		stop(t, e)
	})
}

// A saga that waits for long leaves memory; it is taken up when it is time, also by an engine that starts meanwhile.
func TestDelaysOutliveTheEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan(undo("a"), saga.Step{Name: "p", Kind: saga.Pivot, Delay: 24 * time.Hour})
		store := saga.NewMemory()
		first := p.engine(t, store, nil)
		p.start(t, first, "s", `{}`)
		synctest.Wait()
		if n := first.Active(); n != 0 {
			t.Errorf("%d sagas are in memory while they wait for a day", n)
		}
		stop(t, first)
		time.Sleep(23 * time.Hour)
		second := p.engine(t, store, nil)
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan struct{})
		go func() { _ = second.Run(ctx); close(ran) }()
		time.Sleep(59 * time.Minute)
		synctest.Wait()
		if s, _ := store.Get(t.Context(), "s"); s.Status != saga.InProgress || len(p.effects()) != 1 {
			t.Errorf("before its time: %s, did %v", s.Status, p.effects())
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		s, _ := store.Get(t.Context(), "s")
		if took := s.UpdatedAt.Sub(s.CreatedAt); s.Status != saga.Completed || took < 24*time.Hour || took > 24*time.Hour+3*time.Second {
			t.Errorf("%s after %v", s.Status, took)
		}
		cancel()
		<-ran
		stop(t, second)
	})
}

// Steps side by side are asked at the same time. One that is refused has the others, whatever they answer, undone.
func TestStepsAtTheSameTime(t *testing.T) {
	flight, hotel := undo("flight"), undo("hotel")
	flight.Parallel, hotel.Parallel = "book", "book"
	for _, tc := range []struct {
		name, refuse, late, hang string
		status                   saga.Status
		effects                  []string // in alphabetical order
		step                     int
	}{
		{"all done", "", "", "", saga.Completed, []string{"flight", "hotel", "pay"}, 3},
		{"one refused, the other done", "flight", "flight", "", saga.Compensated, []string{"hotel", "hotel_back", "tell_compensated"}, 1},
		{"one refused, the other without an answer", "flight", "", "hotel", saga.Compensated, []string{"tell_compensated"}, 0},
		{"what comes after is refused", "pay", "", "", saga.Compensated, []string{"flight", "flight_back", "hotel", "hotel_back", "tell_compensated"}, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlan(flight, hotel, saga.Step{Name: "pay", Kind: saga.Pivot})
				p.refuse, p.late, p.hang = tc.refuse, tc.late, tc.hang
				store := saga.NewMemory()
				e := p.engine(t, store, nil)
				p.start(t, e, "s", `{}`)
				time.Sleep(time.Minute)
				synctest.Wait()
				s, err := store.Get(t.Context(), "s")
				did := p.effects()
				slices.Sort(did)
				if err != nil || s.Status != tc.status || s.CurrentStep != tc.step || !slices.Equal(did, tc.effects) {
					t.Errorf("%s at step %d (%v), did %v\n%s", s.Status, s.CurrentStep, err, did, types(s))
				}
				stop(t, e)
			})
		})
	}
	synctest.Test(t, func(t *testing.T) { // both are under way together
		p := newPlan(flight, hotel, saga.Step{Name: "pay", Kind: saga.Pivot})
		p.hang = "flight"
		store := saga.NewMemory()
		e := p.engine(t, store, nil)
		p.start(t, e, "s", `{}`)
		synctest.Wait()
		if s, _ := e.Get(t.Context(), "s"); !slices.Equal(p.effects(), []string{"hotel"}) || s.Records()[1].Status != saga.StepDone {
			t.Errorf("while one hangs: %v, %+v", p.effects(), s.Records())
		}
		close(p.open)
		stop(t, e)
	})
}

func TestConditions(t *testing.T) {
	for _, tc := range []struct {
		when  saga.Condition
		data  string
		holds bool
	}{
		{saga.Condition{Field: "gift"}, `{"gift":true}`, true},
		{saga.Condition{Field: "gift"}, `{"gift":false}`, false},
		{saga.Condition{Field: "gift"}, `{"gift":""}`, false},
		{saga.Condition{Field: "gift"}, `{"gift":0}`, false},
		{saga.Condition{Field: "gift"}, `{"gift":null}`, false},
		{saga.Condition{Field: "gift"}, `{}`, false},
		{saga.Condition{Field: "gift"}, `not JSON`, false},
		{saga.Condition{Field: "gift", Not: true}, `{}`, true},
		{saga.Condition{Field: "to.country", Equals: "CH"}, `{"to":{"country":"CH"}}`, true},
		{saga.Condition{Field: "to.country", Equals: "CH"}, `{"to":{"country":"DE"}}`, false},
		{saga.Condition{Field: "to.country", Equals: "CH"}, `{"to":"CH"}`, false},
		{saga.Condition{Field: "to.country", Equals: "CH", Not: true}, `{"to":{"country":"DE"}}`, true},
		{saga.Condition{Field: "n", Equals: "12345678901234567890"}, `{"n":12345678901234567890}`, true},
	} {
		if got := tc.when.Holds(json.RawMessage(tc.data)); got != tc.holds {
			t.Errorf("%+v of %s: %v", tc.when, tc.data, got)
		}
		wrap := undo("wrap")
		wrap.When = &tc.when
		p := newPlan(undo("a"), wrap, saga.Step{Name: "p", Kind: saga.Pivot})
		s := saga.NewState(p.definition, saga.Trigger{Data: json.RawMessage(tc.data)}, now)
		for all := saga.Next(p.definition, s); len(all) > 0; all = saga.Next(p.definition, s) {
			p.did = append(p.did, all[0].Action)
			s = saga.Apply(p.definition, s, all[0], done(), now)
		}
		if slices.Contains(p.did, "wrap") != tc.holds || s.Status != saga.Completed || s.CurrentStep != 3 {
			t.Errorf("%+v of %s: did %v, %s at step %d", tc.when, tc.data, p.did, s.Status, s.CurrentStep)
		}
	}
}

// ActiveMax 1: sagas are carried out one after the other, in the order of their triggers.
func TestOneAtATime(t *testing.T) {
	eachStore(t, func(t *testing.T, store saga.Store) {
		w := newWorld()
		var order []string
		w.before = func(_ context.Context, c saga.Call, _ int) error {
			order = append(order, c.SagaID) // one call at a time: the race detector says if not
			return nil
		}
		e := newEngine(t, store, w, func(c *saga.Config) { c.ActiveMax = 1 })
		ids := begin(t, e, 10)
		settled(t, store, ids[9])
		stop(t, e)
		if got := slices.Compact(order); len(got) != 10 {
			t.Errorf("the sagas took turns: %v", got)
		}
	})
}

// running has an engine look after unfinished sagas until the returned function stops it.
func running(t *testing.T, e *saga.Engine) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan struct{})
	go func() { _ = e.Run(ctx); close(ran) }()
	return func() { cancel(); <-ran; stop(t, e) }
}

// A delay that reaches beyond the deadline does not hide it.
func TestADeadlineBeforeTheDelayIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan(undo("a"), saga.Step{Name: "p", Kind: saga.Pivot, Delay: 3 * time.Hour})
		p.definition.Deadline = time.Hour
		store := saga.NewMemory()
		e := p.engine(t, store, nil)
		end := running(t, e)
		p.start(t, e, "s", `{}`)
		time.Sleep(time.Hour + time.Minute)
		synctest.Wait()
		if s, _ := store.Get(t.Context(), "s"); s.Status != saga.Compensated || s.Revision > 10 || strings.Join(p.effects(), " ") != "a a_back tell_compensated" {
			t.Errorf("%s at revision %d, effects %v\n%s", s.Status, s.Revision, p.effects(), types(s))
		}
		end()
	})
}

// A saga that has slept belongs to whoever woke it, and has its deadline.
func TestASagaThatSleptIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan(undo("a"), saga.Step{Name: "p", Kind: saga.Pivot, Delay: 24 * time.Hour, Deadline: 10 * time.Minute})
		p.hang = "p"
		store := saga.NewMemory()
		one, two := p.engine(t, store, nil), p.engine(t, store, nil)
		ends := []func(){running(t, one), running(t, two)}
		p.start(t, one, "s", `{}`)
		time.Sleep(24*time.Hour + 5*time.Minute)
		synctest.Wait()
		if n := one.Active() + two.Active(); n > 1 { // none, while it sleeps between attempts
			t.Errorf("%d engines work on it", n)
		}
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		if s, _ := store.Get(t.Context(), "s"); s.Status != saga.Compensated || s.Revision > 40 {
			t.Errorf("%s at revision %d\n%s", s.Status, s.Revision, types(s))
		}
		for _, end := range ends {
			end()
		}
	})
}

// An engine whose lease is not sure stops all the same.
func TestStopWithoutALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan(undo("a"), saga.Step{Name: "p", Kind: saga.Pivot})
		p.hang, p.refuse = "p", "p"
		store := &silent{Store: saga.NewMemory()}
		e := p.engine(t, store, nil)
		p.start(t, e, "s", `{}`)
		synctest.Wait()
		store.paused.Store(true)
		time.Sleep(10 * time.Second) // the lease has ended
		close(p.open)                // the refusal is to be stored, and is not
		time.Sleep(10 * time.Second)
		synctest.Wait()
		began := time.Now()
		stop(t, e)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %v to stop", took)
		}
	})
}

// A saga of a kind that an engine does not know is left to one that does.
func TestAnUnknownKindIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, newer := newPlan(undo("a"), saga.Step{Name: "p", Kind: saga.Pivot}), newPlan(undo("a"), saga.Step{Name: "p", Kind: saga.Pivot, Delay: time.Hour})
		newer.definition.Version = 2
		store := saga.NewMemory()
		first := newer.engine(t, store, nil)
		newer.start(t, first, "s", `{}`)
		synctest.Wait()
		stop(t, first)
		endOld := running(t, old.engine(t, store, nil))
		time.Sleep(2 * time.Hour)
		endNew := running(t, newer.engine(t, store, nil))
		time.Sleep(time.Minute)
		synctest.Wait()
		if s, _ := store.Get(t.Context(), "s"); s.Status != saga.Completed {
			t.Errorf("%s\n%s", s.Status, types(s))
		}
		endOld()
		endNew()
	})
}
