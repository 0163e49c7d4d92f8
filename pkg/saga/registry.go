package saga

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

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
	return r.newest(func(d Definition) bool { return d.Trigger == eventType })
}

// Newest returns the newest definition of a saga type.
func (r Registry) Newest(name string) (Definition, bool) {
	return r.newest(func(d Definition) bool { return d.Name == name })
}

func (r Registry) newest(of func(Definition) bool) (newest Definition, ok bool) {
	for _, d := range r.byKey {
		if of(d) && d.Version > newest.Version {
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

// DefinitionID is a saga type in one version.
type DefinitionID struct {
	Type    string
	Version int
}

// IDs lists all versions, in order.
func (r Registry) IDs() []DefinitionID {
	all := make([]DefinitionID, 0, len(r.byKey))
	for _, d := range r.byKey {
		all = append(all, DefinitionID{d.Name, d.Version})
	}
	slices.SortFunc(all, func(a, b DefinitionID) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Version, b.Version))
	})
	return all
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
