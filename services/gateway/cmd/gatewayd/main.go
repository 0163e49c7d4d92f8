// Command gatewayd is the REST gateway.
package main

import (
	"example.com/billing/pkg/run"
	"example.com/billing/services/gateway/server"
)

func main() {
	run.Main("gatewayd", "The gateway: the public services as REST.", new(server.Config), server.Run)
}
