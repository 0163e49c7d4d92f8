package sagatest

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"example.com/billing/pkg/saga"
)

// Budget is how much may go wrong in one run of a saga. Everything within it is explored, in every order.
type Budget struct {
	Crashes   int // of an engine, at any moment
	Takeovers int // an engine's lease ends while it lives: it goes on, late
	Duplicate int // a call that was sent once arrives again, however late
	Lost      int // a call is carried out and its answer is lost
	Deadlines int // the time is over, whatever the saga does
	Stuck     int // an action answers that a person must look
	Verbs     int // a person steps in, at any moment, with any verb
}

// Explored is what Explore has seen.
type Explored struct {
	States, Steps int
	Ends          map[saga.Status]int // states in which the stored saga has ended, by how
}

// statesMax bounds an exploration.
const statesMax = 5_000_000

// Explore carries a definition through every interleaving of refusals, crashes, late and repeated calls, lost answers, deadlines
// and people that the budget allows, against services that keep write-once registers, and fails the test with the way to the
// first bad state: where the saga says one thing and the services another, or where it can never end. Skipped steps are not
// explored. Registers are as the contract of Call says; refusals cost nothing.
func Explore(t *testing.T, d saga.Definition, b Budget) Explored {
	t.Helper()
	x := &explorer{d: d, seen: map[string]int32{}, ends: map[saga.Status]int{}}
	first := node{left: b, registers: make([]saga.Register, 2*len(d.Steps)+2)}
	for i := range first.registers {
		first.registers[i] = saga.RegisterOpen
	}
	first.stored = saga.NewState(d, saga.Trigger{SagaID: "s", Data: []byte(`{}`)}, at)
	first.stored.Revision, first.epoch = 1, 1
	first.stored.Epoch = 1
	first.engines[0] = &engine{epoch: 1, mem: first.stored, revision: 1}
	x.add(first, -1, "start")
	for n := 0; n < len(x.queue); n++ {
		if bad := x.queue[n].check(d); bad != "" {
			t.Fatalf("saga %s: %s\n%s", d.Name, bad, x.way(int32(n)))
		}
		if len(x.queue) > statesMax {
			t.Fatalf("saga %s has more than %d states within %+v", d.Name, statesMax, b)
		}
		x.expand(int32(n))
		x.queue[n].engines, x.queue[n].registers = [2]*engine{}, nil // done with
	}
	if n := x.stranded(); n >= 0 {
		t.Fatalf("saga %s can never end from here:\n%s", d.Name, x.way(n))
	}
	return Explored{States: len(x.queue), Steps: len(x.edges), Ends: x.ends}
}

var at = time.Unix(0, 0)

// engine is one engine's work on the saga.
type engine struct {
	epoch, revision int64
	mem             saga.State // ahead of the stored one where dirty
	dirty           bool
	asked           uint32 // calls under way that it will hear of, by slot
}

// node is one state of everything. Slots are those of actions: step i is 2i, its compensation 2i+1, then OnFailed, OnCompensated.
type node struct {
	stored    saga.State
	epoch     int64 // the newest
	engines   [2]*engine
	registers []saga.Register
	sent      uint32 // calls that were sent at some time and may arrive, by slot
	cancelled bool   // the pivot's cancel was sent too
	left      Budget
	meddled   bool // a person stepped in
	touched   bool // something needed attention: an action was stuck
}

type edge struct{ from, to int32 }

type explorer struct {
	d     saga.Definition
	seen  map[string]int32
	queue []node
	from  []int32
	how   []string
	edges []edge
	ends  map[saga.Status]int
	ended []bool
}

func (x *explorer) add(n node, from int32, how string) {
	key := n.key()
	id, known := x.seen[key]
	if !known {
		id = int32(len(x.queue)) //nolint:gosec // statesMax
		x.seen[key] = id
		x.queue, x.from, x.how = append(x.queue, n), append(x.from, from), append(x.how, how)
		ended := n.stored.Status.Ended()
		x.ended = append(x.ended, ended || n.stored.Status == saga.NeedsAttention && n.touched)
		if ended {
			x.ends[n.stored.Status]++
		}
	}
	if from >= 0 {
		x.edges = append(x.edges, edge{from, id})
	}
}

// way tells how a state is reached.
func (x *explorer) way(n int32) string {
	var steps []string
	for ; n >= 0; n = x.from[n] {
		steps = append([]string{x.how[n]}, steps...)
	}
	return strings.Join(steps, "\n")
}

// stranded is a state from which the saga can never end; -1 = there is none.
func (x *explorer) stranded() int32 {
	back := make([][]int32, len(x.queue))
	for _, e := range x.edges {
		back[e.to] = append(back[e.to], e.from)
	}
	can := make([]bool, len(x.queue))
	var todo []int32
	for n, ended := range x.ended {
		if ended {
			can[n] = true
			todo = append(todo, int32(n))
		}
	}
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, from := range back[n] {
			if !can[from] {
				can[from] = true
				todo = append(todo, from)
			}
		}
	}
	for n, ok := range can {
		if !ok {
			return int32(n)
		}
	}
	return -1
}

// key tells nodes apart by what their future depends on.
func (n *node) key() string {
	b := make([]byte, 0, 128)
	number := func(v int64) { b = append(strconv.AppendInt(b, v, 36), ',') }
	flag := func(v bool) { b = strconv.AppendBool(b, v) }
	state := func(s saga.State) {
		b = append(append(b, s.Status...), ' ')
		flag(s.ErrorReason != "")
		if s.Before != nil {
			b = append(append(b, s.Before.Action...), s.Before.Status...)
			flag(s.Before.ErrorReason != "")
		}
		for _, r := range s.Records() {
			b = append(b, r.Status[0], r.Status[len(r.Status)-1])
		}
	}
	state(n.stored)
	number(n.stored.Revision)
	number(n.stored.Epoch)
	for _, e := range n.engines {
		if b = append(b, '|'); e == nil {
			continue
		}
		number(e.epoch)
		number(e.revision)
		number(int64(e.asked))
		flag(e.dirty)
		state(e.mem)
	}
	for _, r := range n.registers {
		b = append(b, r[0])
	}
	number(int64(n.sent))
	number(n.epoch)
	flag(n.cancelled)
	flag(n.meddled)
	flag(n.touched)
	for _, v := range []int{n.left.Crashes, n.left.Takeovers, n.left.Duplicate, n.left.Lost, n.left.Deadlines, n.left.Stuck, n.left.Verbs} {
		number(int64(v))
	}
	return string(b)
}
