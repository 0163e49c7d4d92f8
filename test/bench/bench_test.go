package main

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"testing/synctest"

	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/pgtest"
)

// An open loop begins calls at its rate whatever becomes of them, and counts latency from when each was to begin.
func TestOpenLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, counts := &world{accounts: []string{"a", "b"}}, newTally()
		var n atomic.Int64
		slow := func(context.Context, *world, int, func() pair) (outcome, error) {
			if n.Add(1)%10 == 0 {
				return outcome{}, errShed
			}
			time.Sleep(2 * time.Second)
			return outcome{accepted: 1, completed: 1}, nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), 9995*time.Millisecond) // between two calls: 1,000 of them
		defer cancel()
		began := time.Now()
		openLoop(ctx, w, counts, 100, slow, w.uniform)
		if took := time.Since(began); took < 11*time.Second || took > 12*time.Second {
			t.Errorf("it took %s, not as long as its calls", took)
		}
		res := newResult("x", "", counts, 10*time.Second, usage{cpu: map[string]time.Duration{"p": time.Second}, rows: 900, wal: 1800})
		if res.Completed != 900 || res.Shed != 100 || res.CompletedPerS != 90 || res.P50 < 1990 || res.P50 > 2010 || res.ShedP99 > 1 {
			t.Errorf("%+v", res)
		}
		if res.Rows != 1 || res.WAL != 2 || res.CPU["p"] < 1111 || res.CPU["p"] > 1112 {
			t.Errorf("what was used: %+v", res)
		}
	})
}

// A closed loop's callers wait for each answer; what ends after its time is not counted.
func TestClosedLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, counts := &world{accounts: []string{"a", "b"}}, newTally()
		third := func(context.Context, *world, int, func() pair) (outcome, error) {
			time.Sleep(3 * time.Second)
			return outcome{accepted: 1, completed: 1}, nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		closedLoop(ctx, w, counts, 4, third, w.uniform)
		if got := counts.completed.Load(); got != 12 {
			t.Errorf("%d completed, want 3 for each of 4 callers", got)
		}
		counts.note(time.Now(), outcome{}, errors.New("first"))
		counts.note(time.Now(), outcome{}, errors.New("second"))
		if res := newResult("x", "", counts, time.Second, usage{}); res.Failed != 2 || res.Failure != "first" {
			t.Errorf("%+v", res)
		}
	})
}

func TestDraws(t *testing.T) {
	w := &world{accounts: []string{"a", "b", "c", "d"}}
	r := rand.New(rand.NewPCG(1, 2))
	from, first := 0, map[string]int{}
	for range 1000 {
		for name, d := range map[string]draw{"uniform": w.uniform, "hot": w.hot, "zipf": w.zipf} {
			p := d(r)
			if p.from == p.to {
				t.Fatalf("%s: %s to itself", name, p.from)
			}
			if name == "hot" && p.from != "a" && p.to != "a" {
				t.Fatalf("hot: %+v", p)
			}
			if name == "hot" && p.from == "a" {
				from++
			}
			if name == "zipf" {
				first[p.from]++
			}
		}
	}
	if from < 400 || from > 600 {
		t.Errorf("the hot account pays %d of 1,000 times", from)
	}
	if first["a"] <= first["d"] {
		t.Errorf("by Zipf's law: %v", first)
	}
}

// What this process has used is found in /proc, and its children that have ended too.
func TestProcess(t *testing.T) {
	began := cpuOf(os.Getpid())
	for until := time.Now().Add(50 * time.Millisecond); time.Now().Before(until); { // work, which is what is measured
	}
	if now := cpuOf(os.Getpid()); now < began || now == 0 {
		t.Errorf("CPU %s, then %s", began, now)
	}
	if resident(os.Getpid()) < 1<<20 {
		t.Errorf("%d bytes of memory", resident(os.Getpid()))
	}
	if cpuOf(1<<30) != 0 || resident(1<<30) != 0 {
		t.Error("a process that is not there has used something")
	}
}

// The report has an object for each scenario beside what it was measured on, the other broker's below, and a picture.
func TestReport(t *testing.T) {
	dir := t.TempDir()
	one := func(name, broker string, per float64) *report {
		return &report{name: name, broker: broker, limits: limits{Uniform: 100, Hot: 50}, facts: map[string]any{"cores": 2}, results: []*result{
			{Name: "uniform", CompletedPerS: per, RatioToLimit: per / 100, P50: 1, P99: 2, P999: 3, CPU: map[string]float64{"sagad": 7}},
			{Name: "hot", CompletedPerS: per / 2},
		}}
	}
	if err := (settings{out: dir}).write([]*report{one("apache", "Apache", 20), one("embedded", "other", 30)}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "bench.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Broker   string
		Uniform  map[string]any
		Hot      map[string]any
		Embedded struct{ Uniform map[string]any }
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"completed_per_s", "ratio_to_limit", "p50_ms", "p99_ms", "p999_ms"} {
		if _, ok := got.Uniform[key]; !ok {
			t.Errorf("uniform has no %s", key)
		}
	}
	if got.Broker != "Apache" || got.Uniform["completed_per_s"] != 20.0 || got.Hot["completed_per_s"] != 10.0 || got.Embedded.Uniform["completed_per_s"] != 30.0 {
		t.Errorf("%s", b)
	}
	if png, err := os.ReadFile(filepath.Join(dir, "bench.png")); err != nil || !strings.HasPrefix(string(png), "\x89PNG") {
		t.Errorf("no picture: %v", err)
	}
}

func TestSixths(t *testing.T) {
	var samples []sample
	for i := range 13 { // the first is the warm-up
		samples = append(samples, sample{CompletedPerS: float64(100 + i)})
	}
	if first, last := sixths(samples); first != 101.5 || last != 111.5 {
		t.Errorf("%v and %v", first, last)
	}
	if first, last := sixths(nil); first != 0 || last != 0 {
		t.Errorf("of nothing: %v and %v", first, last)
	}
}

// A snapshot that is held open keeps its database's horizon; one that did not last is told.
func TestHoldSnapshots(t *testing.T) {
	dsn := pgtest.DSN(t)
	pool, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for _, killed := range []bool{false, true} {
		release, err := holdSnapshots(t.Context(), []string{dsn})
		if err != nil {
			t.Fatal(err)
		}
		const ofIdle = `FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction' AND backend_xmin IS NOT NULL`
		var n int
		if err := pool.QueryRow(t.Context(), `SELECT count(*) `+ofIdle).Scan(&n); err != nil || n != 1 {
			t.Errorf("%d are held, %v", n, err)
		}
		if killed {
			if _, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) `+ofIdle); err != nil {
				t.Fatal(err)
			}
		}
		if err := release(); (err != nil) != killed {
			t.Errorf("killed: %v, got %v", killed, err)
		}
	}
}
