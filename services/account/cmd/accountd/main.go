// Command accountd is the account service.
package main

import (
	"example.com/billing/pkg/run"
	"example.com/billing/services/account/server"
)

func main() {
	run.Main("accountd", "The account service: accounts, postings, books.", new(server.Config), server.Run)
}
