// Package auditor finds out, from the journal of what was asked, from the databases and from Kafka alone, whether the system kept
// its promises. It shares no code with the system: it reads the events by their JSON, folds them by itself, and compares.
//
// What it holds everything against are the events of the three databases. It is meant for a system at rest: Open says what is
// still under way.
package auditor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Auditor says where everything is. The addresses are without any proxy.
type Auditor struct {
	Journal                    string // path
	Account, Transaction, Saga string // DSNs of the three databases
	Brokers                    []string
	TopicPrefix                string // default "billing."
}

// keptMax is how many violations of a kind are kept in full; all are counted.
const keptMax = 20

// Violation is one promise broken.
type Violation struct {
	Kind   string // outcome, money, register, order, published, read model, snapshot or outbox
	What   string // whom it is of
	Detail string
}

func (v Violation) String() string { return v.Kind + ": " + v.What + ": " + v.Detail }

// Report is what an audit found.
type Report struct {
	Violations     []Violation // the first ones of each kind
	Count          int         // of all
	WithoutOutcome int         // accepted requests whose transaction is not there or has not ended
	Checked        Checked
}

// Checked counts what was looked at.
type Checked map[string]int

func (c Checked) String() string {
	var b strings.Builder
	b.WriteString("checked  ")
	for i, name := range slices.Sorted(maps.Keys(c)) {
		if i > 0 && i%4 == 0 {
			b.WriteString("\n         ")
		}
		fmt.Fprintf(&b, " %d %s;", c[name], name)
	}
	return b.String()
}

// audit is one run of the auditor.
type audit struct {
	Auditor
	report Report
	kinds  map[string]int

	published map[eventID]*published
	versions  map[stream]int64 // of the events in the databases
	accounts  map[string]*account
	moves     map[string][]move // by transaction
	registers map[string]string // account by saga and step
	kept      map[stream]map[int64][]byte
	txs       map[string]*transaction
	sagas     map[string]*sagaEnd

	incarnations map[string][]incarnation // of the database of a type of aggregate
}

// incarnation is a history of a database, and where the log ended when it began.
type incarnation struct{ number, from int64 }

func newAudit(a Auditor) *audit {
	return &audit{
		Auditor: a, report: Report{Checked: Checked{}}, kinds: map[string]int{}, published: map[eventID]*published{}, versions: map[stream]int64{},
		accounts: map[string]*account{}, moves: map[string][]move{}, registers: map[string]string{}, kept: map[stream]map[int64][]byte{},
		txs: map[string]*transaction{}, sagas: map[string]*sagaEnd{}, incarnations: map[string][]incarnation{},
	}
}

// Audit looks at everything and returns what it found; an error means that it could not look.
func (a Auditor) Audit(ctx context.Context) (*Report, error) {
	if a.TopicPrefix == "" {
		a.TopicPrefix = "billing."
	}
	x := newAudit(a)
	requests, err := ReadJournal(a.Journal)
	if err != nil {
		return nil, err
	}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"account database", func(ctx context.Context) error {
			return x.database(ctx, a.Account, "Account", x.accountEvent, x.accountTables)
		}},
		{"transaction database", func(ctx context.Context) error {
			return x.database(ctx, a.Transaction, "Transaction", x.transactionEvent, x.transactionTables)
		}},
		{"saga database", func(ctx context.Context) error { return x.database(ctx, a.Saga, "Saga", x.sagaEvent, x.sagaTables) }},
		{"topics", x.topics},
	} {
		if err := step.do(ctx); err != nil {
			return nil, fmt.Errorf("audit of %s: %w", step.name, err)
		}
	}
	x.books()
	x.ends()
	x.answers(requests)
	return &x.report, nil
}

// wrong notes a violation.
func (x *audit) wrong(kind, what, format string, args ...any) {
	x.report.Count++
	if x.kinds[kind]++; x.kinds[kind] <= keptMax {
		x.report.Violations = append(x.report.Violations, Violation{kind, what, fmt.Sprintf(format, args...)})
	}
}

// expect notes a violation unless both are the same.
func expect[V comparable](x *audit, kind, what, name string, got, want V) {
	if got != want {
		x.wrong(kind, what, "%s is %v, want %v", name, got, want)
	}
}

func (x *audit) checked(name string, n int) { x.report.Checked[name] += n }

// Open says what is still under way: pending transactions, sagas that have not ended, events that are not on their topic, read
// models that are behind. Nothing means that the system is at rest. What will never come to rest by itself is named too.
func (a Auditor) Open(ctx context.Context) ([]string, error) {
	var open []string
	for _, q := range []struct{ dsn, what, sql string }{
		{a.Transaction, "transactions are pending", `SELECT count(*) FROM transaction_pending`},
		{a.Saga, "sagas have not ended", `SELECT count(*) FROM saga_state WHERE status IN ('in_progress', 'compensating')`},
		{a.Saga, "sagas need attention", `SELECT count(*) FROM saga_state WHERE status NOT IN ('in_progress', 'compensating', 'completed', 'failed', 'compensated')`},
		{a.Account, "accounts are closing", `SELECT count(*) FROM account_closing`},
		{a.Transaction, "holds expire within a minute", `SELECT count(*) FROM hold_open WHERE expires_at < now() + interval '1 minute'`},
		{a.Account, "account events are not published", outboxLag},
		{a.Transaction, "transaction events are not published", outboxLag},
		{a.Saga, "saga events are not published", outboxLag},
		{a.Account, "events are not in account_view", `SELECT (SELECT coalesce(sum(version), 0) FROM es_head) - (SELECT coalesce(sum(version), 0) FROM account_view)`},
		{a.Transaction, "events are not in transaction_view", `SELECT (SELECT coalesce(sum(version), 0) FROM es_head) - (SELECT coalesce(sum(version), 0) FROM transaction_view)`},
	} {
		n, err := ask(ctx, q.dsn, q.sql)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("is it true that %s?", q.what), err)
		}
		if n != 0 {
			open = append(open, fmt.Sprintf("%d %s", n, q.what))
		}
	}
	return open, nil
}

const outboxLag = `SELECT es_end() - (SELECT position FROM outbox_relay)`
