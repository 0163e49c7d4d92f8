package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/billing/test/drive"
)

// An orchestrator is stopped (SIGSTOP) between its lease check and its write, for longer than its lease, with transfers of every kind
// under way. A second one takes them over and ends them. The first wakes up in the middle of its write: the storage refuses it,
// by its epoch, and no step has had a double effect.
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
	var before int64
	s.one(sagas, &before, "SELECT max(epoch) FROM saga_engine")
	late.arm("saga.before_save=stop")
	ids := make([]string, len(cases))
	for i, c := range cases {
		ids[i] = s.transfer(c)
	}
	s.eventually("the orchestrator has stopped at its write", func() bool { return late.state(t) == "T" })
	late.arm("")
	stopped := time.Now()

	second := newProcess(t, late.path, t.TempDir(), slices.Concat(late.env, []string{"BILLING_SAGA_ADDR=" + drive.FreeAddr()}))
	s.eventually("a second orchestrator has ended all sagas", func() bool {
		var left int
		s.one(sagas, &left, "SELECT $1 - count(*) FROM saga_state WHERE saga_id = ANY($2::uuid[]) AND status IN ('completed', 'failed', 'compensated')", len(ids), ids)
		return left == 0
	})
	took := time.Since(stopped)
	var epochs int
	s.one(sagas, &epochs, "SELECT count(*) FROM saga_engine WHERE epoch = $1", before)
	if epochs != 0 || late.state(t) != "T" {
		t.Errorf("the first one's epoch is still there, or it is %q", late.state(t))
	}
	var states string
	s.one(sagas, &states, "SELECT string_agg(saga_id::text || revision || encode(state, 'hex'), ',' ORDER BY saga_id) FROM saga_state WHERE saga_id = ANY($1::uuid[])", ids)

	if err := late.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	refusal := fmt.Sprintf("of epoch %d: the saga was changed by another writer", before)
	defer func() {
		if t.Failed() {
			t.Logf("the late one said:\n%s", regexp.MustCompile("(?m)^.*kafka.*\n").ReplaceAllString(late.said(t), ""))
		}
	}()
	s.eventually("the late write is refused", func() bool { return strings.Contains(late.said(t), refusal) })
	for i, c := range cases {
		s.verify(c, ids[i])
	}
	var after string
	s.one(sagas, &after, "SELECT string_agg(saga_id::text || revision || encode(state, 'hex'), ',' ORDER BY saga_id) FROM saga_state WHERE saga_id = ANY($1::uuid[])", ids)
	if after != states {
		t.Errorf("the late one wrote:\n%s\nwas\n%s", after, states)
	}
	if strings.Contains(second.said(t), refusal) {
		t.Error("the second one was refused too")
	}
	t.Logf("%d transfers, taken over and ended %v after the stop; refused was %q", len(ids), took.Round(time.Millisecond), refusal)
}

// state is the process's, as the kernel has it: T = stopped.
func (p *process) state(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(p.cmd.Process.Pid), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return rest[:1]
}

// said is all that the process has logged.
func (p *process) said(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// one reads one value.
func (s *stack) one(service string, into any, sql string, args ...any) {
	s.t.Helper()
	if err := s.pools[service].QueryRow(s.t.Context(), sql, args...).Scan(into); err != nil {
		s.t.Fatal(err)
	}
}
