// Package job runs a service's long jobs in the background, one run of each at a time over all instances, and shows every
// instance how far they are.
//
// A run holds a session advisory lock of Postgres on a connection of its own, and tells of its progress over that same
// connection. A process that dies loses the lock with the connection: a row that says running while nobody holds its lock is a
// run that failed. A run that lost its connection cannot go on unnoticed, for whatever it does on Run.Conn fails.
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
	"github.com/jackc/pgx/v5/pgxpool"

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
	lockClass    = 1247                   // first key of the advisory locks; the second is the job's id
	showEvery    = time.Second            // how often a run writes how far it is
	lookEvery    = 100 * time.Millisecond // how often a waiter looks
	looksMax     = 50                     // of who wants to start a job whose lock is held and whose row says that nothing runs
	farewellTime = 2 * time.Second        // for the last word of a run whose service stops
	errorMax     = 1000                   // bytes of an error that are kept
)

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
	pool   *pgxpool.Pool
	log    *slog.Logger
	ctx    context.Context // of the runs
	cancel context.CancelFunc
	mu     sync.Mutex // no run is added once Close waits
	runs   sync.WaitGroup
}

// New makes the jobs of a process on a database that Migrations were applied to.
func New(pool *pgxpool.Pool, log *slog.Logger) *Jobs {
	j := &Jobs{pool: pool, log: log}
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
	// Conn holds the lock that makes this the only run. What must not happen beside another run is done on it. A statement
	// that is still open on it keeps Show and Finish waiting for ever: end it first.
	Conn *pgx.Conn

	name  string
	id    string
	shown time.Time
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
	_, err = r.Conn.Exec(ctx, `UPDATE job SET detail = $2, seen_at = clock_timestamp() WHERE run = $1`, r.id, b)
	return espg.Classify("show job "+r.name, err)
}

// Finish ends the run within a transaction on Conn: it is done if, and only if, that commits.
func (r *Run) Finish(ctx context.Context, tx pgx.Tx, detail any) error {
	b, err := json.Marshal(detail)
	if err != nil {
		return fmt.Errorf("job %s: %w", r.name, err)
	}
	_, err = tx.Exec(ctx, `UPDATE job SET status = $2, detail = $3, seen_at = clock_timestamp(), ended_at = clock_timestamp() WHERE run = $1`, r.id, Done, b)
	return espg.Classify("finish job "+r.name, err)
}

// Work does a job. It ends its run by Run.Finish, or by an error.
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

// begin takes the job's lock on a connection of the run's own; nil without an error means that another has it.
func (j *Jobs) begin(ctx context.Context, name string) (_ *Run, err error) {
	conn, err := pgx.ConnectConfig(ctx, j.pool.Config().ConnConfig)
	if err != nil {
		return nil, err
	}
	r := &Run{Conn: conn, name: name, id: uuid.NewString()}
	ours := false
	defer func() {
		if !ours {
			conn.Close(context.WithoutCancel(ctx))
		}
	}()
	if _, err := conn.Exec(ctx, `INSERT INTO job (name) VALUES ($1) ON CONFLICT DO NOTHING`, name); err != nil {
		return nil, err
	}
	if locked, err := lock(ctx, conn, name); err != nil || !locked {
		return nil, err
	}
	if _, err := conn.Exec(ctx, `UPDATE job SET run = $2, status = $3, detail = NULL, error = NULL, started_at = clock_timestamp(),
		seen_at = clock_timestamp(), ended_at = NULL WHERE name = $1`, name, r.id, Running); err != nil {
		return nil, err
	}
	ours = true
	return r, nil
}

// lock takes the job's lock, unless a run is under way. A run that has just ended, or just begun, holds it for a moment while
// its row says otherwise.
func lock(ctx context.Context, conn *pgx.Conn, name string) (bool, error) {
	for look := 1; ; look++ {
		var (
			locked bool
			status string
		)
		err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1, id), status FROM job WHERE name = $2`, lockClass, name).Scan(&locked, &status)
		if err != nil || locked || status == Running || look == looksMax {
			return locked, err
		}
		select {
		case <-time.After(lookEvery):
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// carryOut works, and writes how it ended, unless the work did.
func (j *Jobs) carryOut(r *Run, work Work) {
	log := j.log.With("job", r.name)
	log.Info("job started")
	err := func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v", p)
			}
		}()
		return work(j.ctx, r)
	}()
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
			log.Warn("the failure could not be written; the lock tells of it", "error", err)
		}
	} else {
		log.Info("job done")
	}
	r.Conn.Close(ctx) // gives the lock back
}

// Latest reads a job's latest run.
func (j *Jobs) Latest(ctx context.Context, name string) (State, error) {
	var dead string
	for {
		s, run, locked, err := j.read(ctx, name)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return State{Status: Never}, nil
		case err != nil:
			return State{}, espg.Classify("read job "+name, err)
		case s.Status != Running || locked:
			return s, nil
		case run == dead:
			s.Status, s.Error, s.EndedAt = Failed, errDied, s.SeenAt
			return s, nil
		}
		// It may have ended between the look at its row and the look at its lock: its row tells now.
		dead = run
	}
}

func (j *Jobs) read(ctx context.Context, name string) (s State, run string, locked bool, err error) {
	var started, seen, ended *time.Time
	err = j.pool.QueryRow(ctx, `SELECT status, coalesce(run::text, ''), detail, coalesce(error, ''), started_at, seen_at, ended_at, EXISTS (
			SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.classid::bigint = $2 AND l.objid::bigint = job.id AND l.objsubid = 2 AND l.granted
			  AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
		FROM job WHERE name = $1`, name, lockClass).Scan(&s.Status, &run, &s.Detail, &s.Error, &started, &seen, &ended, &locked)
	s.StartedAt, s.SeenAt, s.EndedAt = utc(started), utc(seen), utc(ended)
	return s, run, locked, err
}

// utc is the time, or zero where there is none.
func utc(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

// Wait reads a job's latest run once it has ended, or the time is over.
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
		case <-ctx.Done():
			return s, ctx.Err()
		}
	}
}
