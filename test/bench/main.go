// Command bench measures the whole system, each service a process of its own, on a real PostgreSQL and on the broker asked for:
//
//	make bench DURATION=20s BROKER=both
//
// In the same run it measures the limit: a plain program that commits the rows of as many transfers to the same PostgreSQL.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"example.com/billing/deploy/local/embedded"
	"example.com/billing/services/edge"
)

type settings struct {
	duration  time.Duration
	broker    string
	store     string // where the accounts' events are
	out       string
	only      string
	instances int
	profiles  bool
	keep      bool
}

func main() {
	var s settings
	var kafka string
	var long bool
	var sizes string
	flag.DurationVar(&s.duration, "duration", 20*time.Second, "how long each scenario is measured, after a warm-up")
	flag.StringVar(&s.broker, "broker", "both", "apache, embedded, or both")
	flag.StringVar(&s.store, "event-store", edge.StorePostgres, "where the accounts' events are: postgres, kafka, or both, one after the other")
	flag.StringVar(&s.out, "out", "test/bench/out", "where bench.json and bench.png are written")
	flag.StringVar(&s.only, "only", "", "scenarios to measure, comma separated; all of them if empty")
	flag.IntVar(&s.instances, "instances", 1, "instances of each of the three services")
	flag.BoolVar(&s.profiles, "profiles", false, "write a CPU profile of each service for each scenario")
	flag.BoolVar(&long, "soak", false, "offer most of the capacity for the duration and look at what should stay as it is")
	flag.StringVar(&sizes, "growth", "", "sizes to measure the system at, as ACCOUNTS:EVENTS,ACCOUNTS:EVENTS, each at least as large as the one before")
	flag.BoolVar(&s.keep, "keep", false, "keep logs and data")
	flag.StringVar(&kafka, "serve-kafka", "", "run the development broker on this directory, and nothing else")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	switch {
	case kafka != "":
		err = serveKafka(ctx, kafka)
	case long:
		err = s.soak(ctx)
	case sizes != "":
		err = s.growth(ctx, sizes)
	default:
		err = run(ctx, s)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func say(format string, args ...any) { fmt.Printf("· "+format+"\n", args...) }

func run(ctx context.Context, s settings) error {
	brokers := []string{s.broker}
	if s.broker == "both" {
		brokers = []string{apacheKafka, embeddedKafka}
	}
	stores := []string{s.store}
	if s.store == "both" {
		stores = []string{edge.StorePostgres, edge.StoreKafka}
	}
	var reports []*report
	for _, b := range brokers {
		for _, store := range stores {
			s.store = store
			r, err := s.measure(ctx, b)
			if err != nil {
				return err
			}
			r.table()
			reports = append(reports, r)
		}
	}
	return s.write(reports)
}

// write leaves the first figures on top, the others' below.
func (s settings) write(reports []*report) error {
	if err := os.MkdirAll(s.out, 0o755); err != nil { //nolint:gosec // to be read
		return err
	}
	first := reports[0]
	for _, other := range reports[1:] {
		first.facts[other.name] = other
	}
	b, err := json.MarshalIndent(first, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.out, "bench.json"), append(b, '\n'), 0o644); err != nil { //nolint:gosec // to be read
		return err
	}
	if err := plotBars(filepath.Join(s.out, "bench.png"), reports); err != nil {
		return err
	}
	say("written: %s and %s", filepath.Join(s.out, "bench.json"), filepath.Join(s.out, "bench.png"))
	return nil
}

// measure runs the scenarios on one broker.
func (s settings) measure(ctx context.Context, broker string) (r *report, err error) {
	err = s.with(ctx, broker, usual, func(c *cluster, w *world, found *report) error {
		r = found
		if err := s.limits(ctx, c, r); err != nil {
			return err
		}
		if err := s.scenarios(ctx, c, w, r); err != nil {
			return err
		}
		books, err := c.books(ctx)
		r.facts["books"] = books
		return err
	})
	return r, err
}

// usual is how many accounts most scenarios have.
const usual = 1000

// newRun names a run, as no other is named.
func newRun() string { return "bench-" + strconv.FormatInt(time.Now().UnixNano(), 36) }

// with starts the system with some accounts, has something done with it, and stops it.
func (s settings) with(ctx context.Context, broker string, accounts int, do func(*cluster, *world, *report) error) (err error) {
	if broker != apacheKafka && broker != embeddedKafka {
		return fmt.Errorf("-broker: one of apache, embedded, both; not %q", broker)
	}
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "billing-bench-")
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // the Postgres user passes through
		return err
	}
	say("starting Postgres, Kafka (%s) and %d of each service in %s", broker, s.instances, dir)
	c, err := startCluster(ctx, dir, root, broker, s)
	defer func() {
		err = errors.Join(err, c.stop())
		if err == nil && !s.keep {
			err = os.RemoveAll(dir)
		}
	}()
	if err != nil {
		return err
	}
	r := &report{facts: machine(), name: broker}
	if s.store != edge.StorePostgres {
		r.name += ", events in " + s.store
	}
	if r.broker, err = embedded.BrokerVersion(ctx, strings.Split(c.brokers, ",")); err != nil {
		return err
	}
	if err := c.facts(ctx, r.facts); err != nil {
		return err
	}
	r.facts["instances"], r.facts["eventStore"] = s.instances, s.store
	say("opening %d accounts", accounts)
	w, err := newWorld(ctx, c, newRun(), accounts)
	defer func() { err = errors.Join(err, w.closeAll()) }()
	if err != nil {
		return err
	}
	return do(c, w, r)
}

// limits measures the limit.
func (s settings) limits(ctx context.Context, c *cluster, r *report) (err error) {
	say("limit")
	if r.limits.Uniform, err = measureLimit(ctx, c, s.duration/2, false); err != nil {
		return err
	}
	r.limits.Hot, err = measureLimit(ctx, c, s.duration/2, true)
	return err
}

// facts says what the figures were measured on.
func (c *cluster) facts(ctx context.Context, into map[string]any) error {
	conn, err := pgx.Connect(ctx, c.postgres.DSN("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	settings := map[string]string{"kafka acks": "all"}
	for _, name := range []string{"server_version", "fsync", "full_page_writes", "synchronous_commit", "shared_buffers", "max_wal_size", "wal_compression"} {
		var v string
		if err := conn.QueryRow(ctx, "SELECT current_setting($1)", name).Scan(&v); err != nil {
			return err
		}
		settings["postgres "+name] = v
	}
	into["settings"] = settings
	return nil
}

// scenario is one way of loading the system.
type scenario struct {
	name, what string
	callers    int     // of a closed loop; 0 = an open one
	rate       float64 // of an open loop, transfers a second
	overload   float64 // the rate is this many times what uniform reached
	hot        bool    // the limit is the hot one
	snapshot   bool    // under a snapshot that is held open, beside the same load without
	do         send
	draw       draw
}

func scenarios(c *cluster, w *world) []scenario {
	rest := overREST(&http.Client{Timeout: waitMax + 10*time.Second, Transport: &http.Transport{MaxIdleConns: 2000, MaxIdleConnsPerHost: 2000}}, c.http)
	return []scenario{
		{name: "sequential", what: "one caller, gRPC, 1,000 accounts", callers: 1, do: overGRPC, draw: w.uniform},
		{name: "uniform64", what: "gRPC, 1,000 accounts", callers: 64, do: overGRPC, draw: w.uniform},
		{name: "uniform", what: "gRPC, 1,000 accounts", callers: 256, do: overGRPC, draw: w.uniform},
		{name: "uniform1024", what: "gRPC, 1,000 accounts", callers: 1024, do: overGRPC, draw: w.uniform},
		{name: "zipf", what: "gRPC, 1,000 accounts by Zipf's law, exponent 1.1", callers: 256, do: overGRPC, draw: w.zipf},
		{name: "hot", what: "gRPC, each transfer on one account, on either side", callers: 256, hot: true, do: overGRPC, draw: w.hot},
		{name: "batch", what: "gRPC batch API, 100 transfers a call, latency of the whole call", callers: 8, do: inBatches, draw: w.uniform},
		{name: "rest", what: "REST through the gateway", callers: 256, do: rest, draw: w.uniform},
		{name: "open500", what: "gRPC, 500 transfers/s whatever becomes of them", rate: 500, do: overGRPC, draw: w.uniform},
		{name: "open1000", what: "gRPC, 1,000 transfers/s whatever becomes of them", rate: 1000, do: overGRPC, draw: w.uniform},
		{name: "snapshot", what: "as uniform, a snapshot held open in each database all the while", callers: 256, snapshot: true, do: overGRPC, draw: w.uniform},
		{name: "overload", what: "gRPC, 3 times what uniform completed", overload: 3, do: overGRPC, draw: w.uniform},
	}
}

const (
	warmUp      = 3 * time.Second  // of each scenario, before it is measured
	firstWarmUp = 40 * time.Second // before the first one, but not longer than 4 of them: Kafka's Java compiles what runs often
)

// warmUp has many transfers carried out, which nobody measures.
func (s settings) warmUp(ctx context.Context, w *world) error {
	d := min(firstWarmUp, 4*s.duration)
	say("warming up for %s", d)
	t := newTally()
	warm, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	closedLoop(warm, w, t, capacityCallers, overGRPC, w.uniform)
	if t.failure != nil {
		return fmt.Errorf("warm up: %w", t.failure)
	}
	return ctx.Err()
}

func (s settings) scenarios(ctx context.Context, c *cluster, w *world, r *report) error {
	if err := s.warmUp(ctx, w); err != nil {
		return err
	}
	var capacity float64
	for _, sc := range scenarios(c, w) {
		if s.only != "" && !strings.Contains(","+s.only+",", ","+sc.name+",") {
			continue
		}
		if sc.overload > 0 {
			sc.rate = sc.overload * capacity
		}
		if sc.callers == 0 && sc.rate == 0 {
			return fmt.Errorf("%s needs the scenario uniform", sc.name)
		}
		say("%s: %s", sc.name, sc.what)
		measure := s.one
		if sc.snapshot {
			measure = s.underSnapshot
		}
		res, err := measure(ctx, c, w, sc)
		if err != nil {
			return fmt.Errorf("%s: %w", sc.name, err)
		}
		limit := r.limits.Uniform
		if sc.hot {
			limit = r.limits.Hot
		}
		res.RatioToLimit = round(res.CompletedPerS / limit)
		if sc.name == "uniform" {
			capacity = res.CompletedPerS
		}
		r.results = append(r.results, res)
		if err := c.died(); err != nil {
			return err
		}
	}
	return nil
}

// calmWithin is what a lone transfer takes at most once the system has recovered.
const calmWithin = 100 * time.Millisecond

// recovery is how many seconds after an overload lone transfers are accepted and quick again.
func recovery(ctx context.Context, w *world, since time.Time) (float64, error) {
	r := rand.New(rand.NewPCG(5, 7)) //nolint:gosec // drawn anew each time alike
	for time.Since(since) < time.Minute {
		began := time.Now()
		o, err := overGRPC(ctx, w, 0, func() pair { return w.uniform(r) })
		if err == nil && o.completed == 1 && time.Since(began) < calmWithin {
			return round(began.Sub(since).Seconds()), nil
		}
		if err != nil && !errors.Is(err, errShed) {
			return 0, err
		}
		if !pause(ctx, 20*time.Millisecond) {
			return 0, ctx.Err()
		}
	}
	return 0, errors.New("a minute after the overload a lone transfer still takes more than " + calmWithin.String())
}

// one measures one scenario.
func (s settings) one(ctx context.Context, c *cluster, w *world, sc scenario) (*result, error) {
	load := func(ctx context.Context, t *tally, d time.Duration) {
		ctx, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		if sc.callers > 0 {
			closedLoop(ctx, w, t, sc.callers, sc.do, sc.draw)
		} else {
			openLoop(ctx, w, t, sc.rate, sc.do, sc.draw)
		}
	}
	load(ctx, newTally(), warmUp)
	before, err := c.measure(ctx)
	if err != nil {
		return nil, err
	}
	profiled := make(chan error, 1)
	go func() { profiled <- s.profile(ctx, c, sc.name) }()
	t := newTally()
	began := time.Now()
	load(ctx, t, s.duration)
	took := time.Since(began)
	after, err := c.measure(ctx)
	if err != nil {
		return nil, err
	}
	if err := <-profiled; err != nil {
		return nil, err
	}
	res := newResult(sc.name, sc.what, t, took, after.since(before))
	res.Callers, res.OfferedPerS = sc.callers, round(sc.rate)
	if sc.overload > 0 {
		if res.RecoveryS, err = recovery(ctx, w, time.Now()); err != nil {
			return nil, err
		}
	}
	say("  %.0f/s completed, p50 %.1f ms, p99 %.1f ms", res.CompletedPerS, res.P50, res.P99)
	return res, ctx.Err()
}
