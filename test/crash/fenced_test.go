package crash

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/billing/test/drive"
)

// An orchestrator is stopped (SIGSTOP) between its lease check and its write, for longer than its lease, with several transfers
// under way. A second one takes them over, and is stopped before it has written any of them: their rows are as the first one left
// them, but for the epoch. The first wakes up in the middle of its write: the storage refuses it, by its epoch alone. It is stopped
// again, the second one ends all transfers, and when the first wakes up for good, no step has had a double effect.
func TestALateOrchestratorIsFenced(t *testing.T) {
	s := newStack(t)
	late := s.services[sagas]
	var cases []crashCase
	for range 10 {
		for _, o := range outcomes {
			cases = append(cases, crashCase{point: point{service: sagas, name: "saga.before_save"}, outcome: o, hit: 1})
		}
	}
	s.openAccounts(cases)
	ids, mine, epoch := s.stopAtWrite(late, cases)
	stoppedAt := time.Now()
	left := s.stored(mine)

	second := newProcess(t, late.path, t.TempDir(), slices.Concat(late.env, []string{"BILLING_SAGA_ADDR=" + drive.FreeAddr()}), "saga.before_save=stop")
	s.eventually("a second orchestrator has stopped at its first write", second.stopped)
	second.arm("")
	var still int
	s.one(sagas, &still, "SELECT count(*) FROM saga_state WHERE epoch = $1", epoch)
	if now := s.stored(mine); still != 0 || now != left || !late.stopped() {
		t.Fatalf("%d sagas were not taken over, or were written, or the first one is %q:\n%s\nwas\n%s", still, late.state(), now, left)
	}

	refusal := fmt.Sprintf("of epoch %d: the saga was changed by another writer", epoch)
	defer func() {
		if t.Failed() {
			t.Logf("the late one said:\n%s", regexp.MustCompile("(?m)^.*kafka.*\n").ReplaceAllString(late.said(), ""))
		}
	}()
	late.signal(syscall.SIGCONT)
	s.eventually("the late write is refused", func() bool { return strings.Contains(late.said(), refusal) })
	late.signal(syscall.SIGSTOP)
	if now := s.stored(mine); now != left {
		t.Errorf("the late one wrote:\n%s\nwas\n%s", now, left)
	}

	second.signal(syscall.SIGCONT)
	s.eventually("the second orchestrator has ended all sagas", func() bool { return s.known(ids) == len(ids) && s.unfinished() == 0 })
	took := time.Since(stoppedAt)
	if !late.stopped() {
		t.Errorf("the first one is %q", late.state())
	}
	ended := s.stored(ids)
	late.signal(syscall.SIGCONT)
	for i, c := range cases {
		s.verify(c, ids[i])
	}
	if after := s.stored(ids); after != ended {
		t.Errorf("the late one wrote:\n%s\nwas\n%s", after, ended)
	}
	if strings.Contains(second.said(), refusal) {
		t.Error("the second one was refused too")
	}
	t.Logf("%d transfers, %d of them under way at the stop, ended %v after it; refused was %q", len(ids), len(mine), took.Round(time.Millisecond), refusal)
}

// stopAtWrite asks for the transfers, and has the orchestrator stop at a write while it works on many. It returns
// their sagas, those of them that are under way there, and the epoch that these belong to.
func (s *stack) stopAtWrite(late *process, cases []crashCase) (ids, mine []string, epoch int64) {
	s.t.Helper()
	s.eventually("what funded the accounts has ended", func() bool { return s.unfinished() == 0 })
	late.arm("saga.before_save=stop,nth:3") // by then what came in from all partitions is under way
	late.signal(syscall.SIGSTOP)            // so that it starts with all transfers at the same time
	ids = s.transferAll(cases)
	s.eventually("all transfers are published", func() bool { return s.publishedBy(transactions) })
	late.signal(syscall.SIGCONT)
	s.eventually("the orchestrator has stopped at its write", func() bool {
		return strings.Contains(late.said(), "failpoint saga.before_save: stop") && late.stopped()
	})
	late.arm("")
	s.one(sagas, &epoch, "SELECT max(epoch) FROM saga_engine")
	s.one(sagas, &mine, "SELECT array_agg(saga_id::text) FROM saga_state WHERE epoch = $1 AND status IN ('in_progress', 'compensating')", epoch)
	if len(mine) < 2 {
		s.t.Fatalf("%d sagas were under way", len(mine))
	}
	return ids, mine, epoch
}

// known is how many of these sagas there are by now.
func (s *stack) known(ids []string) (n int) {
	s.t.Helper()
	s.one(sagas, &n, "SELECT count(*) FROM saga_state WHERE saga_id = ANY($1::uuid[])", ids)
	return n
}

// unfinished is how many sagas there are that have not ended.
func (s *stack) unfinished() (n int) {
	s.t.Helper()
	s.one(sagas, &n, "SELECT count(*) FROM saga_state WHERE status NOT IN ('completed', 'failed', 'compensated')")
	return n
}

// transferAll asks for the transfers at the same time, and returns their transactions' ids.
func (s *stack) transferAll(cases []crashCase) []string {
	s.t.Helper()
	ids, places := make([]string, len(cases)), make([]int, len(cases))
	for i := range cases {
		places[i] = i
	}
	_ = each(places, func(i int) error {
		ids[i] = s.transfer(cases[i])
		return nil
	}) // transfer fails the test
	if s.t.Failed() {
		s.t.FailNow()
	}
	return ids
}

// stored are sagas as they stand in the database, but for whom they belong to.
func (s *stack) stored(ids []string) string {
	s.t.Helper()
	var all string
	s.one(sagas, &all, "SELECT string_agg(saga_id::text || revision || encode(state, 'hex'), ',' ORDER BY saga_id) FROM saga_state WHERE saga_id = ANY($1::uuid[])", ids)
	return all
}
