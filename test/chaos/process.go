package main

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

const (
	stopMax  = 20 * time.Second // for a service to end after SIGTERM; its own limit is 9 s
	readyMax = 90 * time.Second
)

// node is a process that faults can hit: a service of ours, Postgres or Kafka.
type node interface {
	// kill ends it by SIGKILL and waits until it is gone.
	kill() error
	// start starts it again, on the same data and addresses.
	start() error
	// pause stops it where it is; resume lets it go on.
	pause() error
	resume() error
}

// errEnded is of a process that ended by itself and is not there to be paused.
var errEnded = errors.New("has ended by itself")

// process is a service of ours.
type process struct {
	name string
	bin  string
	env  []string
	log  string // path; later starts append

	mu    sync.Mutex
	cmd   *exec.Cmd
	done  chan struct{} // closed when it has ended
	err   error         // how; set before done is closed
	meant bool          // its end is our doing
}

func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd, done := exec.Command(p.bin), make(chan struct{}) //nolint:gosec,noctx // a binary that was just built; it ends by kill or stop
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for us, not for the services
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
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

// signal sends a signal and returns the channel that its end closes; ends says that the signal is to end it.
func (p *process) signal(s syscall.Signal, ends bool) (<-chan struct{}, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return nil, fmt.Errorf("%s was never started", p.name)
	}
	if p.meant = p.meant || ends; !ends {
		select {
		case <-p.done:
			return nil, fmt.Errorf("%s %w", p.name, errEnded)
		default:
		}
	}
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return nil, fmt.Errorf("signal %s: %w", p.name, err)
	}
	return p.done, nil
}

func (p *process) kill() error {
	done, err := p.signal(syscall.SIGKILL, true)
	if err == nil {
		<-done
	}
	return err
}

func (p *process) pause() error {
	_, err := p.signal(syscall.SIGSTOP, false)
	return err
}

func (p *process) resume() error {
	_, err := p.signal(syscall.SIGCONT, false)
	return err
}

// stop ends it by SIGTERM, and by SIGKILL if that takes too long, which is an error.
func (p *process) stop() error {
	if p.cmd == nil {
		return nil
	}
	_ = p.resume() // one that is paused hears no SIGTERM
	done, err := p.signal(syscall.SIGTERM, true)
	if err != nil {
		return err
	}
	select {
	case <-done:
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.err != nil {
			return fmt.Errorf("%s ended with %w", p.name, p.err)
		}
		return nil
	case <-time.After(stopMax):
		return errors.Join(fmt.Errorf("%s still runs %s after SIGTERM", p.name, stopMax), p.kill())
	}
}

// lastWords is the last line of its log.
func (p *process) lastWords() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// died reports whether it ended by itself.
func (p *process) died() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil || p.meant {
		return nil
	}
	select {
	case <-p.done:
		if p.err == nil {
			return fmt.Errorf("%s %w", p.name, errEnded)
		}
		return fmt.Errorf("%s %w: %w", p.name, errEnded, p.err)
	default:
		return nil
	}
}
