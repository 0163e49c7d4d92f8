package saga

import (
	"encoding/json"
	"slices"
	"time"
)

// EntryType says what happened.
type EntryType string

// The types.
const (
	EntryStarted        EntryType = "started"
	EntryStepCompleted  EntryType = "step_completed"
	EntryRefused        EntryType = "refused"
	EntryUndone         EntryType = "compensation_completed"
	EntryCompleted      EntryType = "completed"
	EntryCompensated    EntryType = "compensated"
	EntryFailed         EntryType = "failed"
	EntryNeedsAttention EntryType = "needs_attention"
	EntryCancelled      EntryType = "step_cancelled" // the pivot was asked: it never will be done
	EntryGivenUp        EntryType = "given_up"       // no further forward: a deadline passed, or a person said so
	EntryOverdue        EntryType = "overdue"        // a deadline passed after the pivot; the saga goes on
	EntryNoAnswer       EntryType = "no_answer"      // an action is asked again and again
	EntryOperator       EntryType = "operator"       // a person stepped in
)

// Entry is one thing that happened to a saga. What an action answered stands in the state's Results and Actions.
type Entry struct {
	Type    EntryType `json:"type"`
	Action  string    `json:"action,omitempty"`  // the step or compensation; empty where it is none's
	Reason  string    `json:"reason,omitempty"`  // refused, needs_attention, given_up
	Message string    `json:"message,omitempty"` // refused, needs_attention, given_up, no_answer
	Verb    Verb      `json:"verb,omitempty"`    // operator
	Actor   string    `json:"actor,omitempty"`   // operator: who
	Why     string    `json:"why,omitempty"`     // operator: the reason they gave
	At      time.Time `json:"at"`
}

// endings are the entries of a saga that has ended.
var endings = map[Status]EntryType{Completed: EntryCompleted, Compensated: EntryCompensated, Failed: EntryFailed}

// History is the saga's timeline: everything that happened to it, in order. Entries are only added: the n-th keeps its type
// and its action. Of a state that was stored before there were timelines it is made from what the state says.
func (s State) History() []Entry {
	if len(s.Timeline) > 0 {
		return s.Timeline
	}
	all := []Entry{{Type: EntryStarted, At: s.CreatedAt}}
	for _, step := range s.Steps[:min(s.CurrentStep, len(s.Steps))] {
		all = append(all, Entry{Type: EntryStepCompleted, Action: step, At: s.UpdatedAt})
	}
	reason, message := s.ErrorReason, s.ErrorMessage
	if s.Status == NeedsAttention {
		reason, message = "", ""
		if s.Before != nil {
			reason, message = s.Before.ErrorReason, s.Before.ErrorMessage
		}
	}
	if reason != "" && s.CurrentStep < len(s.Steps) {
		all = append(all, Entry{Type: EntryRefused, Action: s.Steps[s.CurrentStep], Reason: reason, Message: message, At: s.UpdatedAt})
	}
	for _, c := range s.Actions {
		all = append(all, Entry{Type: EntryUndone, Action: c.Action, At: c.Timestamp})
	}
	switch end, ended := endings[s.Status]; {
	case ended:
		all = append(all, Entry{Type: end, At: s.UpdatedAt})
	case s.Status == NeedsAttention && s.Before != nil:
		all = append(all, Entry{Type: EntryNeedsAttention, Action: s.Before.Action, Reason: s.ErrorReason, Message: s.ErrorMessage, At: s.UpdatedAt})
	}
	return all
}

// Result is what the n-th entry's action answered (n from 0); nil = nothing.
func (s State) Result(n int) json.RawMessage {
	history := s.History()
	e := history[n]
	switch e.Type {
	case EntryStepCompleted:
		return s.Results[e.Action]
	case EntryUndone:
		i := slices.IndexFunc(s.Actions, func(c Compensation) bool { return c.Action == e.Action })
		if i >= 0 {
			return s.Actions[i].Result
		}
	}
	return nil
}

// record adds what the decision's action came to to the timeline. s is the state after it, was the one before.
func (s State) record(was State, did Decision, a Answer) State {
	e := Entry{Action: did.Action, At: s.UpdatedAt}
	switch {
	case s.Status == NeedsAttention:
		e.Type, e.Reason, e.Message = EntryNeedsAttention, a.Reason, a.Message
	case did.Op == OpCancel && a.Outcome == Refused:
		e.Type = EntryCancelled
	case a.Outcome == Refused:
		e.Type, e.Reason, e.Message = EntryRefused, a.Reason, a.Message
	case did.Op == OpStep || did.Op == OpCancel:
		e.Type = EntryStepCompleted
	case did.Op == OpUndo:
		e.Type = EntryUndone
	}
	s.Timeline = was.History()
	if e.Type != "" { // a report is told by the end it leads to
		s = s.tell(e)
	}
	return s.tellEnd()
}

// tell adds an entry to the timeline.
func (s State) tell(e Entry) State {
	s.Timeline = append(slices.Clone(s.History()), e)
	return s
}

// tellEnd adds the end, if the saga has ended.
func (s State) tellEnd() State {
	if end, ended := endings[s.Status]; ended {
		return s.tell(Entry{Type: end, At: s.UpdatedAt})
	}
	return s
}

// Unanswered is the state of a saga one of whose actions is asked again and again; that is told once.
func Unanswered(s State, action string, cause error, now time.Time) State {
	for _, e := range s.History() {
		if e.Type == EntryNoAnswer && e.Action == action {
			return s
		}
	}
	s.UpdatedAt = round(now)
	return s.tell(Entry{Type: EntryNoAnswer, Action: action, Message: cause.Error(), At: s.UpdatedAt})
}
