package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// dieWithParent has the kernel kill this process when its parent dies, if the Makefile asks for it: a kill -9 of `make up`
// is then a kill -9 of the system, and leaves no orphan that holds the ports.
func dieWithParent() {
	if os.Getenv("BILLING_DIE_WITH_PARENT") == "" {
		return
	}
	_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0) // without it the process merely outlives its parent
}
