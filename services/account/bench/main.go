// Command bench measures the rebuild of the list of accounts, and the check of all accounts, on a real PostgreSQL:
//
//	make bench-rebuild ACCOUNTS=100000 EVENTS=1000000
//
// It fills a database through the event store, spoils some rows, and rebuilds the list while transfers go on and lists are
// read. Each list is held against what is known to be committed.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"example.com/billing/pkg/dsn"
	"example.com/billing/pkg/pgtest"
)

func main() {
	accounts := flag.Int("accounts", 100_000, "accounts to open")
	events := flag.Int("events", 1_000_000, "events to write, the openings included")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := onDatabase(ctx, func(dsn string) error {
		return measure(ctx, dsn, *accounts, *events, func(format string, args ...any) { fmt.Printf(format+"\n", args...) })
	})
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// onDatabase runs f on a database that it creates and drops.
func onDatabase(ctx context.Context, f func(dsn string) error) error {
	server := os.Getenv(pgtest.Env)
	if server == "" {
		return fmt.Errorf("%s names no server: use `make bench-rebuild`", pgtest.Env)
	}
	u, err := dsn.URL(server)
	if err != nil {
		return fmt.Errorf("%s: %w", pgtest.Env, err)
	}
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", pgtest.Env, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	name := pgx.Identifier{"bench_" + uuid.NewString()[:8]}
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+name.Sanitize()); err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if _, err := conn.Exec(ctx, "DROP DATABASE "+name.Sanitize()+" WITH (FORCE)"); err != nil {
			fmt.Fprintln(os.Stderr, "bench: the database is left over:", err)
		}
	}()
	u.Path = "/" + name[0]
	return f(u.String())
}
