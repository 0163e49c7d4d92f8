// Command stores measures how many events a second each event store appends, beside what the plain driver writes of the same bytes in the
// same run:
//
//	make bench-stores DURATION=5s
//
// or how long it takes to load one aggregate of 100 events out of a log of many, and to start with such a log:
//
//	make bench-load EVENTS=10000000
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"example.com/billing/deploy/local/embedded"
	"example.com/billing/pkg/es"
)

// groups are how many appends of one event commit together.
var groups = []int{1, 16, 256}

func main() {
	duration := flag.Duration("duration", 5*time.Second, "how long each figure is measured, after a warm-up")
	events := flag.Int64("load", 0, "measure loads and starts, on a log of so many events")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *duration, *events)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "stores:", err)
		os.Exit(1)
	}
}

// writer appends groups of events: to one stream, or each to a stream of its own.
type writer interface {
	write(ctx context.Context, events []es.Event) error
}

// contestant is a store, or a driver.
type contestant struct {
	name string
	raw  string // the driver that it is compared with; empty = it is one
	open func(ctx context.Context, dir string) (writer, func() error, error)
}

func run(ctx context.Context, d time.Duration, load int64) (err error) {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "billing-stores-")
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // the Postgres user passes through
		return err
	}
	if load > 0 {
		return errors.Join(loads(ctx, root, dir, load), os.RemoveAll(dir))
	}
	fmt.Println("· starting Postgres and Apache Kafka in", dir)
	postgres, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{Bin: os.Getenv("BILLING_POSTGRES_BIN"), DataDir: dir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, postgres.Stop(context.WithoutCancel(ctx)), os.RemoveAll(dir)) }()
	broker, err := embedded.StartApacheKafka(ctx, embedded.ApacheKafkaOptions{Script: filepath.Join(root, "deploy/kafka/run.sh"), DataDir: dir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Stop(context.WithoutCancel(ctx))) }()
	if err := postgres.EnsureDatabases(ctx, "stores"); err != nil {
		return err
	}
	version, err := embedded.BrokerVersion(ctx, broker.Brokers())
	if err != nil {
		return err
	}
	all := contestants(postgres.DSN("stores"), broker.Brokers(), slog.New(slog.DiscardHandler))
	found := map[string]map[int][2]float64{}
	for _, c := range all {
		fmt.Println("·", c.name)
		if found[c.name], err = c.measure(ctx, dir, d); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	fmt.Printf("\n%s; events of about 500 bytes, appended by one caller, a second (share of the plain driver)\n", version)
	table(all, found)
	return nil
}

func table(all []contestant, found map[string]map[int][2]float64) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	head := "\t"
	for _, n := range groups {
		head += fmt.Sprintf("one stream, %d\tas many streams, %d\t", n, n)
	}
	fmt.Fprintln(w, head)
	for _, c := range all {
		line := c.name
		for _, n := range groups {
			for i, rate := range found[c.name][n] {
				line += fmt.Sprintf("\t%.0f", rate)
				if raw, ok := found[c.raw]; ok {
					line += fmt.Sprintf(" (%.2f)", rate/raw[n][i])
				}
			}
		}
		fmt.Fprintln(w, line+"\t")
	}
	_ = w.Flush() // standard output
}

// measure finds the rates for each size of group: all on one stream, and each on its own.
func (c contestant) measure(ctx context.Context, dir string, d time.Duration) (map[int][2]float64, error) {
	w, end, err := c.open(ctx, filepath.Join(dir, strings.ReplaceAll(c.name, " ", "-")))
	if err != nil {
		return nil, err
	}
	rates := map[int][2]float64{}
	for _, n := range groups {
		var both [2]float64
		for i, several := range []bool{false, true} {
			if both[i], err = rate(ctx, w, n, several, d); err != nil {
				return nil, errors.Join(err, end())
			}
		}
		rates[n] = both
	}
	return rates, end()
}

func rate(ctx context.Context, w writer, n int, several bool, d time.Duration) (float64, error) {
	var (
		one     = es.Stream{Type: "Measured", ID: uuid.NewString()}
		version int64
		warm    = time.Now().Add(d / 4)
		began   time.Time
		count   int
	)
	for {
		now := time.Now()
		if began.IsZero() && now.After(warm) {
			began, count = now, 0
		}
		if !began.IsZero() && now.Sub(began) >= d {
			return float64(count) / now.Sub(began).Seconds(), nil
		}
		events := make([]es.Event, n)
		for i := range events {
			stream, v := one, version+int64(i)+1
			if several {
				stream, v = es.Stream{Type: "Measured", ID: uuid.NewString()}, 1
			}
			events[i] = es.Event{
				ID: uuid.NewString(), Type: "Happened", Stream: stream, Version: v, At: now, CorrelationID: "c",
				Data: []byte(`{"n":` + strconv.Itoa(count+i) + `,"padding":"` + padding + `"}`),
			}
		}
		if err := w.write(ctx, events); err != nil {
			return 0, err
		}
		version += int64(n)
		count += n
	}
}

var padding = strings.Repeat("x", 200)
