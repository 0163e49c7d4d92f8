// Command sagad is the saga orchestrator.
package main

import (
	"example.com/billing/pkg/run"
	"example.com/billing/services/saga-orchestrator/server"
)

func main() {
	run.Main("sagad", "The saga orchestrator: carries transactions out, step by step.", new(server.Config), server.Run)
}
