package saga

import (
	"maps"
	"slices"
	"strings"
	"time"

	"example.com/billing/pkg/es"
)

// Verb is what a person can do to a saga.
type Verb string

// The verbs.
const (
	Retry      Verb = "retry"      // carry out again what needed attention
	Skip       Verb = "skip"       // go on as if what needed attention had been done
	Compensate Verb = "compensate" // give up and undo
	Resume     Verb = "resume"     // go forward, also if undoing had begun with nothing undone yet
	Resolve    Verb = "resolve"    // end the saga here, as what its registers say
)

// Verbs lists them.
func Verbs() []Verb { return []Verb{Retry, Skip, Compensate, Resume, Resolve} }

// Register is what the write-once register of an action says in the service that the action belongs to.
type Register string

// The contents of a register.
const (
	RegisterOpen      Register = "open"      // nothing yet: it may still be done
	RegisterDone      Register = "done"      //
	RegisterRefused   Register = "refused"   // it never will be done
	RegisterCancelled Register = "cancelled" // it never will be done
)

// closed: what the register is of never will be done.
func (r Register) closed() bool { return r == RegisterRefused || r == RegisterCancelled }

// Intervention is a person's verb, with what the registers of the saga's actions said just before.
type Intervention struct {
	Verb      Verb
	Actor     string
	Why       string
	Registers map[string]Register // by action; those without a register are not in it
	Reports   map[string]Register // what the subject has heard, by action that tells it; those that cannot be read are not in it
	At        time.Time
}

// The reasons for which a verb is refused.
const (
	ReasonEnded          = "SAGA_ENDED"
	ReasonNotWaiting     = "SAGA_NOT_WAITING"
	ReasonPivotDone      = "SAGA_PIVOT_DONE"
	ReasonStepNotDone    = "SAGA_STEP_NOT_DONE"
	ReasonStepClosed     = "SAGA_STEP_CLOSED"
	ReasonMoneyInTransit = "SAGA_MONEY_IN_TRANSIT"
)

// ReasonStopped is the error reason of a saga that a person gave up.
const ReasonStopped = "SAGA_STOPPED"

// Operate is the state of a saga after a verb, or an *es.Refusal. It is a pure function. Whatever a person decides, nothing is
// undone whose pivot was done, and no money step counts as done that was not.
func Operate(d Definition, s State, v Intervention) (State, error) {
	if s.Status.Ended() {
		return s, es.Refuse(ReasonEnded, "The saga has ended: it is %s.", s.Status)
	}
	was := s
	s.Timeline = s.History()
	s, err := operations[v.Verb](d, s, v)
	if err != nil {
		return was, err
	}
	s.UpdatedAt, s.WakeAt, s.Naps = round(v.At), time.Time{}, 0
	s.Began = s.UpdatedAt
	action := ""
	if was.Before != nil {
		action = was.Before.Action
	}
	more := s.Timeline[len(was.History()):] // what the verb led to comes behind it
	said := was.tell(Entry{Type: EntryOperator, Action: action, Verb: v.Verb, Actor: v.Actor, Why: v.Why, At: s.UpdatedAt})
	s.Timeline = slices.Concat(said.Timeline, more)
	return s.tellEnd(), nil
}

var operations = map[Verb]func(Definition, State, Intervention) (State, error){
	Retry: retry, Skip: skip, Compensate: compensate, Resume: resume, Resolve: resolve,
}

// waits refuses a verb that is only for sagas that need attention.
func waits(s State, v Verb) error {
	if s.Status != NeedsAttention || s.Before == nil {
		return es.Refuse(ReasonNotWaiting, "The saga is %s and being worked on; %s is for sagas that need attention.", s.Status, v)
	}
	return nil
}

func retry(_ Definition, s State, v Intervention) (State, error) {
	if err := waits(s, v.Verb); err != nil {
		return s, err
	}
	return s.restored(), nil
}

// skip takes as done what needed attention: of an action with a register only if the register says that skipping it changes nothing.
func skip(d Definition, s State, v Intervention) (State, error) {
	if err := waits(s, v.Verb); err != nil {
		return s, err
	}
	action := s.Before.Action
	s = s.restored()
	for _, next := range Next(d, s) {
		if next.Action != action {
			continue
		}
		register, has := v.Registers[action]
		report := v.Reports[action]
		answer := Answer{Outcome: Done}
		switch {
		case report == RegisterOpen:
			return s, es.Refuse(ReasonStepNotDone, "The saga's subject waits to hear of %s, and without it would wait for ever.", action)
		case next.Op == OpCancel && register.closed():
			answer = Answer{Outcome: Refused, Reason: s.ErrorReason}
		case next.Op == OpUndo && v.Registers[next.Step.Name].closed(): // nothing to undo
		case !has && (next.Op == OpCancel || v.Registers[next.Step.Name] == RegisterDone):
			return s, es.Refuse(ReasonStepNotDone, "%s has no register that says whether going on without it would lose or make money.", action)
		case has && register != RegisterDone:
			return s, es.Refuse(ReasonStepNotDone, "The register of %s is %s: going on without it would lose or make money.", action, register)
		}
		timeline := s.Timeline
		s = Apply(d, s, next, answer, v.At)
		if s.Timeline = timeline; next.Op == OpStep && !has && report != RegisterDone {
			s = s.mark(d.Index(next.Step.Name), StepSkipped) // nobody knows that it was done
		}
		return s, nil
	}
	return s, es.Refuse(ReasonNotWaiting, "The saga does not wait for %s any more.", action)
}

// compensate gives a saga up, or lets one go on with undoing.
func compensate(d Definition, s State, v Intervention) (State, error) {
	before := s
	if s = s.restored(); s.Status == Compensating && before.Status == NeedsAttention {
		return s, nil
	}
	if s.Status == Compensating || s.ErrorReason != "" {
		return s, es.Refuse(ReasonNotWaiting, "The saga is being undone already.")
	}
	pivot, has := RegisterOpen, true
	if i := d.pivot(); i >= 0 {
		pivot, has = v.Registers[d.Steps[i].Name]
	}
	switch {
	case !CanGiveUp(d, s) || pivot == RegisterDone:
		return s, es.Refuse(ReasonPivotDone, "The saga is past the point of no return: from here there is only forward.")
	case !has:
		return s, es.Refuse(ReasonStepNotDone, "The pivot has no register that says whether it was done.")
	}
	return GiveUp(d, s, ReasonStopped, "Stopped by "+v.Actor+": "+v.Why, v.At), nil
}

// resume sends a saga forward. One that was being undone only while its pivot is still being asked: then nothing was undone yet, nor
// is anything on its way that would.
func resume(d Definition, s State, v Intervention) (State, error) {
	if err := waits(s, v.Verb); err != nil {
		return s, err
	}
	s = s.restored()
	for _, next := range Next(d, s) {
		if next.Op == OpUndo || next.Op == OpReport {
			return s, es.Refuse(ReasonStepClosed, "The saga is being undone (%s): it cannot go forward any more.", next.Action)
		}
	}
	for i, r := range s.Records() {
		if register := v.Registers[d.Steps[i].Name]; r.Status != StepDone && r.Status != StepSkipped && register.closed() {
			return s, es.Refuse(ReasonStepClosed, "The register of %s is %s: it never will be done.", d.Steps[i].Name, register)
		}
	}
	s = s.with(func(records []StepRecord) {
		for i := range records {
			if records[i].Status == StepUnknown {
				records[i].Status = StepPending
			}
		}
	})
	s.Status, s.ErrorReason, s.ErrorMessage = InProgress, "", ""
	return s, nil
}

// resolve has a saga end as what its registers say: all in effect, or nothing. Anything between would leave money in transit. What
// is left to tell others is told; only where that is what the saga stopped at, and its subject does not wait for it, it counts as
// done by hand.
func resolve(d Definition, s State, v Intervention) (State, error) {
	if err := waits(s, v.Verb); err != nil {
		return s, err
	}
	stopped := s.Before.Action
	s = s.restored()
	in, out, open := s.effects(d, v.Registers)
	switch {
	case len(in) > 0 && len(out)+len(open) > 0:
		return s, es.Refuse(ReasonMoneyInTransit, "Done is %s, and not %s: the money between would stay in transit.",
			strings.Join(in, ", "), strings.Join(slices.Concat(slices.Sorted(maps.Keys(out)), open), ", "))
	case len(in) > 0 && s.Status == Compensating:
		return s, es.Refuse(ReasonMoneyInTransit, "Done is %s, and it is being undone.", strings.Join(in, ", "))
	case len(open) > 0:
		return s, es.Refuse(ReasonStepNotDone, "The register of %s is open: it may still be done.", strings.Join(open, ", "))
	case len(in) > 0:
		s = s.with(func(records []StepRecord) {
			for i, step := range d.Steps {
				if slices.Contains(in, step.Name) {
					records[i].Status = StepDone
				} else if step.Name == stopped && records[i].Status == StepPending && v.Reports[stopped] != RegisterOpen {
					records[i].Status = StepSkipped
				}
			}
		})
		s.Status, s.ErrorReason, s.ErrorMessage = InProgress, "", ""
		if s.CurrentStep == len(d.Steps) {
			s.Status = Completed
		}
		return s, nil
	}
	if next := Next(d, s); len(next) == 1 && next[0].Op == OpReport { // that is what it stopped at
		if v.Reports[next[0].Action] == RegisterOpen {
			return s, nil // told again
		}
		timeline := s.Timeline
		s = Apply(d, s, next[0], Answer{Outcome: Done}, v.At)
		s.Timeline = timeline
		return s, nil
	}
	s = s.with(func(records []StepRecord) {
		for i, step := range d.Steps {
			if to, ok := out[step.Name]; ok {
				records[i].Status = to
			}
		}
	})
	if s.Status = Compensating; s.ErrorReason == "" {
		s.ErrorReason, s.ErrorMessage = ReasonStopped, "Resolved by "+v.Actor+": "+v.Why
	}
	return s, nil
}

// effects sorts the steps that say whether a saga is in effect: those that are, those that are not and never will be, with how their
// records say it, and those that may still be.
func (s State) effects(d Definition, registers map[string]Register) (in []string, out map[string]StepStatus, open []string) {
	out = map[string]StepStatus{}
	for i, r := range s.Records() {
		step := d.Steps[i]
		register, has := registers[step.Name]
		if r.Status == StepSkipped || !has && step.Kind == Retriable && (d.CanBeGivenUp() || len(registers) > 0) {
			continue // what only tells of the end does not say whether the saga is in effect
		}
		if !has {
			register = assumed(r.Status)
		}
		undone := registers[step.Compensation] == RegisterDone || r.Status == StepUndone
		switch {
		case register == RegisterDone && !undone:
			in = append(in, step.Name)
		case register == RegisterOpen && !undone:
			open = append(open, step.Name)
		case undone:
			out[step.Name] = StepUndone
		case register == RegisterRefused && r.Status != StepUnknown: // of one that was given up others may have told already
			out[step.Name] = StepRefused
		default:
			out[step.Name] = StepCancelled
		}
	}
	return in, out, open
}

// assumed is what the register of an action without one would say, by the saga's own record.
func assumed(r StepStatus) Register {
	switch r {
	case StepDone, StepUndone:
		return RegisterDone
	case StepRefused:
		return RegisterRefused
	case StepCancelled:
		return RegisterCancelled
	}
	return RegisterOpen
}
