//go:build !linux

package pgpair

import "errors"

var errNoMount = errors.New("a small disk can be mounted on Linux only")

// CanMount says why no disk of a size of its own can be made here.
func CanMount() error { return errNoMount }

func (*Pair) mount(int) error { return errNoMount }

func (*Pair) unmount() error { return nil }

func isFull(error) bool { return false }
