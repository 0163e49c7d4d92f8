package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"example.com/billing/deploy/local/system"
	"example.com/billing/test/failover/pgpair"
)

// The schedule is a function of seed and duration alone.

// kind is what a fault does.
type kind string

// The kinds. "kill" is kill -9 and a restart, "pause" is SIGSTOP and SIGCONT; a cut closes connections and refuses new ones, a hang
// lets them stand with nothing getting through, a delay slows them down; isolate hangs all of one process's connections; a snapshot that is held open
// keeps the database from pruning what has changed since. "replace" freezes Postgres for good and promotes its synchronous standby.
const (
	killAccount     kind = "kill account"
	killTransaction kind = "kill transaction"
	killSaga        kind = "kill saga"
	killGateway     kind = "kill gateway"
	killPostgres    kind = "kill postgres"
	killKafka       kind = "kill kafka"
	pauseShort      kind = "pause"
	pauseLong       kind = "pause beyond leases"
	cutService      kind = "cut service"
	cutPostgres     kind = "cut postgres"
	cutKafka        kind = "cut kafka"
	hangService     kind = "hang service"
	hangPostgres    kind = "hang postgres"
	hangKafka       kind = "hang kafka"
	delayService    kind = "delay service"
	delayPostgres   kind = "delay postgres"
	delayKafka      kind = "delay kafka"
	isolate         kind = "isolate"
	holdSnapshot    kind = "hold snapshot"
	replacePostgres kind = "replace postgres"
	jumpClock       kind = "jump clock"
)

// clockAhead is how far the clock of Postgres jumps: more than a lease (5 s), less than what a run waits for.
const clockAhead = 20 * time.Second

// span is from what to what a fault of a kind lasts; of a kill, how long the process is away.
type span struct{ least, most time.Duration }

// leaseMax is longer than every lease (5 s) and than Kafka's session of a consumer (10 s).
const leaseMax = 13 * time.Second

// lasting is a kind and how long its faults last.
type lasting struct {
	kind kind
	span span
}

// kindsOfFaults are the kinds in a fixed order. A clock can only jump where libfaketime is installed.
var kindsOfFaults = func() []lasting {
	if _, err := pgpair.Clock(clockAhead); err != nil {
		return kindsAnywhere
	}
	return append(slices.Clip(kindsAnywhere), lasting{jumpClock, span{2 * time.Second, 5 * time.Second}})
}()

var kindsAnywhere = []lasting{
	{killAccount, span{200 * time.Millisecond, 3 * time.Second}},
	{killTransaction, span{200 * time.Millisecond, 3 * time.Second}},
	{killSaga, span{200 * time.Millisecond, 3 * time.Second}},
	{killGateway, span{200 * time.Millisecond, 2 * time.Second}},
	{killPostgres, span{200 * time.Millisecond, 3 * time.Second}},
	{killKafka, span{200 * time.Millisecond, 5 * time.Second}},
	{pauseShort, span{300 * time.Millisecond, 3 * time.Second}},
	{pauseLong, span{6 * time.Second, leaseMax}},
	{cutService, span{100 * time.Millisecond, 4 * time.Second}},
	{cutPostgres, span{100 * time.Millisecond, 4 * time.Second}},
	{cutKafka, span{100 * time.Millisecond, 5 * time.Second}},
	{hangService, span{500 * time.Millisecond, 7 * time.Second}},
	{hangPostgres, span{500 * time.Millisecond, 7 * time.Second}},
	{hangKafka, span{500 * time.Millisecond, 7 * time.Second}},
	{delayService, span{1 * time.Second, 6 * time.Second}},
	{delayPostgres, span{1 * time.Second, 6 * time.Second}},
	{delayKafka, span{1 * time.Second, 6 * time.Second}},
	{isolate, span{6 * time.Second, leaseMax}},
	{holdSnapshot, span{3 * time.Second, leaseMax}},
	{replacePostgres, span{3 * time.Second, leaseMax}},
}

// fault is one entry of the schedule.
type fault struct {
	at      time.Duration // from the beginning
	lasts   time.Duration
	kind    kind
	targets []string      // processes, or links by their names
	slow    time.Duration // of a delay: by how much
}

func (f fault) String() string {
	s := fmt.Sprintf("%6.1fs %-20s %s for %s", f.at.Seconds(), f.kind, f.whom(), f.lasts)
	if f.slow > 0 {
		s += fmt.Sprintf(" by %s", f.slow)
	}
	return s
}

// whom is what the fault hits, as people read it: of an isolated process its name, not that of all its links.
func (f fault) whom() string {
	if f.kind == isolate {
		return victim(f.targets)
	}
	return strings.Join(f.targets, " ")
}

const (
	calm        = 3 * time.Second  // before the first fault
	tail        = 14 * time.Second // from the latest beginning of a fault to the end of the run
	between     = 6 * time.Second  // from fault to fault, where there is time
	restarts    = 15 * time.Second // a process that is started again is left alone for this long
	faultsLeast = 45 * time.Second // for a run with every kind
)

// plan draws the schedule: rounds of all kinds, each in an order of its own. Two faults may overlap, but not on the same process or
// link: for one whose targets are all taken, the injector waits until they are free.
func plan(seed uint64, duration time.Duration) ([]fault, error) {
	if duration < faultsLeast {
		return nil, fmt.Errorf("%s are too short for a fault of every kind: at least %s", duration, faultsLeast)
	}
	rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a schedule that can be drawn again is the point
	window := duration - calm - tail
	rounds := max(1, int(window/(between*time.Duration(len(kindsOfFaults)))))
	gap := window / time.Duration(rounds*len(kindsOfFaults))
	busy := map[string]time.Duration{} // until when a target is hit by another fault
	var faults []fault
	for range rounds {
		for _, i := range rng.Perm(len(kindsOfFaults)) {
			k := kindsOfFaults[i]
			at := calm + time.Duration(len(faults))*gap + time.Duration(rng.Int64N(int64(gap)))/2
			most := min(k.span.most, max(k.span.least, duration-at-tail/3))
			f := fault{at: at.Truncate(100 * time.Millisecond), kind: k.kind, lasts: drawSpan(rng, k.span.least, most).Truncate(100 * time.Millisecond)}
			if strings.HasPrefix(string(f.kind), "delay") {
				f.slow = drawSpan(rng, 20*time.Millisecond, 600*time.Millisecond).Truncate(time.Millisecond)
			}
			f.targets = targets(rng, f.kind, func(names []string) bool {
				return !slices.ContainsFunc(names, func(n string) bool { return busy[n] > f.at })
			})
			end := f.at + f.lasts
			if strings.HasPrefix(string(f.kind), "kill") {
				end += restarts
			}
			for _, n := range f.targets {
				busy[n] = end
			}
			faults = append(faults, f)
		}
	}
	return faults, nil
}

func drawSpan(rng *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(rng.Int64N(int64(most-least)+1))
}

// attemptsMax is how often targets are drawn until some are free; then the fault waits for its targets when it is carried out.
const attemptsMax = 20

// targets draws what a fault hits.
func targets(rng *rand.Rand, k kind, free func([]string) bool) (names []string) {
	for range attemptsMax {
		if names = draw(rng, k); free(names) {
			break
		}
	}
	return names
}

var pairs = map[kind][]string{killAccount: {accountA, accountB}, killTransaction: {transactionA, transactionB}, killSaga: {sagaA, sagaB}}

func draw(rng *rand.Rand, k kind) []string {
	one := func(of []string) []string { return []string{of[rng.IntN(len(of))]} }
	switch k {
	case killAccount, killTransaction, killSaga:
		if rng.IntN(4) == 0 {
			return pairs[k]
		}
		return one(pairs[k])
	case killGateway:
		return []string{gateway}
	case killPostgres, replacePostgres, jumpClock:
		return []string{postgres}
	case killKafka:
		return []string{kafka}
	case pauseShort, pauseLong:
		return one(append([]string{postgres, kafka}, services...))
	case holdSnapshot:
		return one(snapshots)
	case isolate:
		return linksOf(one(services[:6])[0])
	case cutService, hangService, delayService:
		return one(linkNames(toService))
	case cutPostgres, hangPostgres, delayPostgres:
		return one(linkNames(toPostgres))
	default: // cutKafka, hangKafka, delayKafka
		return one(linkNames(toKafka))
	}
}

// snapshots are the targets of holdSnapshot, one for each database. They are none of the processes: other faults may come meanwhile.
var snapshots = []string{
	"snapshot of " + system.AccountDatabase, "snapshot of " + system.TransactionDatabase, "snapshot of " + system.SagaDatabase,
}

// linkNames lists the links to a medium, in a fixed order.
func linkNames(m medium) (names []string) {
	for _, from := range services {
		switch {
		case m == toService:
			for _, to := range calls[from] {
				names = append(names, from+">"+to)
			}
		case from != gateway:
			names = append(names, from+">"+string(m))
		}
	}
	return names
}

// victim is the process that linksOf gave these links of: its way to Postgres is the one among them.
func victim(links []string) string {
	for _, l := range links {
		if from, ok := strings.CutSuffix(l, ">"+postgres); ok {
			return from
		}
	}
	return strings.Join(links, " ")
}

// linksOf lists all links of a process: its own, and those to it.
func linksOf(name string) (names []string) {
	for _, m := range []medium{toService, toPostgres, toKafka} {
		for _, l := range linkNames(m) {
			if strings.HasPrefix(l, name+">") || strings.HasSuffix(l, ">"+name) {
				names = append(names, l)
			}
		}
	}
	return names
}
