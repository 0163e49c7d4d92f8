//go:build !linux

package run

import (
	"syscall"
	"time"
)

// userTimeout does nothing: keepalives and the deadlines of reads have to do here.
func userTimeout(time.Duration) func(network, address string, c syscall.RawConn) error { return nil }
