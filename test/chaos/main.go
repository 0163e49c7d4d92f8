// Command chaos runs the real processes, with a real Postgres and a real Apache Kafka, under load, hurts them by a schedule that
// is drawn from a seed, and then has an independent auditor say whether a promise was broken. See docs/chaos.md.
//
// It is run in the root of the repository. It exits with 0 if nothing was found, with 1 if something was, and with 2 if the run
// does not prove anything: it could not be carried out, a kind of fault never happened, or too little was accepted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"example.com/billing/services/edge"
)

// settings of a run.
type settings struct {
	duration time.Duration
	away     time.Duration
	seed     uint64
	rate     float64
	workers  int
	store    string
	race     bool
	plan     bool
	keep     bool
}

func main() {
	var s settings
	flags := flag.NewFlagSet("chaos", flag.ExitOnError) // one of its own: packages that it imports have flags of tests
	flags.DurationVar(&s.duration, "duration", time.Minute, "how long faults are injected; 0 = none are")
	flags.DurationVar(&s.away, "away", 5*time.Second, "how long Kafka is away at the end, under load; 0 = it is not")
	flags.Uint64Var(&s.seed, "seed", 1, "of the schedule and of everything that is drawn")
	flags.Float64Var(&s.rate, "rate", 320, "requests a second, at most")
	flags.IntVar(&s.workers, "workers", 128, "callers at the same time")
	flags.StringVar(&s.store, "event-store", edge.StorePostgres, "where the accounts' events are: postgres or kafka")
	flags.BoolVar(&s.race, "race", false, "build the services with the race detector")
	flags.BoolVar(&s.plan, "plan", false, "print the schedule and do nothing")
	flags.BoolVar(&s.keep, "keep", false, "keep logs and data of a clean run too")
	_ = flags.Parse(os.Args[1:]) // it exits by itself
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, s)
	stop()
	os.Exit(code)
}

// The exit codes.
const (
	clean, broken, void = 0, 1, 2
)

// run carries out a run and prints what came of it.
func run(ctx context.Context, s settings) (code int) {
	var faults []fault
	var err error
	if s.duration > 0 {
		if faults, err = plan(s.seed, s.duration); err != nil {
			fmt.Println("chaos:", err)
			return void
		}
	}
	printPlan(s, faults)
	if s.plan {
		return clean
	}
	dir, err := os.MkdirTemp("", "billing-chaos-")
	if err != nil {
		fmt.Println("chaos:", err)
		return void
	}
	if t, ok := http.DefaultTransport.(*http.Transport); ok {
		t.MaxIdleConnsPerHost = 2 * s.workers // connections are kept, not made anew for every request
	}
	result, err := carryOut(ctx, s, dir, faults)
	switch {
	case err != nil && ctx.Err() != nil:
		fmt.Println("chaos: interrupted")
		code = void
	case err != nil:
		fmt.Println("chaos: could not be carried out:", err)
		code = void
	default:
		code = result.print(s, faults)
	}
	if code == clean && !s.keep || ctx.Err() != nil {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Println("chaos:", err)
		}
	} else {
		fmt.Println("chaos: logs and data are in", dir)
	}
	if err == nil {
		fmt.Println(result.verdict(code))
	}
	return code
}

// root is the repository's, where the program is run.
func root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, "deploy/kafka/run.sh")); err != nil {
		return "", errors.New("chaos is run in the root of the repository")
	}
	return dir, nil
}
