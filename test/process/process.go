// Package process runs a service of ours as a process of its own, which tests and measurements may hurt.
package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// StopMax is how long a service may take to end after SIGTERM; its own limit is 9 s.
const StopMax = 20 * time.Second

// ErrEnded is of a process that ended by itself and is not there to be paused.
var ErrEnded = errors.New("has ended by itself")

// Process is a service of ours. Safe for concurrent use.
type Process struct {
	Name string
	Bin  string
	Args []string
	Env  []string // besides this process's own
	Log  string   // path of its output; later starts append

	mu    sync.Mutex
	cmd   *exec.Cmd
	done  chan struct{} // closed when it has ended
	err   error         // how; set before done is closed
	meant bool          // its end is our doing
}

// Start starts it, or starts it again after it has ended.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd, done := exec.Command(p.Bin, p.Args...), make(chan struct{}) //nolint:gosec,noctx // a binary that was just built; it ends by kill or stop
	cmd.Env = append(os.Environ(), p.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for us, not for the services
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	p.cmd, p.done, p.meant = cmd, done, false
	go func() {
		err := cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(done)
	}()
	return nil
}

// PID is its process id; 0 before its first start.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// signal sends a signal and returns the channel that its end closes; ends says that the signal is to end it.
func (p *Process) signal(s syscall.Signal, ends bool) (<-chan struct{}, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return nil, fmt.Errorf("%s was never started", p.Name)
	}
	if p.meant = p.meant || ends; !ends {
		select {
		case <-p.done:
			return nil, fmt.Errorf("%s %w", p.Name, ErrEnded)
		default:
		}
	}
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return nil, fmt.Errorf("signal %s: %w", p.Name, err)
	}
	return p.done, nil
}

// Kill ends it by SIGKILL and waits until it is gone.
func (p *Process) Kill() error {
	done, err := p.signal(syscall.SIGKILL, true)
	if err == nil {
		<-done
	}
	return err
}

// Pause stops it where it is.
func (p *Process) Pause() error {
	_, err := p.signal(syscall.SIGSTOP, false)
	return err
}

// Resume lets it go on.
func (p *Process) Resume() error {
	_, err := p.signal(syscall.SIGCONT, false)
	return err
}

// Stop ends it by SIGTERM, and by SIGKILL if that takes too long, which is an error.
func (p *Process) Stop() error {
	if p.cmd == nil {
		return nil
	}
	_ = p.Resume() // one that is paused hears no SIGTERM
	done, err := p.signal(syscall.SIGTERM, true)
	if err != nil {
		return err
	}
	select {
	case <-done:
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.err != nil {
			return fmt.Errorf("%s ended with %w", p.Name, p.err)
		}
		return nil
	case <-time.After(StopMax):
		return errors.Join(fmt.Errorf("%s still runs %s after SIGTERM", p.Name, StopMax), p.Kill())
	}
}

// LastWords is the last line of its log.
func (p *Process) LastWords() string {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// Died reports whether it ended by itself.
func (p *Process) Died() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil || p.meant {
		return nil
	}
	select {
	case <-p.done:
		if p.err == nil {
			return fmt.Errorf("%s %w", p.Name, ErrEnded)
		}
		return fmt.Errorf("%s %w: %w", p.Name, ErrEnded, p.err)
	default:
		return nil
	}
}

// Done is closed once it has ended.
func (p *Process) Done() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}
