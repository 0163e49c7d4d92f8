// Command billing-events is what operators do with event stores: read a stream, follow a type, compare what is published with what is
// committed, and copy one store into another.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"example.com/billing/pkg/dsn"
)

const about = `Reads, compares and copies event stores.

A STORE is postgres://… (a service's database) or kafka://BROKER[,BROKER…]/TOPIC (the log of a Kafka store). Reading disturbs nobody.
Answers go to standard output, progress to standard error. The exit code is 1 where something differs or went wrong.`

type commands struct {
	Read    readCmd    `cmd:"" help:"Print a stream's events, a line of JSON each."`
	Follow  followCmd  `cmd:"" help:"Print the events of a type, or all, and those that come."`
	Digest  digestCmd  `cmd:"" help:"Print how many events a store has, and a hash of them all."`
	Diff    diffCmd    `cmd:"" help:"Compare what is on the topics with what a database has, and publish what is missing."`
	Recover recoverCmd `cmd:"" help:"After a fail-over or restore that lost events: tell what is lost, and publish what the topics lack."`
	Copy    copyCmd    `cmd:"" help:"Copy what a store lacks of another one, and verify the whole."`
	Promote promoteCmd `cmd:"" help:"Make a database that followed another store the truth."`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var c commands
	k := kong.Parse(&c, kong.Name("billing-events"), kong.Description(about), kong.UsageOnError(),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.Writers(os.Stdout, dsn.Hide(os.Stderr, os.Args[1:])))
	if err := k.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "billing-events:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop has been called
	}
}
