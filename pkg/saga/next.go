package saga

import (
	"encoding/json"
	"maps"
	"slices"
	"time"
)

// Op is what to do next.
type Op string

// The operations.
const (
	OpStep   Op = "step"   // carry out Decision.Action, a step
	OpCancel Op = "cancel" // close the register of Decision.Action, the pivot: it was done, or never will be
	OpUndo   Op = "undo"   // carry out Decision.Action, the compensation of a step that is done or may be
	OpReport Op = "report" // carry out Decision.Action: tell the subject how the saga ended
)

// Decision is one thing to do next, and for which step.
type Decision struct {
	Op     Op
	Action string
	Step   Step // of OpStep, OpCancel and OpUndo
}

// Next decides what a saga does next: several things only where steps are carried out at the same time, nothing where it has ended
// or waits for a person. It is a pure function of definition and state.
func Next(d Definition, s State) []Decision {
	switch {
	case s.Status == InProgress && s.ErrorReason == "":
		return stage(d, s)
	case s.Status == InProgress:
		return []Decision{{Op: OpReport, Action: d.OnFailed}}
	case s.Status == Compensating:
		return []Decision{backward(d, s)}
	default:
		return nil
	}
}

// stage is the first step that is pending, and those beside it that are carried out at the same time.
func stage(d Definition, s State) (next []Decision) {
	word := ""
	for i, r := range s.Records() {
		step := d.Steps[i]
		if len(next) > 0 && (word == "" || step.Parallel != word) {
			break
		}
		if r.Status == StepPending {
			next, word = append(next, Decision{Op: OpStep, Action: step.Name, Step: step}), step.Parallel
		}
	}
	return next
}

// backward is the next thing to undo. A pivot that may have been done is asked first: nothing before it is undone until it
// never can be.
func backward(d Definition, s State) Decision {
	records := s.Records()
	if i := d.pivot(); i >= 0 && records[i].Status == StepUnknown {
		return Decision{Op: OpCancel, Action: d.Steps[i].Name, Step: d.Steps[i]}
	}
	for i, r := range slices.Backward(records) {
		if r.Status == StepDone || r.Status == StepUnknown {
			return Decision{Op: OpUndo, Action: d.Steps[i].Compensation, Step: d.Steps[i]}
		}
	}
	if untouched(d, s) {
		return Decision{Op: OpReport, Action: d.OnFailed}
	}
	return Decision{Op: OpReport, Action: d.OnCompensated}
}

// untouched: the saga was given up before any step that would have to be undone was asked for.
func untouched(d Definition, s State) bool {
	for i, r := range s.Records() {
		if d.Steps[i].Kind == Compensatable && r.Status != StepPending && r.Status != StepRefused && r.Status != StepSkipped {
			return false
		}
	}
	return true
}

// LastReport is what told the subject of an ended saga how it ended: after the subject has lost that, it can be told again. ok is
// false where the saga has not ended, or told nobody.
func LastReport(d Definition, s State) (last Decision, ok bool) {
	switch s.Status {
	case Failed:
		return Decision{Op: OpReport, Action: d.OnFailed}, true
	case Compensated:
		return Decision{Op: OpReport, Action: d.OnCompensated}, true
	case Completed:
		for _, step := range slices.Backward(d.Steps) {
			if step.Kind == Retriable && (step.When == nil || step.When.Holds(s.Input)) {
				return Decision{Op: OpStep, Action: step.Name, Step: step}, true
			}
		}
	}
	return Decision{}, false
}

// Answer is what an action came to. An error in its place means that the outcome is unknown.
type Answer struct {
	Outcome Outcome
	Result  map[string]any // shown in the saga's state; nil = nothing to show
	Reason  string         // refused, stuck
	Message string         // refused, stuck

	StartedAt time.Time // the engine's: when it first asked
	Attempts  int       // the engine's: how often it asked
}

// Outcome of an action.
type Outcome string

// The outcomes.
const (
	Done    Outcome = "done"
	Refused Outcome = "refused" // a rule said no, durably: it will never be done
	Stuck   Outcome = "stuck"   // asking again cannot help, and it is not known that nothing happened: a person must look
)

// Apply records what the decision's action came to. It is a pure function.
func Apply(d Definition, s State, did Decision, a Answer, now time.Time) State {
	if s.Status == NeedsAttention { // the answer of a step beside the one that needs a person
		return s.beside(Apply(d, s.restored(), did, a, now))
	}
	was := s
	s.UpdatedAt, s.WakeAt, s.Naps = round(now), time.Time{}, 0
	if a.Outcome != Done && a.Reason == "" {
		a.Reason = "INTERNAL" // a reason is what tells a saga that was refused from one that goes on
	}
	switch {
	case a.Outcome != Done && a.Outcome != Refused, a.Outcome == Refused && !refusable(did):
		s = s.attention(did.Action, a.Reason, did.Action+": "+a.Message)
	case did.Op == OpStep && a.Outcome == Refused:
		s = s.refuse(d, did, a)
	case did.Op == OpStep:
		s = s.done(d, did, a)
	case did.Op == OpCancel:
		s = s.cancel(d, did, a)
	case did.Op == OpUndo:
		s = s.undo(d, did, a)
	case s.Status == Compensating && !untouched(d, s):
		s.Status = Compensated
	default:
		s.Status = Failed
	}
	return s.record(was, did, a)
}

// refusable: only a step up to the pivot, and the question whether the pivot was done, can be answered with no.
func refusable(d Decision) bool {
	return d.Op == OpStep && d.Step.Kind != Retriable || d.Op == OpCancel
}

// Index is where a step stands; -1 = it is none of the definition's.
func (d Definition) Index(step string) int {
	return slices.IndexFunc(d.Steps, func(s Step) bool { return s.Name == step })
}

// done: a step was done. One whose saga was given up meanwhile is there to be undone.
func (s State) done(d Definition, did Decision, a Answer) State {
	s = s.answered(d, did, a, StepDone).result(did.Step.Name, a)
	if s.Status == InProgress && s.CurrentStep == len(d.Steps) {
		s.Status = Completed
	}
	return s
}

// refuse: a step was refused. What was done before it is undone; what was asked at the same time may have been done.
func (s State) refuse(d Definition, did Decision, a Answer) State {
	s = s.answered(d, did, a, StepRefused)
	if s.Status == Compensating {
		return s // refused beside another one
	}
	at := d.Index(did.Step.Name)
	s = s.with(func(records []StepRecord) {
		for i := range records {
			if records[i].Status == StepPending && did.Step.Parallel != "" && d.Steps[i].Parallel == did.Step.Parallel && i != at {
				records[i].Status = StepUnknown
			}
		}
	})
	s.ErrorReason, s.ErrorMessage = a.Reason, a.Message
	for _, r := range s.Progress {
		if r.Status == StepDone || r.Status == StepUnknown {
			s.Status = Compensating
		}
	}
	return s
}

// cancel: the register of the pivot says whether it was done. If it was, so was all before it, and there is only forward.
func (s State) cancel(d Definition, did Decision, a Answer) State {
	if a.Outcome == Refused {
		return s.answered(d, did, a, StepCancelled)
	}
	s = s.with(func(records []StepRecord) {
		for i := range records {
			if records[i].Status == StepUnknown {
				records[i].Status, records[i].EndedAt = StepDone, s.UpdatedAt
			}
		}
	}).result(did.Step.Name, a)
	s.Status, s.ErrorReason, s.ErrorMessage = InProgress, "", ""
	if s.CurrentStep == len(d.Steps) {
		s.Status = Completed
	}
	return s
}

func (s State) undo(d Definition, did Decision, a Answer) State {
	i := d.Index(did.Step.Name)
	to := StepUndone
	if s.Records()[i].Status == StepUnknown {
		to = StepCancelled
	}
	s = s.mark(i, to)
	c := Compensation{Action: did.Action, Timestamp: s.UpdatedAt, StartedAt: round(a.StartedAt), Attempts: a.Attempts}
	if a.Result != nil {
		c.Result = mustJSON(a.Result)
	}
	s.Actions = append(slices.Clone(s.Actions), c)
	return s
}

// answered is the state with a step's record after its answer.
func (s State) answered(d Definition, did Decision, a Answer, to StepStatus) State {
	return s.with(func(records []StepRecord) {
		records[d.Index(did.Step.Name)] = StepRecord{Status: to, StartedAt: round(a.StartedAt), EndedAt: s.UpdatedAt, Attempts: a.Attempts}
	})
}

func (s State) result(step string, a Answer) State {
	if a.Result == nil {
		return s
	}
	s.Results = maps.Clone(s.Results)
	if s.Results == nil {
		s.Results = map[string]json.RawMessage{}
	}
	s.Results[step] = mustJSON(a.Result)
	return s
}

// attention is the state of a saga that a person must look at.
func (s State) attention(action, reason, message string) State {
	s.Before = &Before{Action: action, Status: s.Status, ErrorReason: s.ErrorReason, ErrorMessage: s.ErrorMessage}
	s.Status, s.ErrorReason, s.ErrorMessage = NeedsAttention, reason, message
	return s
}

// restored is the state as it was before it needed attention.
func (s State) restored() State {
	if s.Before != nil {
		s.Status, s.ErrorReason, s.ErrorMessage, s.Before = s.Before.Status, s.Before.ErrorReason, s.Before.ErrorMessage, nil
	}
	return s
}

// beside is the state that needs attention as before, with what another answer made of the rest.
func (s State) beside(after State) State {
	if after.Status == NeedsAttention {
		return after
	}
	after = after.attention(s.Before.Action, s.ErrorReason, s.ErrorMessage)
	return after
}

// mustJSON encodes a result. Results are maps of strings and numbers that our own actions make.
func mustJSON(v map[string]any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		return json.RawMessage(`{}`)
	}
	return b
}
