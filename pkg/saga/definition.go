// Package saga orchestrates units of work that span services. A definition is data: the steps, which of them can be
// undone, and the point of no return. What to do next is a pure function of definition and state (Next); the engine
// carries it out and keeps the state in a store.
package saga

import (
	"errors"
	"fmt"
	"slices"
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

// Step is one local transaction in one service.
type Step struct {
	Name         string
	Kind         Kind
	Compensation string // action that undoes the step; required for compensatable steps
}

// Definition describes a type of saga. Steps and compensations are carried out by the action of their name.
type Definition struct {
	Name    string // saga type, such as "transfer"
	Version int    // a running saga keeps the version it started with
	Trigger string // event type that starts it
	Steps   []Step
	// OnFailed and OnCompensated are actions that tell the saga's subject how it ended, before the saga itself ends.
	OnFailed      string
	OnCompensated string
}

// Validate says what is wrong with a definition, all of it.
func (d Definition) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("saga %q version %d: "+format, append([]any{d.Name, d.Version}, args...)...))
	}
	if d.Name == "" || d.Version < 1 || d.Trigger == "" || len(d.Steps) == 0 {
		bad("name, version (from 1), trigger and steps are required")
	}
	if d.OnFailed == "" || d.OnCompensated == "" {
		bad("OnFailed and OnCompensated are required")
	}
	seen := map[string]bool{}
	past := false // the pivot
	for i, s := range d.Steps {
		if s.Name == "" || seen[s.Name] {
			bad("step %d: the name %q is empty or taken", i+1, s.Name)
		}
		seen[s.Name] = true
		switch s.Kind {
		case Compensatable:
			if past {
				bad("step %s: a compensatable step stands before the pivot and the retriable steps", s.Name)
			}
			if s.Compensation == "" {
				bad("step %s: a compensatable step has a compensation", s.Name)
			}
		case Pivot:
			if past {
				bad("step %s: there is one pivot, before the retriable steps", s.Name)
			}
			past = true
		case Retriable:
			past = true
		default:
			bad("step %s: unknown kind %q", s.Name, s.Kind)
		}
		if s.Kind != Compensatable && s.Compensation != "" {
			bad("step %s: only a compensatable step has a compensation", s.Name)
		}
	}
	return errors.Join(errs...)
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

// RetryPolicy says how an action with an unknown outcome is asked again: without end, with a growing pause.
type RetryPolicy struct {
	Initial time.Duration // 50 ms
	Max     time.Duration // 10 s
}

func (p RetryPolicy) orDefault() RetryPolicy {
	if p.Initial <= 0 {
		p.Initial = 50 * time.Millisecond
	}
	if p.Max <= 0 {
		p.Max = 10 * time.Second
	}
	return p
}

// Registry is a set of validated definitions.
type Registry struct{ byKey map[string]Definition }

// NewRegistry validates definitions.
func NewRegistry(defs ...Definition) (Registry, error) {
	r := Registry{byKey: map[string]Definition{}}
	var errs []error
	for _, d := range defs {
		errs = append(errs, d.Validate())
		key := defKey(d.Name, d.Version)
		if _, taken := r.byKey[key]; taken {
			errs = append(errs, fmt.Errorf("saga %s is defined twice", key))
		}
		r.byKey[key] = d
	}
	return r, errors.Join(errs...)
}

// Find returns a definition by name and version.
func (r Registry) Find(name string, version int) (Definition, bool) {
	d, ok := r.byKey[defKey(name, version)]
	return d, ok
}

// ByTrigger returns the newest definition that an event type starts.
func (r Registry) ByTrigger(eventType string) (Definition, bool) {
	var newest Definition
	for _, d := range r.byKey {
		if d.Trigger == eventType && d.Version > newest.Version {
			newest = d
		}
	}
	return newest, newest.Version > 0
}

// Newest returns the newest definition of a saga type.
func (r Registry) Newest(name string) (Definition, bool) {
	var newest Definition
	for _, d := range r.byKey {
		if d.Name == name && d.Version > newest.Version {
			newest = d
		}
	}
	return newest, newest.Version > 0
}

// Triggers lists the event types that start sagas, in alphabetical order.
func (r Registry) Triggers() []string {
	return r.collect(func(d Definition) string { return d.Trigger })
}

// Types lists the saga types in alphabetical order.
func (r Registry) Types() []string {
	return r.collect(func(d Definition) string { return d.Name })
}

func (r Registry) collect(of func(Definition) string) []string {
	var out []string
	for _, d := range r.byKey {
		out = append(out, of(d))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func defKey(name string, version int) string { return fmt.Sprintf("%s/%d", name, version) }
