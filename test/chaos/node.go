package main

import "time"

// readyMax is how long the system may take to be ready.
const readyMax = 90 * time.Second

// node is a process that faults can hit: a service of ours, Postgres or Kafka.
type node interface {
	// Kill ends it by SIGKILL and waits until it is gone.
	Kill() error
	// Start starts it again, on the same data and addresses.
	Start() error
	// Pause stops it where it is; Resume lets it go on.
	Pause() error
	Resume() error
}
