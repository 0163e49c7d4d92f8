package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// result is one scenario's figures. Latencies are from when a request was to be sent to the answer that its transfer has completed,
// durably; those of sagas to the answer that shows the saga completed as well.
type result struct {
	Name          string  `json:"-"`
	What          string  `json:"what"`
	Callers       int     `json:"callers,omitempty"`
	OfferedPerS   float64 `json:"offered_per_s,omitempty"`
	Seconds       float64 `json:"seconds"`
	Accepted      int64   `json:"accepted"`
	Completed     int64   `json:"completed"`
	Shed          int64   `json:"shed"`
	Failed        int64   `json:"failed"`
	Failure       string  `json:"failure,omitempty"`
	AcceptedPerS  float64 `json:"accepted_per_s"`
	CompletedPerS float64 `json:"completed_per_s"`
	RatioToLimit  float64 `json:"ratio_to_limit"`
	// Of the same load without a snapshot, in the same run.
	WithoutPerS    float64 `json:"without_per_s,omitempty"`
	RatioToWithout float64 `json:"ratio_to_without,omitempty"`

	P50       float64            `json:"p50_ms"`
	P99       float64            `json:"p99_ms"`
	P999      float64            `json:"p999_ms"`
	ShedP99   float64            `json:"shed_p99_ms,omitempty"`
	RecoveryS float64            `json:"recovery_s,omitempty"` // after an overload, until lone transfers are quick again
	SagaP50   float64            `json:"saga_p50_ms,omitempty"`
	SagaP99   float64            `json:"saga_p99_ms,omitempty"`
	CPU       map[string]float64 `json:"cpu_us_per_transfer"`
	Rows      float64            `json:"rows_per_transfer"`
	WAL       float64            `json:"wal_bytes_per_transfer"`
	Trips     float64            `json:"sql_round_trips_per_transfer"`
}

func newResult(name, what string, t *tally, took time.Duration, used usage) *result {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := &result{
		Name: name, What: what, Seconds: round(took.Seconds()), Accepted: t.accepted.Load(), Completed: t.completed.Load(), Shed: t.shed.Load(), Failed: t.failed.Load(),
		P50: ms(t.whole, 50), P99: ms(t.whole, 99), P999: ms(t.whole, 99.9), ShedP99: ms(t.refusals, 99), SagaP50: ms(t.sagas, 50), SagaP99: ms(t.sagas, 99), CPU: map[string]float64{},
	}
	if t.failure != nil {
		r.Failure = t.failure.Error()
	}
	r.AcceptedPerS, r.CompletedPerS = round(float64(r.Accepted)/took.Seconds()), round(float64(r.Completed)/took.Seconds())
	each := float64(max(r.Completed, 1))
	for name, cpu := range used.cpu {
		r.CPU[name] = round(float64(cpu.Microseconds()) / each)
	}
	r.Rows, r.WAL, r.Trips = round(float64(used.rows)/each), round(float64(used.wal)/each), round(float64(used.trips)/each)
	return r
}

func ms(h *hdrhistogram.Histogram, percent float64) float64 {
	return round(float64(h.ValueAtPercentile(percent)) / 1000)
}

// round keeps two digits behind the point.
func round(v float64) float64 { return float64(int64(v*100+0.5)) / 100 }

// limits are transfers a second of the limit program.
type limits struct {
	Uniform float64 `json:"uniform"`
	Hot     float64 `json:"hot"`
}

// report is what a run found, for one broker.
type report struct {
	name    string // of what was measured
	broker  string // as it calls itself
	limits  limits
	results []*result
	facts   map[string]any
}

// MarshalJSON has an object for each scenario, beside what it was measured on.
func (r *report) MarshalJSON() ([]byte, error) {
	out := map[string]any{"broker": r.broker, "limit_per_s": r.limits}
	for k, v := range r.facts {
		out[k] = v
	}
	for _, res := range r.results {
		out[res.Name] = res
	}
	return json.Marshal(out)
}

// table writes the figures for people.
func (r *report) table() {
	fmt.Printf("\n%s, %s; limit %.0f transfers/s, hot %.0f\n", r.name, r.broker, r.limits.Uniform, r.limits.Hot)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "scenario\taccepted/s\tcompleted/s\tof limit\tp50 ms\tp99 ms\tp99.9 ms\tsaga p50\tsaga p99\tshed/s\tfailed\trows\tWAL B\tSQL trips\t")
	for _, x := range r.results {
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.2f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.0f\t%d\t%.1f\t%.0f\t%.2f\t\n", x.Name, x.AcceptedPerS, x.CompletedPerS, x.RatioToLimit,
			x.P50, x.P99, x.P999, x.SagaP50, x.SagaP99, float64(x.Shed)/max(x.Seconds, 1), x.Failed, x.Rows, x.WAL, x.Trips)
	}
	_ = w.Flush() // standard output
	names := cpuNames(r.results)
	fmt.Println("\nCPU, µs a transfer")
	fmt.Fprintln(w, "scenario\t"+strings.Join(names, "\t")+"\tall\t")
	for _, x := range r.results {
		var sum float64
		line := x.Name
		for _, n := range names {
			line += fmt.Sprintf("\t%.0f", x.CPU[n])
			sum += x.CPU[n]
		}
		fmt.Fprintf(w, "%s\t%.0f\t\n", line, sum)
	}
	_ = w.Flush() // standard output
	for _, x := range r.results {
		if x.RecoveryS > 0 || x.Shed > 0 {
			fmt.Printf("%s: %d shed, 99 of 100 answered within %.1f ms; quick again %.1f s after its end\n", x.Name, x.Shed, x.ShedP99, x.RecoveryS)
		}
		if x.WithoutPerS > 0 {
			fmt.Printf("%s: %.0f/s completed, %.0f/s without: %.2f of it\n", x.Name, x.CompletedPerS, x.WithoutPerS, x.RatioToWithout)
		}
		if x.Failure != "" {
			fmt.Printf("%s: %d failed, the first by: %s\n", x.Name, x.Failed, x.Failure)
		}
	}
}

func cpuNames(results []*result) []string {
	var names []string
	for _, x := range results {
		for n := range x.CPU {
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	slices.Sort(names)
	return names
}

// machine says what the figures were measured on.
func machine() map[string]any {
	m := map[string]any{"cores": runtime.NumCPU(), "go": runtime.Version(), "os": runtime.GOOS + "/" + runtime.GOARCH}
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m
	}
	for line := range strings.Lines(string(b)) {
		if name, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(name) == "model name" {
			m["cpu"] = strings.TrimSpace(value)
			break
		}
	}
	return m
}
