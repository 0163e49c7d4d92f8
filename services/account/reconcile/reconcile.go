// Package reconcile proves that what the account service shows is what its events say: it folds every event anew, and compares
// the stored states, the read model, the sums of the books, and money in transit.
//
// It is exact although traffic goes on, and keeps no snapshot of the database: while one is open nothing can be vacuumed, and
// everybody's commits get slower. Events never change, so they are read in pages. Whatever does change is read in one short
// transaction with the version, or the position, that it belongs to, and compared with the events up to there.
package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/job"
	"example.com/billing/services/account/books"
)

// jobName is the check of all accounts among the jobs.
const jobName = "reconcile"

const (
	findingsMax = 1000 // findings that are kept
	textMax     = 500  // bytes of what stands in one
)

// The kinds of findings.
const (
	Sequence   = "sequence"   // an event is missing or unreadable
	Arithmetic = "arithmetic" // an event's own numbers
	State      = "state"      // the stored state
	ReadModel  = "read_model" // the list's row
	Books      = "books"      // the sums of a currency
	Transit    = "transit"    // money in transit of an ended transaction
)

// Finding is one thing that is not as the events say.
type Finding struct {
	Kind          string `json:"kind"`
	AccountID     string `json:"accountId,omitempty"`
	TransactionID string `json:"transactionId,omitempty"`
	Expected      string `json:"expected"` // what the events say
	Actual        string `json:"actual"`   // what is there
	Detail        string `json:"detail"`   // one sentence for people
}

// Report is what a check found, so far.
type Report struct {
	Accounts int64     `json:"accounts"` // checked
	Events   int64     `json:"events"`   // folded
	Findings []Finding `json:"findings"` // the first 1,000
	Found    int64     `json:"found"`    // in all
}

func (r *Report) add(f Finding) {
	r.Found++
	if len(r.Findings) < findingsMax {
		f.Expected, f.Actual, f.Detail = text(f.Expected), text(f.Actual), text(f.Detail)
		r.Findings = append(r.Findings, f)
	}
}

// text is what an answer can carry of something that may be anything.
func text(s string) string {
	short := s[:min(len(s), textMax)]
	if len(s) > textMax {
		short += "…"
	}
	return strings.ReplaceAll(strings.ToValidUTF8(short, "\uFFFD"), "\x00", "\uFFFD")
}

// Transactions tells which transactions have not ended.
type Transactions interface {
	Open(ctx context.Context, ids []string) ([]string, error)
}

// Reconciler checks accounts. Safe for concurrent use.
type Reconciler struct {
	pool         *pgxpool.Pool
	jobs         *job.Jobs
	transactions Transactions
	await        func(ctx context.Context) error
}

// New makes a reconciler on the service's database. fresh returns once the database has all events that there were when it was
// called; nil = it always has.
func New(pool *pgxpool.Pool, jobs *job.Jobs, transactions Transactions, fresh func(ctx context.Context) error) *Reconciler {
	return &Reconciler{pool: pool, jobs: jobs, transactions: transactions, await: fresh}
}

// One checks one account: its events, its stored state and its row. ok is false if there is nothing of such an account.
// The books and transactions take the other accounts' events and are left to All.
func (r *Reconciler) One(ctx context.Context, accountID string) (report Report, ok bool, err error) {
	err = func() error {
		if err := r.fresh(ctx); err != nil {
			return err
		}
		w, err := newWalk(ctx, r.pool, accountID, &report)
		if err != nil {
			return err
		}
		return w.run(ctx, func() error { return nil })
	}()
	return report, report.Accounts > 0 || report.Found > 0, espg.Classify("reconcile "+accountID, err)
}

// Start begins a check of all accounts in the background, unless one is under way.
func (r *Reconciler) Start(ctx context.Context) error {
	_, err := r.jobs.Start(ctx, jobName, r.all)
	return err
}

// Check begins a check of all accounts, and returns what it says once it has ended or the wait is over. A check that was under
// way already began before this one was asked for: it is waited for, and another begins. If there is no time for that, the
// answer is that a check is running. It is never what an older check says.
func (r *Reconciler) Check(ctx context.Context, wait time.Duration) (job.State, Report, error) {
	for until := time.Now().Add(wait); ; {
		ours, err := r.jobs.Start(ctx, jobName, r.all)
		if err != nil {
			return job.State{}, Report{}, err
		}
		s, report, err := r.Latest(ctx, max(0, time.Until(until)))
		if err != nil || ours || s.Status == job.Running {
			return s, report, err
		}
	}
}

// Latest reads the latest check of all accounts, and waits for its end, this long at most.
func (r *Reconciler) Latest(ctx context.Context, wait time.Duration) (job.State, Report, error) {
	s, err := r.jobs.Wait(ctx, jobName, wait)
	if err != nil {
		return s, Report{}, err
	}
	var report Report
	if s.Detail != nil {
		if err := json.Unmarshal(s.Detail, &report); err != nil {
			return s, report, fmt.Errorf("read reconciliation: %w", err)
		}
	}
	return s, report, nil
}

// all checks all accounts, as the work of a job.
func (r *Reconciler) all(ctx context.Context, run *job.Run) error {
	var report Report
	show := func() error { return run.Show(ctx, report) }
	err := r.check(ctx, &report, show)
	if err == nil {
		err = r.lists(ctx, &report, show)
	}
	if err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	return pgx.BeginFunc(ctx, run.Conn, func(tx pgx.Tx) error { return run.Finish(ctx, tx, report) })
}

// check checks everything. The books come first, with the position that the sums of the events are taken at.
func (r *Reconciler) check(ctx context.Context, report *Report, show func() error) error {
	if err := r.fresh(ctx); err != nil {
		return err
	}
	totals, position, err := books.ReadAt(ctx, r.pool)
	if err != nil {
		return err
	}
	w, err := newWalk(ctx, r.pool, "", report)
	if err != nil {
		return err
	}
	w.position = position
	if err := w.run(ctx, show); err != nil {
		return err
	}
	w.sums.compare(totals, report)
	moving, err := readTransit(ctx, r.pool, position, show)
	if err != nil {
		return err
	}
	return moving.judge(ctx, r, report)
}

// end is the newest event's position.
func (r *Reconciler) end(ctx context.Context) (position int64, err error) {
	err = r.pool.QueryRow(ctx, `SELECT coalesce(max(position), 0) FROM es_event`).Scan(&position)
	return position, err
}

// fresh waits until the database has everything.
func (r *Reconciler) fresh(ctx context.Context) error {
	if r.await == nil {
		return nil
	}
	return r.await(ctx)
}
