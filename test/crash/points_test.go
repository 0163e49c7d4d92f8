package crash

import "slices"

// The services that have a database, by their names in topics and paths.
const (
	accounts     = "account"
	transactions = "transaction"
	sagas        = "saga"
)

// point is a place between "command accepted" and "saga finished" where a process is killed. They are in the order in which
// a transfer passes them.
type point struct {
	service, name string
	// hits are which pass kills, by outcome, in the short dose; the long one takes every pass there is. None = the first.
	hits map[string]int
	// consumes: a message that is delivered again passes the point too.
	consumes bool
}

var points = []point{
	{service: transactions, name: "transaction.before_commit"},
	{service: transactions, name: "transaction.after_commit"},
	{service: transactions, name: "transaction.before_answer"},
	{service: transactions, name: "relay.before_publish"},
	{service: transactions, name: "relay.after_publish"},
	{service: transactions, name: "relay.after_checkpoint"},
	{service: sagas, name: "saga.before_start", consumes: true},
	{service: sagas, name: "saga.before_insert", consumes: true},
	{service: sagas, name: "saga.after_insert", consumes: true},
	{service: sagas, name: "saga.after_start", consumes: true},
	// A transfer's requests: the debit, the credit, the rollback (of two commits: it closes the debit's register first), the end.
	{service: sagas, name: "saga.before_request", hits: map[string]int{completes: 2, refused: 1, compensates: 3}},
	{service: accounts, name: "account.before_commit", hits: map[string]int{completes: 2, refused: 1, compensates: 4}},
	{service: accounts, name: "account.after_commit", hits: map[string]int{completes: 2, refused: 1, compensates: 4}},
	{service: accounts, name: "account.before_answer", hits: map[string]int{completes: 1, refused: 1, compensates: 3}},
	{service: sagas, name: "saga.after_answer", hits: map[string]int{completes: 1, refused: 1, compensates: 3}},
	{service: sagas, name: "saga.before_save", hits: map[string]int{completes: 1, refused: 1, compensates: 2}},
	{service: sagas, name: "saga.after_save", hits: map[string]int{completes: 1, refused: 2, compensates: 2}},
	{service: transactions, name: "settlement.before_commit"},
	{service: transactions, name: "settlement.after_commit"},
	// What follows from Kafka, beside the saga.
	{service: accounts, name: "relay.before_publish"},
	{service: accounts, name: "relay.after_publish"},
	{service: accounts, name: "projection.before_commit"},
	{service: accounts, name: "projection.after_commit"},
	{service: transactions, name: "projection.before_commit"},
	{service: transactions, name: "projection.after_commit"},
	{service: sagas, name: "relay.before_publish"},
	{service: sagas, name: "relay.after_publish"},
}

// hit is which pass kills in the short dose.
func (p point) hit(outcome string) int { return max(p.hits[outcome], 1) }

// The outcomes of a transfer.
const (
	completes   = "completes"
	refused     = "is refused"
	compensates = "is compensated"
)

// outcome is a transfer, and how it ends whatever was killed meanwhile.
type outcome struct {
	name                string
	funded, amount      string // of the source before, and of the transfer
	max                 string // of the destination; empty = no limit
	status              string
	source              holding
	destination         holding
	debit, credit, undo []string // what the registers may say
}

// holding is an account at the end: a version more would be a posting too many.
type holding struct {
	balance string
	version float64
}

var outcomes = []outcome{
	{
		name: completes, funded: "100.00", amount: "40.00", status: "completed", source: holding{"60.00", 3}, destination: holding{"40.00", 2},
		debit: []string{"DONE"}, credit: []string{"DONE"}, undo: []string{"OPEN"},
	},
	{
		name: refused, funded: "10.00", amount: "40.00", status: "failed", source: holding{"10.00", 3}, destination: holding{"0.00", 1},
		debit: []string{"REFUSED"}, credit: []string{"OPEN"}, undo: []string{"CANCELLED"},
	},
	{
		name: compensates, funded: "100.00", amount: "40.00", max: "5.00", status: "compensated", source: holding{"100.00", 4}, destination: holding{"0.00", 2},
		debit: []string{"DONE"}, credit: []string{"REFUSED"}, undo: []string{"DONE"},
	},
}

// crashCase is one kill.
type crashCase struct {
	point               point
	outcome             outcome
	hit                 int
	waits               patience
	source, destination string
}

// patience is what is waited for as long as in production, until the others know that the process is dead. The rest is shortened.
type patience struct {
	leases  bool // a relay's and an engine's, 5 s
	session bool // in a consumer group, 10 s
}

// patientCases are those of the short dose that wait.
var patientCases = map[string]patience{"transaction.after_commit " + completes: {leases: true}, "saga.after_insert " + completes: {leases: true}}

// shortDose kills once at every point with every outcome.
func shortDose() []crashCase {
	var all []crashCase
	for _, p := range points {
		for _, o := range outcomes {
			all = append(all, crashCase{point: p, outcome: o, hit: p.hit(o.name), waits: patientCases[p.name+" "+o.name]})
		}
	}
	return inTurn(all)
}

// passesMax is more than a transfer passes any point; the test fails if it does pass it so often.
const passesMax = 8

// longDose kills at every pass; those that do not happen are found out. The first of each point waits as long as in production, of
// a transfer that completes.
func longDose() []crashCase {
	var all []crashCase
	for _, c := range shortDose() {
		for c.hit = 1; c.hit <= passesMax; c.hit++ {
			first := c.hit == 1 && c.outcome.name == completes
			c.waits = patience{leases: first, session: first}
			all = append(all, c)
		}
	}
	return all
}

// inTurn has the services take turns: while one is killed, the others get over it.
func inTurn(cases []crashCase) []crashCase {
	by := map[string][]crashCase{}
	for _, c := range cases {
		by[c.point.service] = append(by[c.point.service], c)
	}
	var all []crashCase
	for len(all) < len(cases) {
		for _, service := range []string{transactions, sagas, accounts} {
			if q := by[service]; len(q) > 0 {
				all, by[service] = append(all, q[0]), q[1:]
			}
		}
	}
	return all
}

// names are the points' names, each once.
func names() []string {
	var all []string
	for _, p := range points {
		all = append(all, p.name)
	}
	slices.Sort(all)
	return slices.Compact(all)
}
