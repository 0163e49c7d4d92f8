package saga

import (
	"encoding/json"
	"maps"
	"slices"
	"time"
)

// Status is where a saga stands.
type Status string

// The statuses.
const (
	InProgress     Status = "in_progress"
	Completed      Status = "completed"
	Compensating   Status = "compensating"
	Compensated    Status = "compensated" // undone
	Failed         Status = "failed"      // refused before any effect
	NeedsAttention Status = "needs_attention"
)

// Statuses lists all of them.
func Statuses() []Status {
	return []Status{InProgress, Completed, Compensating, Compensated, Failed, NeedsAttention}
}

// Ended reports whether nothing more will happen.
func (s Status) Ended() bool { return s == Completed || s == Compensated || s == Failed }

// State is everything known of one saga. It is a value: changes return a new one.
type State struct {
	SagaID     string `json:"sagaId"`
	SagaType   string `json:"sagaType"`
	Definition int    `json:"definition"` // version of the definition it started with
	Status     Status `json:"status"`

	CurrentStep int                        `json:"currentStep"` // steps done
	Steps       []string                   `json:"steps"`
	Results     map[string]json.RawMessage `json:"results,omitempty"` // by step; a step without a result has no entry

	ErrorReason  string         `json:"errorReason,omitempty"`
	ErrorMessage string         `json:"errorMessage,omitempty"`
	Before       *Before        `json:"before,omitempty"` // only in needs_attention
	Undone       int            `json:"undone,omitempty"` // steps of those done that are undone again
	Actions      []Compensation `json:"compensationActions,omitempty"`
	Timeline     []Entry        `json:"timeline,omitempty"` // see History

	Input         json.RawMessage `json:"input"` // the trigger's data
	CorrelationID string          `json:"correlationId"`
	CausedBy      string          `json:"causedBy"` // id of the trigger event
	Metadata      map[string]any  `json:"metadata,omitempty"`

	Revision  int64     `json:"revision"` // of the stored row; a write with another one is refused
	CreatedAt time.Time `json:"createdAt"`
	UpdatedAt time.Time `json:"updatedAt"`
}

// TenantID is the tenant that the saga belongs to, by its metadata.
func (s State) TenantID() string {
	id, _ := s.Metadata["tenantId"].(string)
	return id
}

// Before is what a saga was when it came to need attention, and what it was doing: where it can go on from.
type Before struct {
	Action       string `json:"action"`
	Status       Status `json:"status"`
	ErrorReason  string `json:"errorReason,omitempty"`
	ErrorMessage string `json:"errorMessage,omitempty"`
}

// Compensation is one thing undone.
type Compensation struct {
	Action    string          `json:"action"`
	Result    json.RawMessage `json:"result,omitempty"`
	Timestamp time.Time       `json:"timestamp"`
}

// Op is what to do next.
type Op string

// The operations.
const (
	OpStep   Op = "step"   // carry out Decision.Action, the next step
	OpUndo   Op = "undo"   // carry out Decision.Action, the compensation of a step that is done
	OpReport Op = "report" // carry out Decision.Action: tell the subject how the saga ended
	OpNone   Op = "none"   // ended, or waiting for a person
)

// Decision is what to do next, and for which step.
type Decision struct {
	Op     Op
	Action string
	Step   Step // of OpStep and OpUndo
}

// Next decides what a saga does next. It is a pure function of definition and state.
func Next(d Definition, s State) Decision {
	switch {
	case s.Status == InProgress && s.ErrorReason == "" && s.CurrentStep < len(d.Steps):
		step := d.Steps[s.CurrentStep]
		return Decision{Op: OpStep, Action: step.Name, Step: step}
	case s.Status == InProgress && s.ErrorReason != "":
		return Decision{Op: OpReport, Action: d.OnFailed}
	case s.Status == Compensating:
		if left := s.CurrentStep - s.Undone; left > 0 {
			step := d.Steps[left-1]
			return Decision{Op: OpUndo, Action: step.Compensation, Step: step}
		}
		return Decision{Op: OpReport, Action: d.OnCompensated}
	default:
		return Decision{Op: OpNone}
	}
}

// Answer is what an action came to. An error in its place means that the outcome is unknown.
type Answer struct {
	Outcome Outcome
	Result  map[string]any // shown in the saga's state; nil = nothing to show
	Reason  string         // refused, stuck
	Message string         // refused, stuck
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
	was := s
	s.UpdatedAt = now.UTC().Truncate(time.Millisecond)
	if a.Outcome != Done && a.Reason == "" {
		a.Reason = "INTERNAL" // a reason is what tells a saga that was refused from one that goes on
	}
	switch {
	case a.Outcome != Done && a.Outcome != Refused, a.Outcome == Refused && !refusable(did):
		s.Before = &Before{Action: did.Action, Status: s.Status, ErrorReason: s.ErrorReason, ErrorMessage: s.ErrorMessage}
		s.Status = NeedsAttention
		s.ErrorReason, s.ErrorMessage = a.Reason, did.Action+": "+a.Message
	case a.Outcome == Refused:
		s.ErrorReason, s.ErrorMessage = a.Reason, a.Message
		if s.CurrentStep > 0 {
			s.Status = Compensating
		}
	case did.Op == OpStep:
		if a.Result != nil {
			s.Results = maps.Clone(s.Results)
			if s.Results == nil {
				s.Results = map[string]json.RawMessage{}
			}
			s.Results[did.Action] = mustJSON(a.Result)
		}
		if s.CurrentStep++; s.CurrentStep == len(d.Steps) {
			s.Status = Completed
		}
	case did.Op == OpUndo:
		s.Undone++
		c := Compensation{Action: did.Action, Timestamp: s.UpdatedAt}
		if a.Result != nil {
			c.Result = mustJSON(a.Result)
		}
		s.Actions = append(slices.Clone(s.Actions), c)
	case did.Op == OpReport && s.Status == Compensating:
		s.Status = Compensated
	case did.Op == OpReport:
		s.Status = Failed
	}
	return s.record(was, did, a)
}

// refusable: only a step up to the pivot can be refused.
func refusable(d Decision) bool { return d.Op == OpStep && d.Step.Kind != Retriable }

// mustJSON encodes a result. Results are maps of strings and numbers that our own actions make.
func mustJSON(v map[string]any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		return json.RawMessage(`{}`)
	}
	return b
}
