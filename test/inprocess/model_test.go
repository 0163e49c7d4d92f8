// Package inprocess runs the three services' own code in one process on stores in memory, thousands of random sequences in
// seconds, and compares it with package model. What needs Postgres, the lists and the sums of the books, is left to e2e.
package inprocess

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"example.com/billing/test/drive"
	"example.com/billing/test/model"
)

// system is model.System on the services in memory.
type system struct {
	*drive.Driver
	t        *rapid.T
	services *services
	opened   map[string]opened
}

// opened is an account of the walk.
type opened struct{ kind, currency string }

// Open is model.System's.
func (s *system) Open(key string, o model.Opening) model.Answer {
	a := s.Driver.Open(key, o)
	if a.Refused == "" {
		s.opened[a.ID] = opened{o.Type, o.Currency}
	}
	return a
}

// Expire is model.System's.
func (s *system) Expire(hold string) model.Answer {
	if err := s.services.expire(s.t.Context(), hold); err != nil {
		s.t.Fatalf("expire %s: %v", hold, err)
	}
	h := s.Hold(hold)
	return model.Answer{ID: hold, Status: h.Status, Amount: h.Amount}
}

// Books is model.System's, of the walk's accounts. They balance.
func (s *system) Books() map[string]model.Sums {
	out := map[string]model.Sums{}
	for id, a := range s.opened {
		n, err := model.Cents(s.Account(id).Balance)
		if err != nil {
			s.t.Fatalf("account %s: %v", id, err)
		}
		sums := out[a.currency]
		*map[string]*int64{"USER": &sums.User, "EXTERNAL": &sums.External, "SYSTEM": &sums.System}[a.kind] += n
		out[a.currency] = sums
	}
	for currency, sums := range out {
		if sums.User+sums.External+sums.System != 0 {
			s.t.Fatalf("the books in %s: %+v", currency, sums)
		}
	}
	return out
}

// walkers walk at the same time, each on services of its own: a walk mostly waits.
const walkers = 2

// The services do what the model does, whatever is asked of them in whatever order. A failure prints how to replay it;
// docs/testing.md says how to walk for longer.
func TestWalks(t *testing.T) {
	tally := &model.Tally{}
	t.Cleanup(func() { t.Log(tally) })
	for i := range walkers {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			services, n := start(t), 0
			rapid.Check(t, func(rt *rapid.T) {
				n++
				model.Walk(rt, &system{
					Driver: drive.New(rt.Context(), rt, services.account, services.transaction), t: rt, services: services, opened: map[string]opened{},
				}, fmt.Sprint("walk-", n), tally)
			})
		})
	}
}
