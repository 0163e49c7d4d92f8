package sagatest

import (
	"fmt"
	"slices"

	"example.com/billing/pkg/saga"
)

// slot is where a decision's register stands.
func slot(d saga.Definition, did saga.Decision) int {
	for i, s := range d.Steps {
		switch {
		case did.Op != saga.OpReport && did.Action == s.Name:
			return 2 * i
		case did.Op == saga.OpUndo && did.Action == s.Compensation:
			return 2*i + 1
		}
	}
	if did.Action == d.OnFailed {
		return 2 * len(d.Steps)
	}
	return 2*len(d.Steps) + 1
}

func (n *node) clone() node {
	c := *n
	c.registers = slices.Clone(n.registers)
	for i, e := range n.engines {
		if e != nil {
			copied := *e
			c.engines[i] = &copied
		}
	}
	return c
}

// expand adds every state that one move leads to.
func (x *explorer) expand(id int32) {
	n := x.queue[id]
	move := func(how string, change func(*node)) {
		c := n.clone()
		change(&c)
		x.add(c, id, how)
	}
	for i, e := range n.engines {
		if e != nil {
			x.work(i, e, &n, move)
		}
	}
	x.revive(&n, move)
	x.repeat(&n, move)
	x.meddle(&n, move)
}

// work is what an engine, or the world around it, does next.
func (x *explorer) work(i int, e *engine, n *node, move func(string, func(*node))) {
	name := fmt.Sprintf("engine %d", e.epoch)
	next := saga.Next(x.d, e.mem)
	going := uint32(0)
	for _, did := range next {
		s := slot(x.d, did)
		going |= 1 << s
		if did.Op == saga.OpStep || !e.dirty { // to go back, and to tell of an end, waits until that is stored
			if e.asked == e.asked&going && e.asked&(1<<s) == 0 {
				move(name+" asks for "+string(did.Op)+" "+did.Action, func(c *node) {
					c.engines[i].asked |= 1 << s
					c.send(did, s)
				})
			}
		}
		if e.asked&(1<<s) != 0 {
			x.answer(i, did, s, n, name, move)
		}
	}
	if e.asked&^going != 0 { // asked before the saga turned back: waited for, and perhaps not answered
		for _, did := range x.steps() {
			if s := slot(x.d, did); e.asked&^going&(1<<s) != 0 {
				x.answer(i, did, s, n, name, move)
				move(name+" gets no answer of "+did.Action, func(c *node) { c.engines[i].asked &^= 1 << s })
			}
		}
	}
	if e.dirty {
		move(name+" stores "+string(e.mem.Status), func(c *node) { c.store(i) })
	} else if e.mem.Status.Rests() {
		move(name+" is done", func(c *node) { c.engines[i] = nil })
	}
	if n.left.Deadlines > 0 && e.asked&^going == 0 && saga.CanGiveUp(x.d, e.mem) {
		move(name+" sees the deadline pass", func(c *node) { // what it has asked for is on its way, and nobody waits for it any more
			c.left.Deadlines--
			c.engines[i].set(saga.GiveUp(x.d, e.mem, "LATE", "", at))
			c.engines[i].asked = 0
		})
	}
	if n.left.Crashes > 0 {
		move(name+" crashes", func(c *node) { c.left.Crashes--; c.engines[i] = nil })
	}
}

// steps are all steps, as decisions.
func (x *explorer) steps() []saga.Decision {
	var all []saga.Decision
	for _, s := range x.d.Steps {
		all = append(all, saga.Decision{Op: saga.OpStep, Action: s.Name, Step: s})
	}
	return all
}

// set makes a state an engine's, without what does not change what follows.
func (e *engine) set(s saga.State) {
	s.Timeline, s.Actions, s.Results = s.Timeline[:1], nil, nil
	e.mem, e.dirty = s, true
}

func (n *node) send(did saga.Decision, slot int) {
	if did.Op == saga.OpCancel {
		n.cancelled = true
		return
	}
	n.sent |= 1 << slot
}

// store writes what an engine has, if the saga is still its own; else the engine leaves it.
func (n *node) store(i int) {
	e := n.engines[i]
	if n.stored.Revision != e.revision || n.stored.Epoch != e.epoch {
		n.engines[i] = nil
		return
	}
	n.stored = e.mem
	n.stored.Revision, n.stored.Epoch = e.revision+1, e.epoch
	n.stored.Epoch = n.stored.OwnerStored()
	e.revision, e.dirty = e.revision+1, false
}

// answer: a call arrives and is answered; or its answer is lost.
func (x *explorer) answer(i int, did saga.Decision, s int, n *node, name string, move func(string, func(*node))) {
	for _, refuse := range []bool{false, true} {
		if refuse && !mayRefuse(did, n.registers[s]) {
			continue
		}
		what := name + " hears that " + string(did.Op) + " " + did.Action + " is done"
		if refuse {
			what = name + " hears that " + did.Action + " is refused"
		}
		move(what, func(c *node) {
			a := c.handle(x.d, did, s, refuse)
			e := c.engines[i]
			e.asked &^= 1 << s
			e.set(saga.Apply(x.d, e.mem, did, a, at))
		})
		if n.left.Lost > 0 {
			move(what+", but the answer is lost", func(c *node) {
				c.left.Lost--
				c.handle(x.d, did, s, refuse)
			})
		}
	}
	if n.left.Stuck > 0 {
		move(name+" hears that "+did.Action+" needs a person", func(c *node) {
			c.left.Stuck--
			c.touched = true
			e := c.engines[i]
			e.asked &^= 1 << s
			e.set(saga.Apply(x.d, e.mem, did, saga.Answer{Outcome: saga.Stuck, Reason: "LOST"}, at))
		})
	}
}

// mayRefuse: a rule can say no to a step up to the pivot whose register is open.
func mayRefuse(did saga.Decision, r saga.Register) bool {
	return did.Op == saga.OpStep && did.Step.Kind != saga.Retriable && r == saga.RegisterOpen
}

// handle is a service that gets a call: the register's first writer wins.
func (n *node) handle(d saga.Definition, did saga.Decision, s int, refuse bool) saga.Answer {
	done, refused := saga.Answer{Outcome: saga.Done}, saga.Answer{Outcome: saga.Refused, Reason: "NO"}
	switch did.Op {
	case saga.OpUndo: // closes the step's register first
		of := 2 * d.Index(did.Step.Name)
		switch n.registers[of] {
		case saga.RegisterOpen:
			n.registers[of] = saga.RegisterCancelled
		case saga.RegisterDone:
			n.registers[s] = saga.RegisterDone
		}
		return done
	case saga.OpCancel:
		if n.registers[s] == saga.RegisterOpen {
			n.registers[s] = saga.RegisterCancelled
		}
	default:
		if n.registers[s] == saga.RegisterOpen {
			n.registers[s] = saga.RegisterDone
			if refuse {
				n.registers[s] = saga.RegisterRefused
			}
		}
	}
	if n.registers[s] == saga.RegisterDone {
		return done
	}
	return refused
}

// revive: an engine takes the saga up because nobody has it, or because whose it was fell silent.
func (x *explorer) revive(n *node, move func(string, func(*node))) {
	if n.stored.Status.Rests() {
		return
	}
	free := -1
	alive := false
	for i, e := range n.engines {
		if e == nil {
			free = i
		} else if e.epoch == n.stored.Epoch {
			alive = true
		}
	}
	if free < 0 || alive && n.left.Takeovers == 0 {
		return
	}
	move(fmt.Sprintf("engine %d takes the saga up", n.epoch+1), func(c *node) {
		if alive {
			c.left.Takeovers--
		}
		c.epoch++
		c.stored.Epoch = c.epoch
		c.engines[free] = &engine{epoch: c.epoch, revision: c.stored.Revision, mem: c.stored}
	})
}

// repeat: a call that was sent arrives once more, and nobody hears of it.
func (x *explorer) repeat(n *node, move func(string, func(*node))) {
	if n.left.Duplicate == 0 {
		return
	}
	again := func(did saga.Decision, s int) {
		for _, refuse := range []bool{false, true} {
			if refuse && !mayRefuse(did, n.registers[s]) {
				continue
			}
			move("a late "+string(did.Op)+" "+did.Action+" arrives", func(c *node) {
				c.left.Duplicate--
				c.handle(x.d, did, s, refuse)
			})
		}
	}
	for i, step := range x.d.Steps {
		if n.sent&(1<<(2*i)) != 0 {
			again(saga.Decision{Op: saga.OpStep, Action: step.Name, Step: step}, 2*i)
		}
		if n.sent&(1<<(2*i+1)) != 0 {
			again(saga.Decision{Op: saga.OpUndo, Action: step.Compensation, Step: step}, 2*i+1)
		}
		if step.Kind == saga.Pivot && n.cancelled {
			again(saga.Decision{Op: saga.OpCancel, Action: step.Name, Step: step}, 2*i)
		}
	}
}

// meddle: a person steps in. Money steps and compensations have registers; what comes after the pivot has none.
func (x *explorer) meddle(n *node, move func(string, func(*node))) {
	if n.left.Verbs == 0 || n.stored.Status.Ended() {
		return
	}
	registers := map[string]saga.Register{}
	for i, step := range x.d.Steps {
		if step.Kind != saga.Retriable {
			registers[step.Name] = n.registers[2*i]
		}
		if step.Compensation != "" {
			registers[step.Compensation] = n.registers[2*i+1]
		}
	}
	for _, verb := range saga.Verbs() {
		after, err := saga.Operate(x.d, n.stored, saga.Intervention{Verb: verb, Registers: registers, At: at})
		if err != nil {
			continue
		}
		stopped := ""
		if n.stored.Before != nil {
			stopped = n.stored.Before.Action
		}
		move("a person says "+string(verb), func(c *node) {
			c.left.Verbs--
			c.meddled = c.meddled || verb == saga.Skip || verb == saga.Resolve && !x.moves(stopped) // told by hand
			after.Timeline, after.Actions, after.Results = after.Timeline[:1], nil, nil
			c.stored = after
			c.stored.Revision, c.stored.Epoch = n.stored.Revision+1, 0
		})
	}
}

// moves: the action is a step or compensation that moves something.
func (x *explorer) moves(action string) bool {
	for _, s := range x.d.Steps {
		if s.Kind != saga.Retriable && s.Name == action || s.Compensation != "" && s.Compensation == action {
			return true
		}
	}
	return false
}

// check says what is wrong with a state; "" = nothing.
func (n *node) check(d saga.Definition) string {
	var in, undone, told []string // in effect; undone again; steps behind the pivot that are done
	pivot, ahead := false, ""
	for i, step := range d.Steps {
		done := n.registers[2*i] == saga.RegisterDone
		switch {
		case done && n.registers[2*i+1] == saga.RegisterDone:
			undone = append(undone, step.Name)
		case done && step.Kind == saga.Retriable:
			told = append(told, step.Name)
		case done:
			in = append(in, step.Name)
		case step.Kind != saga.Retriable && ahead == "":
			ahead = step.Name
		}
		if done && step.Kind == saga.Pivot {
			pivot = true
			if ahead != "" {
				return fmt.Sprintf("the pivot is done and %s is not", ahead)
			}
		}
	}
	failed, compensated := n.registers[2*len(d.Steps)] == saga.RegisterDone, n.registers[2*len(d.Steps)+1] == saga.RegisterDone
	money := 0
	for _, step := range d.Steps {
		if step.Kind != saga.Retriable {
			money++
		}
	}
	switch status := n.stored.Status; {
	case pivot && len(undone) > 0:
		return fmt.Sprintf("the pivot is done and %v was undone", undone)
	case failed && compensated, (failed || compensated) && len(told) > 0:
		return "the subject was told two ends"
	case status == saga.Completed && (len(in) != money || failed || compensated || !n.meddled && len(told) != len(d.Steps)-money):
		return fmt.Sprintf("completed, in effect are %v and %v", in, told)
	case (status == saga.Compensated || status == saga.Failed) && (len(in) > 0 || len(told) > 0):
		return fmt.Sprintf("%s, in effect are %v and %v", status, in, told)
	case status == saga.Compensated && !compensated && !n.meddled, status == saga.Failed && !failed && !n.meddled:
		return fmt.Sprintf("%s, and nobody was told", status)
	}
	return ""
}
