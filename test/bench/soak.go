package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"example.com/billing/deploy/local/system"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
)

const (
	soakShare       = 0.8         // of the capacity that is offered
	sampleAt        = time.Minute // between two samples of a soak; less where it is short
	capacityCallers = 256         // that find the capacity
)

// sample is how the system stands after a part of a soak.
type sample struct {
	Second        int               `json:"second"` // since the soak began
	CompletedPerS float64           `json:"completed_per_s"`
	P99           float64           `json:"p99_ms"`
	Memory        map[string]int64  `json:"memory_bytes"`
	Pending       int64             `json:"outbox_pending_events"` // of all three
	Tables        map[string]*table `json:"tables"`                // those that should not grow
}

// table is a table's size and what of it is dead.
type table struct {
	Bytes int64 `json:"bytes"`
	Live  int64 `json:"live_rows"`
	Dead  int64 `json:"dead_rows"`
}

// steady are the tables whose size does not depend on how much has happened.
var steady = []struct{ database, table string }{
	{system.AccountDatabase, "outbox_relay"}, {system.AccountDatabase, "book_total"},
	{system.AccountDatabase, "account_view"}, {system.AccountDatabase, "es_head"},
	{system.TransactionDatabase, "outbox_relay"}, {system.TransactionDatabase, "transaction_pending"},
	{system.SagaDatabase, "outbox_relay"}, {system.SagaDatabase, "saga_engine"},
}

// soakReport is what a soak found.
type soakReport struct {
	Broker   string         `json:"broker"`
	Facts    map[string]any `json:"facts"`
	Capacity float64        `json:"capacity_per_s"`
	Offered  float64        `json:"offered_per_s"`
	Samples  []sample       `json:"samples"`
	Result   *result        `json:"result"`
	First    float64        `json:"first_sixth_per_s"` // completed a second
	Last     float64        `json:"last_sixth_per_s"`
	Books    string         `json:"books"`
}

// soak finds the capacity, then offers most of it for long, looking at what should stay as it is.
func (s settings) soak(ctx context.Context) (err error) {
	return s.with(ctx, s.broker, usual, func(c *cluster, w *world, r *report) error {
		out := &soakReport{Broker: r.broker, Facts: r.facts}
		find := scenario{name: "capacity", what: "gRPC, 1,000 accounts", callers: capacityCallers, do: overGRPC, draw: w.uniform}
		if err := s.warmUp(ctx, w); err != nil {
			return err
		}
		say("%s: %s", find.name, find.what)
		short := s
		short.duration = min(s.duration, 20*time.Second)
		found, err := short.one(ctx, c, w, find)
		if err != nil {
			return err
		}
		out.Capacity = found.CompletedPerS
		out.Offered = round(soakShare * found.CompletedPerS)
		say("soak: %.0f transfers/s for %s", out.Offered, s.duration)
		if err := s.offer(ctx, c, w, out); err != nil {
			return err
		}
		if out.Books, err = c.books(ctx); err != nil {
			return err
		}
		out.print()
		b, err := json.MarshalIndent(out, "", "  ")
		if err != nil {
			return err
		}
		if err := os.MkdirAll(s.out, 0o755); err != nil { //nolint:gosec // to be read
			return err
		}
		return os.WriteFile(filepath.Join(s.out, "soak.json"), append(b, '\n'), 0o644) //nolint:gosec // to be read
	})
}

// offer runs the load and takes samples.
func (s settings) offer(ctx context.Context, c *cluster, w *world, out *soakReport) error {
	load, cancel := context.WithTimeout(ctx, s.duration)
	defer cancel()
	t := newTally()
	before, err := c.measure(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	done := make(chan struct{})
	go func() { defer close(done); openLoop(load, w, t, out.Offered, overGRPC, w.uniform) }()
	every := min(sampleAt, s.duration/12)
	last, lastAt := int64(0), began
	for running := true; running; {
		if !pause(ctx, every) {
			break
		}
		select {
		case <-done:
			running = false
		default:
		}
		if err := c.died(); err != nil {
			return err
		}
		at, completed := time.Now(), t.completed.Load()
		now, err := c.sample(ctx)
		if err != nil {
			return err
		}
		now.Second, now.CompletedPerS = int(at.Sub(began).Seconds()), round(float64(completed-last)/at.Sub(lastAt).Seconds())
		now.P99 = t.p99AndReset()
		if running {
			out.Samples = append(out.Samples, now)
			say("  %4d s: %.0f/s, p99 %.0f ms, outbox %d, memory %d MB", now.Second, now.CompletedPerS, now.P99, now.Pending, sum(now.Memory)>>20)
		}
		last, lastAt = completed, at
	}
	<-done
	after, err := c.measure(ctx)
	if err != nil {
		return err
	}
	out.Result = newResult("soak", "gRPC, open loop", t, time.Since(began), after.since(before))
	out.Result.OfferedPerS = out.Offered
	out.First, out.Last = sixths(out.Samples)
	return ctx.Err()
}

// sixths are the throughput of the first sixth behind the warm-up, which is the first sample, and of the last sixth.
func sixths(samples []sample) (first, last float64) {
	if len(samples) > 1 {
		samples = samples[1:]
	}
	n := max(len(samples)/6, 1)
	if len(samples) < n {
		return 0, 0
	}
	for i := range n {
		first += samples[i].CompletedPerS / float64(n)
		last += samples[len(samples)-1-i].CompletedPerS / float64(n)
	}
	return round(first), round(last)
}

func sum(m map[string]int64) (n int64) {
	for _, v := range m {
		n += v
	}
	return n
}

// p99AndReset is the 99th percentile of what was noted since it was last asked for.
func (t *tally) p99AndReset() float64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := ms(t.lately, 99)
	t.lately.Reset()
	return p
}

// sample looks at memory, outboxes and tables.
func (c *cluster) sample(ctx context.Context) (sample, error) {
	s := sample{Memory: c.memory(), Tables: map[string]*table{}}
	for _, database := range databases {
		if err := c.look(ctx, database, &s); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (c *cluster) look(ctx context.Context, database string, s *sample) error {
	conn, err := pgx.Connect(ctx, c.postgres.DSN(database))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var pending int64
	if err := conn.QueryRow(ctx, `SELECT es_end() - position FROM outbox_relay`).Scan(&pending); err != nil {
		return err
	}
	s.Pending += pending
	for _, x := range steady {
		if x.database != database {
			continue
		}
		t := &table{}
		err := conn.QueryRow(ctx, `SELECT pg_total_relation_size(relid), n_live_tup, n_dead_tup FROM pg_stat_user_tables WHERE relname = $1`, x.table).Scan(&t.Bytes, &t.Live, &t.Dead)
		if err != nil {
			return fmt.Errorf("%s: %w", x.table, err)
		}
		s.Tables[database+"."+x.table] = t
	}
	return nil
}

// books waits until nothing is in transit, and says whether all balances add up.
func (c *cluster) books(ctx context.Context) (string, error) {
	conn, err := dial(c.account[0])
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }() // nothing is under way
	books := accountv1.NewBooksServiceClient(conn)
	var last *accountv1.GetBooksResponse
	err = until(ctx, "the books", func() error {
		res, err := books.GetBooks(ctx, &accountv1.GetBooksRequest{})
		if err != nil {
			return err
		}
		last = res
		for _, b := range res.GetCurrencies() {
			if b.GetInTransit() != "0.00" {
				return errors.New(b.GetInTransit() + " is in transit")
			}
			if b.GetDifference() != "0.00" {
				return errors.New("they differ by " + b.GetDifference())
			}
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, last.String())
	}
	return "balanced", nil
}

func (r *soakReport) print() {
	fmt.Printf("\n%s: capacity %.0f/s, offered %.0f/s, completed %.0f/s, shed %d, failed %d; books: %s\n", r.Broker, r.Capacity, r.Offered,
		r.Result.CompletedPerS, r.Result.Shed, r.Result.Failed, r.Books)
	fmt.Printf("first sixth behind the warm-up %.0f/s, last sixth %.0f/s: %.3f of it\n", r.First, r.Last, r.Last/max(r.First, 1))
	if len(r.Samples) < 2 {
		return
	}
	first, last := r.Samples[1], r.Samples[len(r.Samples)-1]
	for _, name := range slices.Sorted(maps.Keys(first.Memory)) {
		fmt.Printf("memory of %s: %d MB at %d s, %d MB at %d s\n", name, first.Memory[name]>>20, first.Second, last.Memory[name]>>20, last.Second)
	}
	for _, name := range slices.Sorted(maps.Keys(first.Tables)) {
		a, b := first.Tables[name], last.Tables[name]
		fmt.Println(name + ": " + strconv.FormatInt(a.Bytes>>10, 10) + " KB, then " + strconv.FormatInt(b.Bytes>>10, 10) + " KB; dead rows " +
			strconv.FormatInt(a.Dead, 10) + ", then " + strconv.FormatInt(b.Dead, 10))
	}
}
