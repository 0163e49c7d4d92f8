// Package failpoint ends, stops or delays a process at a named place, for tests of what a crash leaves. The code says
//
//	failpoint.Hit("account.after_commit")
//
// which is nothing at all in an ordinary build: Hit is empty and the compiler leaves it out, name included. Built with the tag
// "failpoints", Hit does what the environment variable BILLING_FAILPOINT says of the name:
//
//	account.after_commit=kill           SIGKILL to itself, at the first hit
//	saga.before_save=stop,nth:3         SIGSTOP to itself, at the third
//	relay.before_publish=sleep:2s       waits, at the first
//	a.b=kill; c.d=sleep:1s,nth:2        several
//	@/path                              what that file says, read at every hit; without the file, nothing
//
// Hits are counted from when the text was first seen. A text that cannot be read ends the process with a panic: a point that is
// silently not armed would let a test pass.
//
// There are libraries for this (pingcap/failpoint, etcd's gofail). Both rewrite the source before the build, which then is not the
// code that was reviewed and linted, and both want a tool of their own in every build; a function behind a build tag is
// checked by the compiler as it stands, and gone by the same means.
package failpoint
