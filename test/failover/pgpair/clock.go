package pgpair

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// Clock is the environment of a server whose clock is ahead by d; see Server.Start and Options.Env. It needs libfaketime.
func Clock(d time.Duration) ([]string, error) {
	found, _ := filepath.Glob("/usr/lib/*/faketime/libfaketime.so.1")
	if len(found) == 0 {
		return nil, errors.New("no libfaketime: install the package libfaketime")
	}
	// Time-outs keep working: only the time of day is wrong.
	return []string{"LD_PRELOAD=" + found[0], fmt.Sprintf("FAKETIME=%+d", int64(d.Seconds())), "FAKETIME_DONT_FAKE_MONOTONIC=1"}, nil
}
