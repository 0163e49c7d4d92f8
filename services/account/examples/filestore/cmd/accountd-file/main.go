// Command accountd-file is the account service with one event store more to choose from: BILLING_EVENT_STORE=file.
package main

import (
	"example.com/billing/pkg/run"
	"example.com/billing/services/account/examples/filestore"
	"example.com/billing/services/account/server"
)

func main() {
	filestore.Register()
	run.Main("accountd-file", "The account service, which can keep its events in a file.", new(server.Config), server.Run)
}
