// Package saga orchestrates units of work that span services. A definition is data: the steps, which of them can be
// undone, and the point of no return. What to do next is a pure function of definition and state (Next); the engine
// carries it out and keeps the state in a store.
package saga

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Kind says what a step's refusal or success means for the rest.
type Kind string

// The kinds. A definition is: compensatable steps, then at most one pivot, then retriable steps.
const (
	Compensatable Kind = "compensatable" // can be undone until the pivot is done
	Pivot         Kind = "pivot"         // the point of no return: after it, only forward
	Retriable     Kind = "retriable"     // cannot be refused; asked again until it is done
)

// Definition describes a type of saga. Steps and compensations are carried out by the action of their name.
//
// What has a JSON key is the definition's contract with the sagas that run: it never changes under the same version. Deadlines
// and retries may.
type Definition struct {
	Name    string `json:"name"`    // saga type, such as "transfer"
	Version int    `json:"version"` // a running saga keeps the version it started with
	Trigger string `json:"trigger"` // event type that starts it
	Steps   []Step `json:"steps"`
	// OnFailed and OnCompensated are actions that tell the saga's subject how it ended, before the saga itself ends.
	OnFailed      string `json:"onFailed"`
	OnCompensated string `json:"onCompensated"`

	// Deadline is how long the saga may take once work on it began. When it is over, a saga whose pivot is not done is given up and
	// undone; one that is past its pivot goes on, and is marked overdue. 0 = none.
	Deadline time.Duration `json:"-"`
	Retry    RetryPolicy   `json:"-"` // of actions whose step has none of its own
}

// Step is one local transaction in one service.
type Step struct {
	Name         string     `json:"name"`
	Kind         Kind       `json:"kind"`
	Compensation string     `json:"compensation,omitempty"` // action that undoes the step; required for compensatable steps
	Parallel     string     `json:"parallel,omitempty"`     // steps side by side with the same word are carried out at the same time
	When         *Condition `json:"when,omitempty"`         // the step is skipped unless this holds; nil = always carried out

	Delay    time.Duration `json:"-"` // the step begins this long after the one before it has ended
	Deadline time.Duration `json:"-"` // how long the step may have no answer, after its delay; then the saga is given up. 0 = none
	Retry    *RetryPolicy  `json:"-"` // nil = the definition's
}

// Condition is about the trigger's data: whether a field is there, or is a certain text. It is decided when the saga starts.
type Condition struct {
	Field  string `json:"field"`            // a path such as "shipping.address"
	Equals string `json:"equals,omitempty"` // "" = the field is there, and neither null, false, 0 nor ""
	Not    bool   `json:"not,omitempty"`    // the other way round
}

// Holds reports whether the condition holds for a trigger's data.
func (c Condition) Holds(data json.RawMessage) bool {
	var at any
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber() // a number is compared as it is written
	if dec.Decode(&at) != nil {
		return c.Not
	}
	for name := range strings.SplitSeq(c.Field, ".") {
		object, _ := at.(map[string]any)
		at = object[name]
	}
	var holds bool
	switch c.Equals {
	case "":
		n, isNumber := at.(json.Number)
		f, _ := n.Float64()
		holds = at != nil && at != false && at != "" && (!isNumber || f != 0)
	default:
		holds = at != nil && fmt.Sprint(at) == c.Equals
	}
	return holds != c.Not
}

// RetryPolicy says how an action with an unknown outcome is asked again: without end, with a growing pause of which half is
// random. There is no last attempt: an outage, however long, must not become a mass compensation. Zero values mean the default.
type RetryPolicy struct {
	Initial time.Duration // the first pause; 50 ms
	Max     time.Duration // the longest pause; 10 s
}

func (p RetryPolicy) or(other RetryPolicy) RetryPolicy {
	if p.Initial <= 0 {
		p.Initial = other.Initial
	}
	if p.Max <= 0 {
		p.Max = other.Max
	}
	return p
}

// Validate says what is wrong with a definition, all of it.
func (d Definition) Validate() error {
	v := validation{of: d, names: map[string]bool{}}
	if d.Name == "" || d.Version < 1 || d.Trigger == "" || len(d.Steps) == 0 {
		v.bad("name, version (from 1), trigger and steps are required")
	}
	if d.OnFailed == "" || d.OnCompensated == "" {
		v.bad("OnFailed and OnCompensated are required")
	}
	if d.Deadline < 0 {
		v.bad("the deadline %v is below zero", d.Deadline)
	}
	for i, s := range d.Steps {
		v.step(i, s)
		v.parallel(i, s)
		v.times(s)
	}
	if !v.always && len(d.Steps) > 0 {
		v.bad("every step has a condition: one that is always carried out is required")
	}
	if d.Deadline > 0 && !d.CanBeGivenUp() {
		v.bad("the deadline %v ends nothing: no step can be undone or refused", d.Deadline)
	}
	return errors.Join(v.errs...)
}

// validation collects what is wrong.
type validation struct {
	of        Definition
	errs      []error
	names     map[string]bool
	past      bool // a pivot or retriable step was seen
	undoable  bool // a compensatable step was seen
	pivoted   bool
	retriable bool
	always    bool // a step without a condition was seen
}

func (v *validation) bad(format string, args ...any) {
	v.errs = append(v.errs, fmt.Errorf("saga %q version %d: "+format, append([]any{v.of.Name, v.of.Version}, args...)...))
}

func (v *validation) step(i int, s Step) {
	for _, name := range []string{s.Name, s.Compensation} {
		if name == "" && s.Name != "" {
			continue // no compensation
		}
		if name == "" || v.names[name] {
			v.bad("step %d: the name %q is empty or taken", i+1, name)
		}
		v.names[name] = true
	}
	switch s.Kind {
	case Compensatable:
		if v.past {
			v.bad("step %s: a compensatable step stands before the pivot and the retriable steps", s.Name)
		}
		if s.Compensation == "" {
			v.bad("step %s: a compensatable step has a compensation", s.Name)
		}
		v.undoable = true
	case Pivot:
		if v.past {
			v.bad("step %s: there is one pivot, before the retriable steps", s.Name)
		}
		v.past, v.pivoted = true, true
		if s.When != nil {
			v.bad("step %s: the pivot has no condition", s.Name)
		}
	case Retriable:
		if v.undoable && !v.pivoted && !v.retriable {
			v.bad("step %s: between compensatable and retriable steps stands a pivot", s.Name)
		}
		v.past, v.retriable = true, true
	default:
		v.bad("step %s: unknown kind %q", s.Name, s.Kind)
	}
	if s.Kind != Compensatable && s.Compensation != "" {
		v.bad("step %s: only a compensatable step has a compensation", s.Name)
	}
	if s.When == nil {
		v.always = true
	} else if s.When.Field == "" {
		v.bad("step %s: its condition names no field", s.Name)
	}
}

// parallel: steps at the same time stand side by side, are of one kind, and are not the pivot.
func (v *validation) parallel(i int, s Step) {
	if s.Parallel == "" {
		return
	}
	steps := v.of.Steps
	if s.Kind == Pivot {
		v.bad("step %s: the pivot stands alone", s.Name)
	}
	if i == 0 || steps[i-1].Parallel != s.Parallel {
		for _, before := range steps[:i] {
			if before.Parallel == s.Parallel {
				v.bad("step %s: steps of %q stand side by side", s.Name, s.Parallel)
				break
			}
		}
		return
	}
	if steps[i-1].Kind != s.Kind || steps[i-1].Delay != s.Delay {
		v.bad("step %s: steps of %q have one kind and one delay", s.Name, s.Parallel)
	}
}

func (v *validation) times(s Step) {
	if s.Delay < 0 || s.Deadline < 0 {
		v.bad("step %s: a delay or deadline is below zero", s.Name)
	}
	if s.Deadline > 0 && s.Kind == Retriable {
		v.bad("step %s: a retriable step has no deadline: after the pivot there is only forward", s.Name)
	}
}

// CanBeGivenUp reports whether sagas of this kind can be given up at all: they have a step that can be undone or refused.
func (d Definition) CanBeGivenUp() bool {
	return len(d.Steps) > 0 && d.Steps[0].Kind != Retriable
}

// pivot is the index of the pivot; -1 = there is none.
func (d Definition) pivot() int {
	for i, s := range d.Steps {
		if s.Kind == Pivot {
			return i
		}
	}
	return -1
}

// StepNames lists the steps in order.
func (d Definition) StepNames() []string {
	names := make([]string, len(d.Steps))
	for i, s := range d.Steps {
		names[i] = s.Name
	}
	return names
}

// actions lists every action the definition needs.
func (d Definition) actions() []string {
	names := d.StepNames()
	for _, s := range d.Steps {
		if s.Compensation != "" {
			names = append(names, s.Compensation)
		}
	}
	return append(names, d.OnFailed, d.OnCompensated)
}

// timed reports whether the passing of time alone can give the saga up.
func (d Definition) timed() bool {
	for _, s := range d.Steps {
		if s.Deadline > 0 {
			return true
		}
	}
	return d.Deadline > 0
}
