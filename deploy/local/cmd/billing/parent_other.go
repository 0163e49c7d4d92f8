//go:build !linux

package main

// dieWithParent needs Linux.
func dieWithParent() {}
