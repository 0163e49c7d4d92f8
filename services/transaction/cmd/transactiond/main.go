// Command transactiond is the transaction service.
package main

import (
	"example.com/billing/pkg/run"
	"example.com/billing/services/transaction/server"
)

func main() {
	run.Main("transactiond", "The transaction service: top-ups, withdrawals, transfers.", new(server.Config), server.Run)
}
