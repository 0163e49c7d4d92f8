package failover

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"example.com/billing/deploy/local/system"
	"example.com/billing/test/chaos/auditor"
)

const (
	restMax  = 45 * time.Second // until nothing is under way
	auditMax = 20 * time.Second
)

// recover carries out the runbook: it brings topics, checkpoints and read models back to what the databases have. It returns what the
// dry runs said. A billing-events that does not know the command yet changes nothing.
func (s *stack) recover() (said string) {
	s.t.Helper()
	tool := filepath.Join(folder, "billing-events")
	if err := exec.CommandContext(s.t.Context(), tool, "recover", "--help").Run(); err != nil {
		s.t.Log("billing-events has no recover")
		return ""
	}
	for _, d := range databases {
		aggregate := map[string]string{system.AccountDatabase: "Account", system.TransactionDatabase: "Transaction", system.SagaDatabase: "Saga"}[d]
		args := []string{"recover", s.pairs[d].DSN(d), aggregate, "--kafka-brokers", strings.Join(s.kafka.Brokers(), ",")}
		for _, dry := range []bool{true, false} {
			given := args
			if dry {
				given = append(given, "--dry-run")
			}
			ctx, cancel := context.WithTimeout(s.t.Context(), recoverMax)
			out, err := exec.CommandContext(ctx, tool, given...).CombinedOutput()
			cancel()
			s.t.Logf("billing-events recover of %s, dry run %t: %v\n%s", d, dry, err, out)
			if dry { // its exit code may say that there is something to do
				said += string(out)
			} else if err != nil {
				s.t.Errorf("recover %s: %v", d, err)
			}
		}
	}
	return said
}

// audit waits until nothing is under way, and has the auditor look at what there is: books, registers, outcomes, read models and
// topics are what the events of the databases say.
func (s *stack) audit() {
	s.t.Helper()
	journal := filepath.Join(s.logs, "journal.jsonl") // of nothing: the tests look at their requests by themselves
	s.ok(os.WriteFile(journal, nil, 0o600))
	a := auditor.Auditor{
		Journal: journal, Brokers: s.kafka.Brokers(), Account: s.pairs[system.AccountDatabase].DSN(system.AccountDatabase),
		Transaction: s.pairs[system.TransactionDatabase].DSN(system.TransactionDatabase), Saga: s.pairs[system.SagaDatabase].DSN(system.SagaDatabase),
	}
	var (
		open []string
		err  error
	)
	if !s.within(restMax, func() bool { open, err = a.Open(s.t.Context()); return err == nil && len(open) == 0 }) {
		s.t.Errorf("not at rest after %s: %v %v", restMax, open, err)
	}
	found := s.must(0, http.StatusOK, "POST", "/api/v1/books/reconcile?wait=10s", object{})
	if found["status"] != "clean" {
		s.t.Errorf("reconcile: %v", found)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), auditMax)
	defer cancel()
	report, err := a.Audit(ctx)
	s.ok(err)
	shown := 0
	for _, v := range report.Violations {
		if strings.Contains(v.Detail, "nobody asked for it") || strings.Contains(v.Detail, "nobody opened it") {
			continue // the journal is empty
		}
		if shown++; shown > 12 {
			break
		}
		s.t.Errorf("audit: %s", v)
	}
	s.t.Log(report.Checked)
}

// served: every acknowledged transaction that the database has is answered and has ended; lost is told of the others.
func (s *stack) served() (lost []acked) {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), s.pairs[system.TransactionDatabase].DSN(system.TransactionDatabase))
	s.ok(err)
	defer conn.Close(context.Background())
	rows, err := conn.Query(s.t.Context(), "SELECT stream_id FROM es_head")
	s.ok(err)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	s.ok(err)
	there := map[string]bool{}
	for _, id := range ids {
		there[id] = true
	}
	seen := map[string]bool{}
	for _, a := range s.acked {
		switch {
		case seen[a.id]:
		case there[a.id]:
			if tx := s.ended(a.id); tx["idempotencyKey"] != a.key {
				s.t.Errorf("transaction %s has the key %v, want %s", a.id, tx["idempotencyKey"], a.key)
			}
		default:
			lost = append(lost, a)
		}
		seen[a.id] = true
	}
	return lost
}

// number reads a number from a database.
func (s *stack) number(database, sql string, args ...any) (n int) {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), s.pairs[database].DSN(database))
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(s.t.Context())) }()
	s.ok(conn.QueryRow(s.t.Context(), sql, args...).Scan(&n))
	return n
}
