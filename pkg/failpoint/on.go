//go:build failpoints

package failpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const variable = "BILLING_FAILPOINT"

// point is what to do at a name.
type point struct {
	name   string
	action string // kill, stop, sleep
	sleep  time.Duration
	nth    int // which hit
	hits   int
}

var (
	mu     sync.Mutex
	text   string // the points below were read from it
	points []*point
)

// Hit is called where a process may end. Safe for concurrent use.
func Hit(name string) {
	p, err := find(name)
	if err != nil {
		panic(err)
	}
	if p != nil {
		p.act()
	}
}

// find counts a hit and returns what is to be done now, or nil.
func find(name string) (*point, error) {
	mu.Lock()
	defer mu.Unlock()
	now, err := armed()
	if err != nil {
		return nil, err
	}
	if now != text {
		if points, err = parse(now); err != nil {
			return nil, fmt.Errorf("%s: %w", variable, err)
		}
		text = now
	}
	for _, p := range points {
		if p.name != name {
			continue
		}
		if p.hits++; p.hits == p.nth {
			return p, nil
		}
	}
	return nil, nil
}

// armed is the text in force.
func armed() (string, error) {
	s := os.Getenv(variable)
	file, is := strings.CutPrefix(s, "@")
	if !is {
		return s, nil
	}
	b, err := os.ReadFile(file) //nolint:gosec // the test that set the variable names its own file
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(b), err
}

// parse reads points such as "a.b=kill; c.d=sleep:1s,nth:2".
func parse(s string) ([]*point, error) {
	var all []*point
	for part := range strings.SplitSeq(s, ";") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, what, ok := strings.Cut(part, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%q is not NAME=ACTION", part)
		}
		p := &point{name: name, nth: 1}
		for i, word := range strings.Split(what, ",") {
			key, value, _ := strings.Cut(word, ":")
			var err error
			switch {
			case i > 0 && key == "nth":
				if p.nth, err = strconv.Atoi(value); err == nil && p.nth < 1 {
					err = errors.New("counted from 1")
				}
			case i == 0 && (word == "kill" || word == "stop"):
				p.action = word
			case i == 0 && key == "sleep":
				p.action = key
				p.sleep, err = time.ParseDuration(value)
			default:
				err = errors.New("not kill, stop, sleep:DURATION, or after one of them nth:N")
			}
			if err != nil {
				return nil, fmt.Errorf("%q in %q: %w", word, part, err)
			}
		}
		all = append(all, p)
	}
	return all, nil
}

// stopTakes is how long a signal may take to stop all threads.
const stopTakes = 200 * time.Millisecond

// act returns where the process goes on.
func (p *point) act() {
	fmt.Fprintf(os.Stderr, "failpoint %s: %s at hit %d\n", p.name, p.action, p.nth)
	switch p.action {
	case "kill":
		signal(syscall.SIGKILL)
		select {} // nothing behind the point happens while the signal is on its way
	case "stop":
		signal(syscall.SIGSTOP)
		time.Sleep(stopTakes) // nor here; what is left of it is slept when the process goes on
	case "sleep":
		time.Sleep(p.sleep)
	}
}

func signal(s syscall.Signal) {
	if err := syscall.Kill(os.Getpid(), s); err != nil {
		panic(fmt.Errorf("failpoint: %w", err))
	}
}
