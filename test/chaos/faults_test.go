package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/billing/test/process"
)

// target is a node that sees whether two faults hit it at once.
type target struct {
	hit    atomic.Int32
	hits   atomic.Int32
	tooFar atomic.Bool
}

func (n *target) Kill() error {
	n.hits.Add(1)
	if n.hit.Add(1) > 1 {
		n.tooFar.Store(true)
	}
	return nil
}

func (n *target) Start() error  { n.hit.Add(-1); return nil }
func (n *target) Pause() error  { return n.Kill() }
func (n *target) Resume() error { return n.Start() }

// Faults overlap, but never on the same process: one that comes too early waits, also where two want the same two processes.
func TestFaultsWaitForTheirTargets(t *testing.T) {
	one, other := &target{}, &target{}
	c := &cluster{nodes: map[string]node{accountA: one, accountB: other}, locks: map[string]*sync.Mutex{}}
	for _, name := range services { // who supervises them looks at all
		c.locks[name] = &sync.Mutex{}
	}
	var over atomic.Int32
	in := &injector{c: c, say: t.Logf, ended: func(fault, time.Time) { over.Add(1) }, counts: map[kind]int{}}
	var faults []fault
	for i, targets := range [][]string{{accountA}, {accountA, accountB}, {accountB, accountA}, {accountB}, {accountA}} {
		faults = append(faults, fault{at: time.Duration(i) * time.Millisecond, lasts: 20 * time.Millisecond, kind: []kind{killAccount, pauseShort}[i%2], targets: targets})
	}
	if err := in.run(t.Context(), faults); err != nil {
		t.Fatal(err)
	}
	if one.tooFar.Load() || other.tooFar.Load() {
		t.Error("two faults hit a process at once")
	}
	if one.hits.Load() != 4 || other.hits.Load() != 3 || over.Load() != 5 || in.counts[killAccount] != 3 || in.counts[pauseShort] != 2 {
		t.Errorf("%d and %d hits, %d faults over, counted %v", one.hits.Load(), other.hits.Load(), over.Load(), in.counts)
	}
}

// A service that ends by itself is started again and told of with its last words; one that we ended is not.
func TestRevive(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "service")
	script := "#!/bin/sh\necho out of paper; [ -e " + dir + "/quit ] && exit 3; exec sleep 60\n"
	if err := os.WriteFile(bin, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	var said []string
	in := &injector{say: func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)); t.Log(said) }}
	p := &process.Process{Name: "service", Bin: bin, Log: filepath.Join(dir, "service.log")}
	begin := func() {
		t.Helper()
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
	}
	begin()
	t.Cleanup(func() { _ = p.Kill() })
	in.revive(p) // it runs
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	in.revive(p) // we did it
	if len(in.revived) > 0 {
		t.Fatalf("started again: %v", in.revived)
	}

	if err := os.WriteFile(filepath.Join(dir, "quit"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	begin()
	<-p.Done()
	if err := os.Rename(bin, bin+".away"); err != nil {
		t.Fatal(err)
	}
	in.revive(p) // it cannot be started, and is no less dead
	if len(in.revived) > 0 || len(said) != 1 {
		t.Fatalf("started again: %v, said %q", in.revived, said)
	}
	if err := os.Rename(bin+".away", bin); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "quit")); err != nil {
		t.Fatal(err)
	}
	in.revive(p)
	if len(in.revived) != 1 || !strings.HasSuffix(in.revived[0], "exit status 3: out of paper") || slices.ContainsFunc(said, func(s string) bool { return strings.Contains(s, "<nil>") }) {
		t.Errorf("started again: %q, said %q", in.revived, said)
	}
	if err := p.Resume(); err != nil { // it has nothing to resume, but it is there
		t.Errorf("the one that was started again: %v", err)
	}
}
