package api

import (
	"strings"
	"testing"

	"github.com/google/uuid"

	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
)

// contractStep is a step with what it does to an account that holds 100.00, of which 60.00 are held.
type contractStep struct {
	step  string
	kind  accountv1.PostingKind
	after [3]string // posted, held, available
	undo  bool      // it is undone by a rollback; else by nothing
}

var (
	contractBefore = [3]string{"100.00", "60.00", "40.00"}
	contractSteps  = map[string]contractStep{
		"debit":   {"debit_source", debit, [3]string{"70.00", "60.00", "10.00"}, true},
		"credit":  {"credit_destination", credit, [3]string{"130.00", "60.00", "70.00"}, true},
		"capture": {"debit_customer", debit, [3]string{"70.00", "30.00", "40.00"}, true},
		"hold":    {"place_hold", placing, [3]string{"100.00", "90.00", "10.00"}, false},
		"release": {"release_hold", releasing, [3]string{"100.00", "0.00", "100.00"}, false},
	}
)

// Each step has its effect once, however often it and what undoes it are sent, and in whatever order they arrive.
func TestStepsAndTheirCompensationsInAnyOrder(t *testing.T) {
	for name, step := range contractSteps {
		for _, tc := range []struct {
			sent string // do, undo, cancel: in this order
			want string // the outcomes
			left bool   // the step's effect is there at the end
		}{
			{"do do do", "done done done", true},
			{"do cancel do", "done done done", true}, // what is done is not cancelled
			{"cancel do do", "cancelled cancelled cancelled", false},
			{"cancel cancel do cancel", "cancelled cancelled cancelled cancelled", false},
			{"do undo undo", "done done done", false},
			{"do undo do", "done done done", false}, // a late repeat of the step
			{"do undo do undo do", "done done done done done", false},
			{"do do undo", "done done done", false},
			{"undo undo", "cancelled cancelled", false},
			{"undo do", "cancelled cancelled", false}, // the step comes after what undoes it
			{"undo do do undo", "cancelled cancelled cancelled cancelled", false},
			{"do undo cancel", "done done done", false},
			{"do cancel undo", "done done done", false},
			{"cancel undo do", "cancelled cancelled cancelled", false},
			{"undo cancel do", "cancelled cancelled cancelled", false},
			{"refused do do", "refused refused", false}, // the account takes part in nothing, and then again
			{"refused undo do", "cancelled refused", false},
			{"refused cancel do undo", "refused refused cancelled", false},
		} {
			refuses := strings.HasPrefix(tc.sent, "refused")
			if strings.Contains(tc.sent, "undo") && !step.undo || refuses && step.kind == releasing {
				continue // a hold is given back by its release, and nothing refuses a release
			}
			for _, together := range []bool{false, true} {
				how := map[bool]string{false: "", true: ", all in one request"}[together]
				t.Run(name+": "+tc.sent+how, func(t *testing.T) {
					c := newContract(t, name, step)
					if refuses {
						c.suspend(c.account)
						c.want(c.post(c.posting("do")), refused, "ACCOUNT_SUSPENDED")
						c.activate(c.account)
					}
					got := c.send(strings.Fields(strings.TrimPrefix(tc.sent, "refused ")), together)
					if got := strings.Join(got, " "); got != tc.want {
						t.Errorf("got %s\nwant %s", got, tc.want)
					}
					want := contractBefore
					if tc.left {
						want = step.after
					}
					c.has(c.account, want[0], want[1], want[2])
				})
			}
		}
	}
}

// contract is an account with a hold, and a step on it.
type contract struct {
	*harness
	account, hold, saga string
	name                string
	step                contractStep
}

func newContract(t *testing.T, name string, step contractStep) *contract {
	c := &contract{harness: newHarness(t), hold: uuid.NewString(), saga: uuid.NewString(), name: name, step: step}
	c.account = c.funded("100.00")
	c.want(c.post(onHold(ask(placing, c.hold, "place_hold", c.account, "60.00"), c.hold)), done, "")
	return c
}

// posting is a fresh request of this word.
func (c *contract) posting(word string) *accountv1.Posting {
	switch word {
	case "undo":
		return undoing(c.saga, c.step.step, c.account)
	case "cancel":
		return ask(cancel, c.saga, c.step.step, c.account, "")
	}
	p := ask(c.step.kind, c.saga, c.step.step, c.account, "30.00")
	switch c.name {
	case "capture", "release":
		return onHold(p, c.hold)
	case "hold":
		return onHold(p, c.saga)
	}
	return p
}

// send returns the outcomes.
func (c *contract) send(words []string, together bool) []string {
	c.t.Helper()
	outcomes := make([]string, len(words))
	name := func(r *accountv1.PostingResult) string {
		return strings.ToLower(strings.TrimPrefix(r.GetOutcome().String(), "POSTING_OUTCOME_"))
	}
	req := &accountv1.PostRequest{}
	for i, w := range words {
		if req.Postings = append(req.Postings, c.posting(w)); !together {
			outcomes[i] = name(c.post(c.posting(w)))
		}
	}
	if !together {
		return outcomes
	}
	res, err := c.Post(c.t.Context(), req)
	if err != nil {
		c.t.Fatal(err)
	}
	for i, r := range res.GetResults() {
		outcomes[i] = name(r)
	}
	return outcomes
}
