// Command billing runs the whole system in one process, on embedded Postgres and Kafka: to try it, and to develop with it.
package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"example.com/billing/deploy/local/demo"
	"example.com/billing/deploy/local/system"
	"example.com/billing/pkg/dsn"
)

type commands struct {
	Up   up      `cmd:"" help:"Run the system until SIGINT or SIGTERM. Its data survives."`
	Demo demoCmd `cmd:"" help:"Start the system, move money, check the books, and stop."`
}

func main() {
	dieWithParent()
	var c commands
	k := kong.Parse(&c, kong.Name("billing"), kong.UsageOnError(), kong.Writers(os.Stdout, dsn.Hide(os.Stderr, os.Args[1:])),
		kong.Description("The whole system in one process, on embedded Postgres and Kafka. For development: a production system runs the four services."))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	k.BindTo(ctx, (*context.Context)(nil))
	if err := k.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "billing:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop has been called
	}
}

func say(format string, args ...any) { fmt.Printf("· "+format+"\n", args...) }

type up struct{ system.Settings }

// Run keeps the system running until ctx ends.
func (u *up) Run(ctx context.Context) error {
	for _, d := range []struct {
		into     *string
		standard string
	}{
		{&u.HTTPAddr, "127.0.0.1:8080"}, {&u.AccountAddr, "127.0.0.1:9101"},
		{&u.TransactionAddr, "127.0.0.1:9102"}, {&u.SagaAddr, "127.0.0.1:9103"},
	} {
		if *d.into == "" {
			*d.into = d.standard
		}
	}
	if u.DataDir == "" {
		dir, err := defaultDataDir()
		if err != nil {
			return err
		}
		u.DataDir = dir
	}
	sys, err := system.Start(ctx, u.Settings, say)
	if err != nil {
		return err
	}
	say("ready: REST http://%s (documentation: /openapi.json), gRPC account %s, transaction %s, saga %s", sys.HTTP, sys.Account, sys.Transaction, sys.Saga)
	say("data in %s; stop with Ctrl-C", u.DataDir)
	select {
	case <-ctx.Done():
	case <-sys.Done():
	}
	say("stopping")
	return sys.Stop()
}

// defaultDataDir is var/billing below the present folder. Root's Postgres runs as another user: where that user could not
// get there, it is a folder of the same clone's own below /var/tmp.
func defaultDataDir() (string, error) {
	dir, err := filepath.Abs(filepath.Join("var", "billing"))
	if err != nil || os.Getuid() != 0 {
		return dir, err
	}
	for p := filepath.Dir(filepath.Dir(dir)); p != "/"; p = filepath.Dir(p) {
		info, err := os.Stat(p)
		if err != nil {
			return "", err
		}
		if info.Mode().Perm()&0o001 == 0 {
			return fmt.Sprintf("/var/tmp/billing-%x", sha256.Sum256([]byte(dir)))[:len("/var/tmp/billing-")+8], nil
		}
	}
	return dir, nil
}

type demoCmd struct{ system.Settings }

// Run shows the system at work on data that is thrown away.
func (d *demoCmd) Run(ctx context.Context) (err error) {
	begun := time.Now()
	if d.DataDir == "" {
		dir, err := os.MkdirTemp("", "billing-demo-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		d.DataDir = dir
	}
	sys, err := system.Start(ctx, d.Settings, say)
	if err != nil {
		return err
	}
	defer func() {
		if stopErr := sys.Stop(); err == nil {
			err = stopErr
		}
		if err == nil {
			say("done in %s", time.Since(begun).Round(100*time.Millisecond))
		}
	}()
	return demo.Run(ctx, "http://"+sys.HTTP, os.Stdout)
}
