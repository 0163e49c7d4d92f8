package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const leftoverStopTimeout = time.Minute

// stopLeftover stops the server that a killed process left running on the data
// directory. It is stopped and not taken over: the next server is then our
// child with our settings, its exit is seen, and sessions of the dead process
// are gone. The new server takes the same port, so other clients reconnect.
//
// We hold the lock on the directory, so no living copy of ours owns it.
func stopLeftover(ctx context.Context, data string, logf func(string, ...any)) error {
	pidFile := filepath.Join(data, "postmaster.pid")
	b, err := os.ReadFile(pidFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 1 {
		return fmt.Errorf("%s holds no process id: remove it if no Postgres is running", pidFile)
	}
	if !exists(pid) {
		return nil // stale; Postgres sees that itself, and checks for live backends
	}
	if isServerOn(pid, data) {
		logf("stopping the Postgres left over from before (pid %d)", pid)
		return stopForeign(ctx, pid, data)
	}
	// The process id belongs to another program now (or to a corpse that
	// nobody reaps). Postgres would take it for a rival, so remove the file,
	// but only once no backend of the old server is left: the file is also
	// what protects against those.
	deadline := time.Now().Add(quitTimeout)
	for backendsOn(data) {
		if time.Now().After(deadline) {
			return fmt.Errorf("processes of an old server are still at work in %s", data)
		}
		if err := pause(ctx, pollInterval); err != nil {
			return err
		}
	}
	logf("removing a stale %s", pidFile)
	return os.Remove(pidFile)
}

// stopForeign ends a server that is not our child: we can only watch it go.
func stopForeign(ctx context.Context, pid int, data string) error {
	ctx, cancel := context.WithTimeout(ctx, leftoverStopTimeout)
	defer cancel()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT} { // fast, then immediate
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("signal process %d: %w", pid, err)
		}
		for start := time.Now(); time.Since(start) < leftoverStopTimeout/2; {
			if !isServerOn(pid, data) {
				return nil
			}
			if err := pause(ctx, pollInterval); err != nil {
				return fmt.Errorf("process %d: %w", pid, err)
			}
		}
	}
	return fmt.Errorf("process %d does not stop", pid)
}

func exists(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}

// isServerOn says whether the process is a Postgres started on data. A process
// that has exited and waits to be reaped has no command line, so it is none.
func isServerOn(pid int, data string) bool {
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil {
		args := strings.Split(string(b), "\x00")
		if filepath.Base(args[0]) != "postgres" {
			return false
		}
		for i, arg := range args {
			if arg == "-D" && i+1 < len(args) && args[i+1] == data || arg == "-D"+data {
				return true
			}
		}
		return false
	}
	out, err := exec.Command("ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(string(out), "postgres -D "+data+" ")
}

// backendsOn says whether any Postgres process works in data, where the system
// can tell (Linux): every one of them has it as its working directory.
func backendsOn(data string) bool {
	cwds, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, cwd := range cwds {
		if dir, err := os.Readlink(cwd); err != nil || dir != data {
			continue
		}
		if comm, err := os.ReadFile(filepath.Join(filepath.Dir(cwd), "comm")); err == nil && strings.TrimSpace(string(comm)) == "postgres" {
			return true
		}
	}
	return false
}
