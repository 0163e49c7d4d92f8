// Package job runs a service's long jobs in the background, one run of each at a time over all instances, and shows every
// instance how far they are.
//
// A run holds a lease, a row that its process renews. A process that dies, or cannot reach the database, stops to renew it: a
// run without a live lease has failed, and another may begin. A run that lost its lease cannot go on unnoticed: Guard, Show
// and Finish fail, and its context ends. Nothing of it depends on a session of the database, so a pooler such as PgBouncer
// may stand between.
package job

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
)

// Migrations are the table of jobs; see package migrate.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// MigrationsTable records which of Migrations were applied.
const MigrationsTable = "job_migration"

// The statuses of a job.
const (
	Never   = "never"   // nobody asked for it yet
	Running = "running" // a process is at work
	Done    = "done"    // it came to its end, whatever it found
	Failed  = "failed"  // it could not be carried out
)

const (
	ttl          = 10 * time.Second       // how long a lease lives that is not renewed
	lockClass    = 1247                   // first key of the advisory locks of versions before leases; the second is the job's id
	showEvery    = time.Second            // how often a run writes how far it is
	lookEvery    = 100 * time.Millisecond // how often a waiter looks
	farewellTime = 2 * time.Second        // for the last word of a run whose service stops
	errorMax     = 1000                   // bytes of an error that are kept
)

// ErrLost says that a run is not the job's latest any more: its lease ended, and another run may have begun.
var ErrLost = errors.New("the run lost its lease")

// errDied is what a run failed of whose process did not live to say.
const errDied = "the process that was at work ended"

// State is a job's latest run.
type State struct {
	Status    string
	Detail    json.RawMessage // what the run last told of itself; nil = nothing yet
	Error     string          // only of a failed one
	StartedAt time.Time       // zero = never
	SeenAt    time.Time       // when the run last told of itself
	EndedAt   time.Time       // zero = not yet
}

// Jobs starts jobs and reads them. Safe for concurrent use.
type Jobs struct {
	// Stopping ends every Wait with the present state, so that no caller holds up the stop. nil = never. Set it before use.
	Stopping <-chan struct{}

	pool   *pgxpool.Pool
	ttl    time.Duration
	log    *slog.Logger
	ctx    context.Context // of the runs
	cancel context.CancelFunc
	mu     sync.Mutex // no run is added once Close waits
	runs   sync.WaitGroup
}

// New makes the jobs of a process on a database that Migrations were applied to.
func New(pool *pgxpool.Pool, log *slog.Logger) *Jobs {
	j := &Jobs{pool: pool, ttl: ttl, log: log}
	j.ctx, j.cancel = context.WithCancel(context.Background())
	return j
}

// Close has the runs of this process fail and waits for them.
func (j *Jobs) Close(ctx context.Context) error {
	j.mu.Lock()
	j.cancel()
	j.mu.Unlock()
	ended := make(chan struct{})
	go func() { j.runs.Wait(); close(ended) }()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run is a run at work. Not safe for concurrent use.
type Run struct {
	// Conn is a connection of the run's own. It keeps nothing between two transactions: a pooler may give each to another
	// server process. What must not happen beside another run is done in a transaction behind Guard.
	Conn *pgx.Conn

	name  string
	job   int
	id    string
	shown time.Time
}

// Guard keeps every other run from beginning until the transaction ends, or fails with ErrLost if one has begun already.
func (r *Run) Guard(ctx context.Context, tx pgx.Tx) error {
	var id int
	err := tx.QueryRow(ctx, `SELECT id FROM job WHERE run = $1 AND status = $2 FOR SHARE`, r.id, Running).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("job %s: %w", r.name, ErrLost)
	}
	return espg.Classify("guard job "+r.name, err)
}

// Show tells all instances how far the run is: detail is JSON for State.Detail. It writes about once a second, however often
// it is called.
func (r *Run) Show(ctx context.Context, detail any) error {
	if time.Since(r.shown) < showEvery {
		return nil
	}
	b, err := json.Marshal(detail)
	if err != nil {
		return fmt.Errorf("job %s: %w", r.name, err)
	}
	r.shown = time.Now()
	tag, err := r.Conn.Exec(ctx, `UPDATE job SET detail = $2, seen_at = clock_timestamp() WHERE run = $1 AND status = $3`, r.id, b, Running)
	return r.held("show job ", tag, err)
}

// Finish ends the run within a transaction on Conn: it is done if, and only if, that commits.
func (r *Run) Finish(ctx context.Context, tx pgx.Tx, detail any) error {
	b, err := json.Marshal(detail)
	if err != nil {
		return fmt.Errorf("job %s: %w", r.name, err)
	}
	tag, err := tx.Exec(ctx, `UPDATE job SET status = $2, detail = $3, seen_at = clock_timestamp(), ended_at = clock_timestamp()
		WHERE run = $1 AND status = $4`, r.id, Done, b, Running)
	return r.held("finish job ", tag, err)
}

// held fails unless the run's row was written.
func (r *Run) held(what string, tag pgconn.CommandTag, err error) error {
	if err == nil && tag.RowsAffected() == 0 {
		return fmt.Errorf("%s%s: %w", what, r.name, ErrLost)
	}
	return espg.Classify(what+r.name, err)
}

// Work does a job. It ends its run by Run.Finish, or by an error. Its context ends with the service, and when the run has lost
// its lease.
type Work func(ctx context.Context, r *Run) error

// Start begins a run in the background, unless one is under way, here or in another instance: then it reports false.
func (j *Jobs) Start(ctx context.Context, name string, work Work) (bool, error) {
	if err := j.enter(); err != nil {
		return false, espg.Classify("start job "+name, err)
	}
	r, err := j.begin(ctx, name)
	if err != nil || r == nil {
		j.runs.Done()
		return false, espg.Classify("start job "+name, err)
	}
	go func() {
		defer j.runs.Done()
		j.carryOut(r, work)
	}()
	return true, nil
}

// enter counts one more run, unless Close was called.
func (j *Jobs) enter() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.ctx.Err(); err != nil {
		return err
	}
	j.runs.Add(1)
	return nil
}

// alive is whether the run of a job has a lease that lives. One written by a clock that was ahead is void: it says a time
// further away than its own length.
const alive = `coalesce(clock_timestamp() BETWEEN l.renewed_at - l.ttl AND l.renewed_at + l.ttl, false)`

// begin makes a run; nil without an error means that another is under way.
func (j *Jobs) begin(ctx context.Context, name string) (_ *Run, err error) {
	if s, err := j.Latest(ctx, name); err != nil || s.Status == Running {
		return nil, err // without a lock, which the run's own transactions may hold for long
	}
	r := &Run{name: name, id: uuid.NewString()}
	if r.Conn, err = pgx.ConnectConfig(ctx, j.pool.Config().ConnConfig); err != nil {
		return nil, err
	}
	ours := false
	err = pgx.BeginFunc(ctx, r.Conn, func(tx pgx.Tx) (err error) {
		ours, err = j.take(ctx, tx, r)
		return err
	})
	if err != nil || !ours {
		r.Conn.Close(context.WithoutCancel(ctx))
		return nil, err
	}
	return r, nil
}

// take makes r the job's latest run, unless one is under way.
func (j *Jobs) take(ctx context.Context, tx pgx.Tx, r *Run) (bool, error) {
	// A run that lost its lease may hold the row for as long as its last transaction lasts.
	if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '5s'`); err != nil {
		return false, err
	}
	if _, err := tx.Exec(ctx, `INSERT INTO job (name) VALUES ($1) ON CONFLICT DO NOTHING`, r.name); err != nil {
		return false, err
	}
	var status string
	if err := tx.QueryRow(ctx, `SELECT id, status FROM job WHERE name = $1 FOR UPDATE`, r.name).Scan(&r.job, &status); err != nil {
		return false, err
	}
	var lives, free bool // read behind the lock: its last holder may have begun a run
	if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM job_lease l JOIN job j ON j.id = l.job AND j.run = l.run WHERE j.id = $1 AND `+alive+`),
		pg_try_advisory_xact_lock($2, $1)`, r.job, lockClass).Scan(&lives, &free); err != nil {
		return false, err
	}
	if status == Running && lives {
		return false, nil
	}
	if !free {
		return false, &es.UnavailableError{Op: "start job " + r.name, Err: errors.New("an instance of an earlier version is at work")}
	}
	if _, err := tx.Exec(ctx, `UPDATE job SET run = $2, status = $3, detail = NULL, error = NULL, started_at = clock_timestamp(),
		seen_at = clock_timestamp(), ended_at = NULL WHERE id = $1`, r.job, r.id, Running); err != nil {
		return false, err
	}
	_, err := tx.Exec(ctx, `INSERT INTO job_lease VALUES ($1, $2, clock_timestamp(), $3)
		ON CONFLICT (job) DO UPDATE SET run = excluded.run, renewed_at = excluded.renewed_at, ttl = excluded.ttl`, r.job, r.id, j.ttl)
	return err == nil, err
}

// keep renews a run's lease until ctx ends, and calls lost if it cannot.
func (j *Jobs) keep(ctx context.Context, job int, run string, lost func(error)) {
	every := j.ttl / 4
	tick := time.NewTicker(every)
	defer tick.Stop()
	for renewed := time.Now(); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		begun := time.Now()
		once, cancel := context.WithTimeout(ctx, every)
		tag, err := j.pool.Exec(once, `UPDATE job_lease SET renewed_at = clock_timestamp() WHERE job = $1 AND run = $2`, job, run)
		cancel()
		switch {
		case err == nil && tag.RowsAffected() == 0:
			lost(ErrLost)
			return
		case err == nil:
			renewed = begun
		case time.Since(renewed) > j.ttl:
			lost(errors.Join(ErrLost, err))
			return
		}
	}
}

// carryOut works, and writes how it ended, unless the work did.
func (j *Jobs) carryOut(r *Run, work Work) {
	log := j.log.With("job", r.name)
	log.Info("job started")
	working, lost := context.WithCancelCause(j.ctx)
	var keeper sync.WaitGroup
	keeper.Go(func() { j.keep(working, r.job, r.id, lost) })
	err := func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v", p)
			}
		}()
		return work(working, r)
	}()
	if err != nil && errors.Is(context.Cause(working), ErrLost) {
		err = context.Cause(working)
	}
	lost(nil)
	keeper.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), farewellTime)
	defer cancel()
	if err != nil {
		log.Error("job failed", "error", err)
		why := err.Error()
		if j.ctx.Err() != nil {
			why = "the service stopped"
		}
		// Not on the run's connection, which may be broken. A run that finished stays so.
		if _, err := j.pool.Exec(ctx, `UPDATE job SET status = $2, error = $3, ended_at = clock_timestamp() WHERE run = $1 AND status = $4`,
			r.id, Failed, strings.ToValidUTF8(why[:min(len(why), errorMax)], ""), Running); err != nil {
			log.Warn("the failure could not be written; the lease tells of it", "error", err)
		}
	} else {
		log.Info("job done")
	}
	r.Conn.Close(ctx)
}

// Latest reads a job's latest run.
func (j *Jobs) Latest(ctx context.Context, name string) (State, error) {
	var (
		s                    State
		started, seen, ended *time.Time
		lives                bool
	)
	err := j.pool.QueryRow(ctx, `SELECT status, detail, coalesce(error, ''), started_at, seen_at, ended_at, `+alive+`
		FROM job LEFT JOIN job_lease l ON l.job = job.id AND l.run = job.run WHERE name = $1`, name).
		Scan(&s.Status, &s.Detail, &s.Error, &started, &seen, &ended, &lives)
	if errors.Is(err, pgx.ErrNoRows) {
		return State{Status: Never}, nil
	}
	if err != nil {
		return State{}, espg.Classify("read job "+name, err)
	}
	s.StartedAt, s.SeenAt, s.EndedAt = utc(started), utc(seen), utc(ended)
	if s.Status == Running && !lives {
		s.Status, s.Error, s.EndedAt = Failed, errDied, s.SeenAt
	}
	return s, nil
}

// utc is the time, or zero where there is none.
func utc(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

// Wait reads a job's latest run once it has ended, the time is over, or the service stops.
func (j *Jobs) Wait(ctx context.Context, name string, longest time.Duration) (State, error) {
	over := time.NewTimer(longest)
	defer over.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		s, err := j.Latest(ctx, name)
		if err != nil || s.Status != Running || longest <= 0 {
			return s, err
		}
		select {
		case <-look.C:
		case <-over.C:
			return j.Latest(ctx, name)
		case <-j.Stopping:
			return s, nil
		case <-ctx.Done():
			return s, ctx.Err()
		}
	}
}
