package saga_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/saga"
)

type said = map[string]saga.Register

// Each verb, on a transfer that came to need attention in each way: what it leads to, or why it is refused.
func TestVerbs(t *testing.T) {
	d := transfer()
	forward := said{"reserve": "done", "debit": "done", "credit": "open", "release": "open", "debit_back": "open"}
	with := func(base said, more said) said {
		out := said{}
		for k, v := range base {
			out[k] = v
		}
		for k, v := range more {
			out[k] = v
		}
		return out
	}
	back := with(forward, said{"credit": "refused"})
	past := with(forward, said{"credit": "done"})
	for _, tc := range []struct {
		name    string
		answers map[string]saga.Answer // how it came to where it is
		verb    saga.Verb
		says    said
		want    saga.Status // "" = refused
		reason  string
		next    string // what is done then
	}{
		{"retry at the pivot", map[string]saga.Answer{"credit": stuck()}, saga.Retry, forward, saga.InProgress, "", "credit"},
		{"retry a compensation", map[string]saga.Answer{"credit": refusal(), "debit_back": stuck()}, saga.Retry, back, saga.Compensating, "", "debit_back"},
		{"retry after the pivot", map[string]saga.Answer{"complete": stuck()}, saga.Retry, past, saga.InProgress, "", "complete"},
		{"retry telling of a failure", map[string]saga.Answer{"reserve": refusal(), "tell_failed": stuck()}, saga.Retry, said{}, saga.InProgress, "", "tell_failed"},
		{"retry what has ended", nil, saga.Retry, past, "", saga.ReasonEnded, ""},

		{"skip a money step whose register is open", map[string]saga.Answer{"credit": stuck()}, saga.Skip, forward, "", saga.ReasonStepNotDone, ""},
		{"skip a money step that was refused", map[string]saga.Answer{"credit": stuck()}, saga.Skip, back, "", saga.ReasonStepNotDone, ""},
		{"skip a money step that was done", map[string]saga.Answer{"credit": stuck()}, saga.Skip, past, saga.InProgress, "", "complete"},
		{"skip a step without a register", map[string]saga.Answer{"complete": stuck()}, saga.Skip, past, saga.Completed, "", ""},
		{"skip a compensation that was not done", map[string]saga.Answer{"credit": refusal(), "debit_back": stuck()}, saga.Skip, back, "", saga.ReasonStepNotDone, ""},
		{"skip a compensation that was done", map[string]saga.Answer{"credit": refusal(), "debit_back": stuck()}, saga.Skip, with(back, said{"debit_back": "done"}), saga.Compensating, "", "release"},
		{"skip a compensation of what was never done", map[string]saga.Answer{"credit": refusal(), "debit_back": stuck()}, saga.Skip, with(back, said{"debit": "cancelled"}), saga.Compensating, "", "release"},

		{"compensate before the pivot", map[string]saga.Answer{"debit": stuck()}, saga.Compensate, said{"credit": "open"}, saga.Compensating, "", "credit"},
		{"compensate a pivot without a register", map[string]saga.Answer{"debit": stuck()}, saga.Compensate, said{}, "", saga.ReasonStepNotDone, ""},
		{"compensate while the pivot's register is open", map[string]saga.Answer{"credit": stuck()}, saga.Compensate, forward, saga.Compensating, "", "credit"},
		{"compensate once the pivot's register is done", map[string]saga.Answer{"credit": stuck()}, saga.Compensate, past, "", saga.ReasonPivotDone, ""},
		{"compensate after the pivot", map[string]saga.Answer{"complete": stuck()}, saga.Compensate, past, "", saga.ReasonPivotDone, ""},
		{"compensate what is being undone", map[string]saga.Answer{"credit": refusal(), "debit_back": stuck()}, saga.Compensate, back, saga.Compensating, "", "debit_back"},

		{"resume at the pivot", map[string]saga.Answer{"credit": stuck()}, saga.Resume, forward, saga.InProgress, "", "credit"},
		{"resume at a pivot that was refused", map[string]saga.Answer{"credit": stuck()}, saga.Resume, back, "", saga.ReasonStepClosed, ""},
		{"resume what is being undone", map[string]saga.Answer{"credit": refusal(), "debit_back": stuck()}, saga.Resume, back, "", saga.ReasonStepClosed, ""},
		{"resume after the pivot", map[string]saga.Answer{"complete": stuck()}, saga.Resume, past, saga.InProgress, "", "complete"},

		{"resolve with all in effect", map[string]saga.Answer{"complete": stuck()}, saga.Resolve, past, saga.Completed, "", ""},
		{"resolve at a pivot that was done", map[string]saga.Answer{"credit": stuck()}, saga.Resolve, past, saga.InProgress, "", "complete"},
		{"resolve at a first step that was refused", map[string]saga.Answer{"reserve": stuck()}, saga.Resolve,
			said{"reserve": "refused", "debit": "cancelled", "credit": "cancelled"}, saga.Compensating, "", "tell_compensated"},
		{"resolve with money in transit", map[string]saga.Answer{"credit": refusal(), "debit_back": stuck()}, saga.Resolve, back, "", saga.ReasonMoneyInTransit, ""},
		{"resolve at an open register", map[string]saga.Answer{"reserve": stuck()}, saga.Resolve, said{"reserve": "open", "debit": "open", "credit": "open"}, "", saga.ReasonStepNotDone, ""},
		{"resolve with nothing done", map[string]saga.Answer{"reserve": refusal(), "tell_failed": stuck()}, saga.Resolve,
			said{"reserve": "refused", "debit": "cancelled", "credit": "cancelled"}, saga.Failed, "", ""},
		{"resolve with all undone", map[string]saga.Answer{"credit": refusal(), "tell_compensated": stuck()}, saga.Resolve,
			with(back, said{"release": "done", "debit_back": "done"}), saga.Compensated, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _ := play(d, tc.answers)
			before := len(s.History())
			after, err := saga.Operate(d, s, saga.Intervention{Verb: tc.verb, Actor: "ann", Why: "because", Registers: tc.says, At: now})
			var refusal *es.Refusal
			if tc.want == "" {
				if !errors.As(err, &refusal) || refusal.Reason != tc.reason || len(after.History()) != before || after.Status != s.Status {
					t.Fatalf("%s, %v", after.Status, err)
				}
				return
			}
			if err != nil || after.Status != tc.want {
				t.Fatalf("%s, %v", after.Status, err)
			}
			e := after.History()[before]
			if e.Type != saga.EntryOperator || e.Verb != tc.verb || e.Actor != "ann" || e.Why != "because" {
				t.Errorf("the timeline says %+v", e)
			}
			next := saga.Next(d, after)
			if tc.next == "" && len(next) > 0 || tc.next != "" && (len(next) != 1 || next[0].Action != tc.next) {
				t.Errorf("then it does %+v", next)
			}
		})
	}
	s := saga.NewState(d, trigger(), now)
	for _, verb := range saga.Verbs() {
		after, err := saga.Operate(d, s, saga.Intervention{Verb: verb, Registers: said{"credit": "open"}, At: now})
		if verb == saga.Compensate {
			if err != nil || after.Status != saga.Compensating || after.ErrorReason != saga.ReasonStopped {
				t.Errorf("compensate what is under way: %s, %v", after.Status, err)
			}
		} else if r := es.RefusalOf(err); r == nil || r.Reason != saga.ReasonNotWaiting {
			t.Errorf("%s what is under way: %s, %v", verb, after.Status, err)
		}
	}
}

// A step that tells the subject of the saga's end is not passed over while the subject waits for it: skip is refused, and resolve tells
// it again. Where the subject does not wait, or never will hear, both go on.
func TestVerbsReadTheReport(t *testing.T) {
	d := transfer()
	past := said{"reserve": "done", "debit": "done", "credit": "done", "release": "open", "debit_back": "open"}
	back := said{"reserve": "done", "debit": "done", "credit": "refused", "release": "done", "debit_back": "done"}
	none := said{"reserve": "refused", "debit": "cancelled", "credit": "cancelled"}
	for _, tc := range []struct {
		report  string
		answers map[string]saga.Answer
		says    said
		ended   saga.Status
	}{
		{"complete", map[string]saga.Answer{"complete": stuck()}, past, saga.Completed},
		{"tell_failed", map[string]saga.Answer{"reserve": refusal(), "tell_failed": stuck()}, none, saga.Failed},
		{"tell_compensated", map[string]saga.Answer{"credit": refusal(), "tell_compensated": stuck()}, back, saga.Compensated},
	} {
		for _, verb := range []saga.Verb{saga.Skip, saga.Resolve} {
			for _, heard := range []saga.Register{saga.RegisterOpen, saga.RegisterDone, saga.RegisterRefused} {
				s, _ := play(d, tc.answers)
				after, err := saga.Operate(d, s, saga.Intervention{Verb: verb, Registers: tc.says, Reports: said{tc.report: heard}, At: now})
				next := saga.Next(d, after)
				switch {
				case heard != saga.RegisterOpen:
					if err != nil || after.Status != tc.ended {
						t.Errorf("%s of %s, which is %s: %s, %v", verb, tc.report, heard, after.Status, err)
					}
				case verb == saga.Skip:
					if r := es.RefusalOf(err); r == nil || r.Reason != saga.ReasonStepNotDone {
						t.Errorf("skip of %s, for which the subject waits: %s, %v", tc.report, after.Status, err)
					}
				case err != nil || len(next) != 1 || next[0].Action != tc.report:
					t.Errorf("resolve of %s, for which the subject waits: %s, then %v, %v", tc.report, after.Status, next, err)
				}
			}
		}
	}
}

// A verb reads the registers, is stored, and the saga goes on at once, though its engine was in the middle of asking.
func TestIntervene(t *testing.T) {
	for _, tc := range []struct {
		name        string
		hang, stuck string
		verbs       []saga.Verb
		status      saga.Status
		effects     string
	}{
		{"stop a saga that asks", "p", "", []saga.Verb{saga.Compensate}, saga.Compensated, "a a_back tell_compensated"},
		{"retry", "", "p", []saga.Verb{saga.Retry}, saga.Completed, "a p r"},
		{"resume", "", "p", []saga.Verb{saga.Resume}, saga.Completed, "a p r"},
		{"skip", "", "r", []saga.Verb{saga.Skip}, saga.Completed, "a p"},
		{"resolve", "", "r", []saga.Verb{saga.Resolve}, saga.Completed, "a p"},
		{"retry, then stop", "", "a", []saga.Verb{saga.Compensate}, saga.Compensated, "tell_compensated"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlan(undo("a"), saga.Step{Name: "p", Kind: saga.Pivot}, saga.Step{Name: "r", Kind: saga.Retriable})
				p.hang, p.stuck = tc.hang, tc.stuck
				store := saga.NewMemory()
				e := p.engine(t, store, func(c *saga.Config) { delete(c.Registers, "r") })
				ctx, cancel := context.WithCancel(t.Context())
				ran := make(chan struct{})
				go func() { _ = e.Run(ctx); close(ran) }()
				p.start(t, e, "s", `{}`)
				time.Sleep(time.Minute)
				synctest.Wait()
				p.mu.Lock()
				p.stuck = ""
				p.mu.Unlock()
				for _, verb := range tc.verbs {
					after, err := e.Intervene(t.Context(), "s", saga.Intervention{Verb: verb, Actor: "ann", Why: "because"})
					if err != nil {
						t.Fatal(err)
					}
					if got, err := store.Get(t.Context(), "s"); err != nil || got.Revision != after.Revision || types(got) != types(after) {
						t.Errorf("stored is revision %d, %s", got.Revision, types(got))
					}
				}
				time.Sleep(5 * time.Second)
				synctest.Wait()
				s, err := store.Get(t.Context(), "s")
				if err != nil || s.Status != tc.status || strings.Join(p.effects(), " ") != tc.effects || e.Active() != 0 {
					t.Errorf("%s (%v), effects %v\n%s", s.Status, err, p.effects(), types(s))
				}
				if i := slices.IndexFunc(s.Timeline, func(e saga.Entry) bool { return e.Type == saga.EntryOperator }); i < 0 || s.Timeline[i].Actor != "ann" {
					t.Errorf("the timeline forgot who: %+v", s.Timeline)
				}
				if _, err := e.Intervene(t.Context(), "s", saga.Intervention{Verb: saga.Retry}); es.RefusalOf(err) == nil {
					t.Errorf("a verb on what has ended: %v", err)
				}
				if _, err := e.Intervene(t.Context(), "unknown", saga.Intervention{Verb: saga.Retry}); !errors.Is(err, saga.ErrNotFound) {
					t.Errorf("a verb on what is not there: %v", err)
				}
				cancel()
				<-ran
				stop(t, e)
			})
		})
	}
}

// The engine reads what the subject has heard before it decides a verb.
func TestInterveneReadsTheReport(t *testing.T) {
	p := newPlan(saga.Step{Name: "p", Kind: saga.Pivot}, saga.Step{Name: "r", Kind: saga.Retriable})
	p.stuck = "r"
	heard := saga.RegisterOpen
	store := saga.NewMemory()
	e := p.engine(t, store, func(c *saga.Config) {
		delete(c.Registers, "r")
		c.Reports = map[string]saga.ReadReport{"r": func(context.Context, saga.Call) (saga.Register, error) { return heard, nil }}
	})
	defer stop(t, e)
	p.start(t, e, "s", `{}`)
	settled(t, store, "s")
	skip := func() (saga.State, error) {
		return e.Intervene(t.Context(), "s", saga.Intervention{Verb: saga.Skip, Actor: "ann", Why: "because"})
	}
	if s, err := skip(); es.RefusalOf(err) == nil {
		t.Errorf("skipped while the subject waits: %s, %v", s.Status, err)
	}
	heard = saga.RegisterRefused
	if s, err := skip(); err != nil || s.Status != saga.Completed {
		t.Errorf("not skipped though the subject does not wait: %s, %v", s.Status, err)
	}
}
