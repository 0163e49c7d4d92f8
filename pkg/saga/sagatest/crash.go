package sagatest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"

	"example.com/billing/pkg/saga"
)

// Subject is a saga to be tested with the services that it acts in.
type Subject struct {
	Definition saga.Definition
	Input      json.RawMessage
	// New makes new services: the actions, the registers that they have (may be nil), and what must hold when the saga has ended.
	New func() Services
	// Seed of the runs in which several things go wrong; 0 = 1. A run that fails prints what went wrong in it, which is
	// the same for the same seed.
	Seed uint64
}

// Services are what a saga acts in.
type Services struct {
	Actions   map[string]saga.Action
	Registers map[string]saga.Registers
	Check     func(end saga.State) error
}

// schedule is what goes wrong in one run. Edges are counted: one before and one after each call, and each write of the state.
type schedule struct {
	Refuse  string // a step that is refused; "" = none
	Crashes []int  // edges at which the engine's process ends
	Repeat  int    // at this edge every call so far arrives again; -1 = never
	Stop    int    // at this edge a person says compensate; -1 = never
}

// several is how many runs have several things going wrong.
const several = 100

// Crash runs a saga through its real engine with each step refused that can be, and in each of these with a crash at every edge, with
// every call repeated at every edge, with a person stopping it at every edge where the saga can be given up, and with several of
// these at once. Each run must end, by itself, in a state that the services agree with.
func Crash(t *testing.T, s Subject) {
	t.Helper()
	runs, err := s.Try()
	if err != nil {
		t.Error(err)
	}
	t.Logf("saga %s: %d runs", s.Definition.Name, runs)
}

// Try is what Crash does, and returns how many runs it did and the first that went wrong.
func (s Subject) Try() (runs int, err error) {
	if s.Seed == 0 {
		s.Seed = 1
	}
	most := 0
	try := func(sc schedule) (edges int) {
		if err != nil {
			return 0
		}
		runs++
		if edges, err = s.run(sc); err != nil {
			err = fmt.Errorf("saga %s, seed %d, %+v: %w", s.Definition.Name, s.Seed, sc, err)
		}
		return edges
	}
	for _, refuse := range s.refusals() {
		edges := try(schedule{Refuse: refuse, Repeat: -1, Stop: -1})
		most = max(most, edges)
		for edge := range edges {
			try(schedule{Refuse: refuse, Crashes: []int{edge}, Repeat: -1, Stop: -1})
			try(schedule{Refuse: refuse, Repeat: edge, Stop: -1})
			if s.canStop() {
				try(schedule{Refuse: refuse, Repeat: -1, Stop: edge})
				try(schedule{Refuse: refuse, Crashes: []int{edge}, Repeat: -1, Stop: edge})
			}
		}
	}
	random := rand.New(rand.NewPCG(s.Seed, 0)) //nolint:gosec // a schedule, no secret
	for range several {
		if err == nil {
			try(s.draw(random, most))
		}
	}
	return runs, err
}

// refusals are the steps that can be refused, and none.
func (s Subject) refusals() []string {
	all := []string{""}
	for _, step := range s.Definition.Steps {
		if step.Kind != saga.Retriable {
			all = append(all, step.Name)
		}
	}
	return all
}

// draw is a schedule of several things.
func (s Subject) draw(random *rand.Rand, edges int) schedule {
	refusals := s.refusals()
	sc := schedule{Refuse: refusals[random.IntN(len(refusals))], Repeat: random.IntN(2*edges) - edges, Stop: -1}
	for range random.IntN(4) {
		sc.Crashes = append(sc.Crashes, random.IntN(2*edges))
	}
	if s.canStop() {
		sc.Stop = random.IntN(2*edges) - edges
	}
	return sc
}

// canStop: a saga is given up only where its pivot can be asked.
func (s Subject) canStop() bool {
	if !s.Definition.CanBeGivenUp() {
		return false
	}
	registers := s.New().Registers
	for _, step := range s.Definition.Steps {
		if step.Kind == saga.Pivot && registers[step.Name] == nil {
			return false
		}
	}
	return true
}

// ends are the ways in which a run may end.
func (sc schedule) ends(s saga.State) error {
	switch {
	case s.Status == saga.NeedsAttention:
		return fmt.Errorf("it needs attention: %s: %s", s.ErrorReason, s.ErrorMessage)
	case sc.Refuse == "" && sc.Stop < 0 && s.Status != saga.Completed:
		return fmt.Errorf("nothing was refused, and it is %s: %s: %s", s.Status, s.ErrorReason, s.ErrorMessage)
	case sc.Refuse != "" && s.Status == saga.Completed:
		return fmt.Errorf("step %s was refused, and it is completed", sc.Refuse)
	}
	return nil
}
