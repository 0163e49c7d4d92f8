//go:build failpoints

package failpoint_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/billing/pkg/failpoint"
)

const hitsEnv = "FAILPOINT_TEST_HITS"

// TestMain is also the process that the tests have killed: it hits points, by name, and says so after each.
func TestMain(m *testing.M) {
	names := os.Getenv(hitsEnv)
	if names == "" {
		os.Exit(m.Run())
	}
	for i, name := range strings.Fields(names) {
		failpoint.Hit(name)
		fmt.Println("passed", i+1)
	}
}

// hitting is a process that hits points; the last hit it passed is on the channel.
func hitting(t *testing.T, armed, names string) (*exec.Cmd, <-chan int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), hitsEnv+"="+names, "BILLING_FAILPOINT="+armed)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	passed := make(chan int, 100)
	go func() {
		defer close(passed)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			n, _ := strconv.Atoi(strings.TrimPrefix(lines.Text(), "passed "))
			passed <- n
		}
	}()
	return cmd, passed
}

func last(passed <-chan int) (n int) {
	for n = range passed {
		continue
	}
	return n
}

func TestKill(t *testing.T) {
	file := filepath.Join(t.TempDir(), "armed")
	if err := os.WriteFile(file, []byte("c=kill"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		armed, hits string
		passed      int
		killed      bool
	}{
		{"", "a a a", 3, false},
		{"a=kill", "b c", 2, false},
		{"a=kill", "b a c", 1, true},
		{"a=kill,nth:3", "a a b a", 3, true},
		{"a=kill,nth:3", "a a", 2, false},
		{"b=kill,nth:2; a=kill,nth:2", "a b a", 2, true},
		{"a=sleep:1ms", "a a", 2, false},
		{"@" + file, "a b c", 2, true},
		{"@" + file + ".not", "a b c", 3, false},
	} {
		t.Run(tc.armed+" "+tc.hits, func(t *testing.T) {
			cmd, passed := hitting(t, tc.armed, tc.hits)
			n := last(passed)
			_ = cmd.Wait()
			status := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if n != tc.passed || status.Signaled() != tc.killed || tc.killed && status.Signal() != syscall.SIGKILL || !tc.killed && !cmd.ProcessState.Success() {
				t.Errorf("passed %d, %s", n, cmd.ProcessState)
			}
		})
	}
}

// A process that was stopped stands, and goes on when it is told to.
func TestStop(t *testing.T) {
	cmd, passed := hitting(t, "a=stop", "b a b")
	if n := <-passed; n != 1 {
		t.Fatalf("passed %d", n)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() || status.StopSignal() != syscall.SIGSTOP {
		t.Fatalf("%v, %v", status, err)
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if n := last(passed); n != 3 {
		t.Errorf("passed %d", n)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestSleep(t *testing.T) {
	t.Setenv("BILLING_FAILPOINT", "a=sleep:50ms,nth:2")
	for _, want := range []bool{false, true, false} {
		began := time.Now()
		failpoint.Hit("a")
		if slept := time.Since(began) >= 50*time.Millisecond; slept != want {
			t.Errorf("slept %t, want %t", slept, want)
		}
	}
}

// What cannot be read is no silent "nothing".
func TestUnreadableTextPanics(t *testing.T) {
	for _, armed := range []string{"a", "=kill", "a=", "a=die", "a=kill,2", "a=kill,nth:0", "a=kill,nth:x", "a=sleep", "a=sleep:1", "a=nth:1", "b=kill;a"} {
		t.Setenv("BILLING_FAILPOINT", armed)
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q is taken", armed)
				}
			}()
			failpoint.Hit("none")
		}()
	}
}
