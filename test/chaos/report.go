package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"example.com/billing/test/chaos/auditor"
)

const (
	acceptedLeast = 1000 // requests; fewer prove nothing
	shownMax      = 50   // violations that are printed
)

func printPlan(s settings, faults []fault) {
	fmt.Printf("chaos: seed %d, faults for %s, Kafka away for %s, %d callers, at most %.0f requests a second\n", s.seed, s.duration, s.away, s.workers, s.rate)
	for _, f := range faults {
		fmt.Println("  plan", f)
	}
}

// panics are lines of the services' logs that no service may write.
func panics(c *cluster) (out []string) {
	for _, name := range services {
		f, err := os.Open(filepath.Join(c.dir, name+".log")) //nolint:gosec // in the run's own directory
		if err != nil {
			return append(out, err.Error())
		}
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if t := lines.Text(); strings.HasPrefix(t, "panic:") || strings.HasPrefix(t, "fatal error:") || strings.Contains(t, "DATA RACE") {
				out = append(out, fmt.Sprintf("%s: %s", name, t))
			}
		}
		f.Close()
	}
	return out
}

// print prints the report and returns the exit code.
func (r *result) print(s settings, faults []fault) int {
	accepted, refused, unanswered := r.journal.count(auditor.Accepted), r.journal.count(auditor.Refused), r.journal.count(auditor.Unanswered)
	p50, p99 := r.journal.quantiles()
	fmt.Println()
	fmt.Printf("load      %d requests accepted in %s, %.0f a second; %d refused; %d attempts more than requests; %d never answered\n",
		accepted, r.lasted.Round(time.Second), float64(accepted)/r.lasted.Seconds(), refused, r.journal.again, unanswered)
	fmt.Printf("          accepted after p50 %s, p99 %s, over all attempts and waiting for the end where that was asked for\n", p50.Round(100*time.Microsecond), p99.Round(time.Millisecond))
	r.printFaults(faults)
	if o := r.outage; o != nil {
		fmt.Printf("outage    Kafka away for %s: %d accepted meanwhile, %d refused; back after %.1f s, backlog drained %.1f s later, under load\n", o.away, o.accepted, o.refused, o.returning.Seconds(), o.drained.Seconds())
		fmt.Printf("          in stats meanwhile (%d looks): oldestPendingMs up to %v, pending up to %v\n", o.looks, o.oldestMs, o.pending)
	}
	fmt.Printf("rest      nothing under way %.1f s after the end of the load\n", r.settled.Seconds())
	fmt.Println(r.report.Checked)
	for _, v := range r.violations() {
		fmt.Println("VIOLATION", v)
	}
	code := clean
	if r.count() > 0 {
		code = broken
	}
	for _, why := range r.void(s, faults) {
		fmt.Println("VOID", why)
		code = void
	}
	return code
}

func (r *result) printFaults(faults []fault) {
	if len(faults) == 0 {
		return
	}
	fmt.Printf("faults    %d of %d", r.injected(), len(faults))
	for i, k := range kindsOfFaults {
		if i%6 == 0 {
			fmt.Print("\n         ")
		}
		fmt.Printf(" %s %d;", k.kind, r.injector.counts[k.kind])
	}
	fmt.Printf("\n          at most %.1f s later than planned; services that ended by themselves and were started again: %d\n", r.injector.late.Seconds(), len(r.injector.revived))
	for _, why := range r.injector.revived {
		fmt.Println("         ", why)
	}
	fmt.Println("recovery  the longest by kind, from the end of the fault:")
	for _, m := range r.recovered.slowest(len(kindsOfFaults)) {
		fmt.Printf("          %5.1f s until a fresh transfer completed, %5.1f s until all of before had its outcome, %d other faults meanwhile: %s\n", m.fresh.Seconds(), m.backlog.Seconds(), m.others, m.fault)
	}
}

func (r *result) injected() (n int) {
	for _, c := range r.injector.counts {
		n += c
	}
	return n
}

// void says why a run proves nothing.
func (r *result) void(s settings, faults []fault) (why []string) {
	if len(faults) > 0 {
		for _, k := range kindsOfFaults {
			if r.injector.counts[k.kind] == 0 {
				why = append(why, fmt.Sprintf("there was no %q", k.kind))
			}
		}
	}
	if n := r.journal.count(auditor.Accepted); n < acceptedLeast && s.duration > 0 {
		why = append(why, fmt.Sprintf("%d requests were accepted, fewer than %d", n, acceptedLeast))
	}
	if n := r.journal.count(auditor.Unanswered); n > 0 {
		why = append(why, fmt.Sprintf("%d requests were never answered", n))
	}
	if n := r.report.WithoutOutcome; n > 0 {
		why = append(why, fmt.Sprintf("%d accepted requests have no outcome", n))
	}
	return why
}

// violations are the first ones, and how many there are besides: the auditor keeps some of each kind, and counts all.
func (r *result) violations() []string {
	out := slices.Clone(r.wrong)
	for _, v := range r.report.Violations {
		out = append(out, v.String())
	}
	out = out[:min(shownMax, len(out))]
	if more := r.count() - len(out); more > 0 {
		out = append(out, fmt.Sprintf("… and %d more", more))
	}
	return out
}

func (r *result) count() int { return len(r.wrong) + r.report.Count }

// verdict is the last line.
func (r *result) verdict(code int) string {
	switch n := r.count(); {
	case n == 0 && code == void:
		return "chaos: nothing was found, and the run proves nothing"
	case code == void:
		return fmt.Sprintf("chaos: %d violations, and the run proves nothing more", n)
	case n > 0:
		return fmt.Sprintf("chaos: %d violations", n)
	}
	return "chaos: clean"
}
