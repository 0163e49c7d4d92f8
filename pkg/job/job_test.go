package job_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/job"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/pgtest"
)

type detail struct {
	Steps int `json:"steps"`
}

// finish ends a run as work does.
func finish(ctx context.Context, r *job.Run, d any) error {
	return pgx.BeginFunc(ctx, r.Conn, func(tx pgx.Tx) error { return r.Finish(ctx, tx, d) })
}

func database(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.Pool(t)
	if err := migrate.Up(t.Context(), pool, job.Migrations, job.MigrationsTable); err != nil {
		t.Fatal(err)
	}
	return pool
}

// instance is one process's jobs.
func instance(t *testing.T, pool *pgxpool.Pool) *job.Jobs {
	t.Helper()
	j := job.New(pool, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = j.Close(context.Background()) })
	return j
}

func start(t *testing.T, j *job.Jobs, work job.Work) bool {
	t.Helper()
	started, err := j.Start(t.Context(), "rebuild", work)
	if err != nil {
		t.Fatal(err)
	}
	return started
}

// ended waits for the end as any instance sees it.
func ended(t *testing.T, j *job.Jobs) job.State {
	t.Helper()
	s, err := j.Wait(t.Context(), "rebuild", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestARunIsSeenByAllInstances(t *testing.T) {
	pool := database(t)
	here, there := instance(t, pool), instance(t, pool)
	if s := ended(t, there); s.Status != job.Never || !s.StartedAt.IsZero() {
		t.Errorf("before the first run: %+v", s)
	}
	shown, goOn := make(chan struct{}), make(chan struct{})
	if !start(t, here, func(ctx context.Context, r *job.Run) error {
		if err := r.Show(ctx, detail{3}); err != nil {
			return err
		}
		if err := r.Show(ctx, detail{4}); err != nil { // too soon to be written
			return err
		}
		close(shown)
		<-goOn
		return finish(ctx, r, detail{7})
	}) {
		t.Fatal("the first run was not started")
	}
	<-shown
	s, err := there.Latest(t.Context(), "rebuild")
	if err != nil || s.Status != job.Running || string(s.Detail) != `{"steps": 3}` || s.StartedAt.IsZero() || !s.EndedAt.IsZero() {
		t.Errorf("under way: %+v, %v", s, err)
	}
	for _, j := range []*job.Jobs{here, there} {
		if start(t, j, func(context.Context, *job.Run) error { return nil }) {
			t.Error("a second run began beside the first")
		}
	}
	close(goOn)
	if s := ended(t, there); s.Status != job.Done || string(s.Detail) != `{"steps": 7}` || s.EndedAt.IsZero() || s.Error != "" {
		t.Errorf("ended: %+v", s)
	}
}

func TestOfManyStartsOneRuns(t *testing.T) {
	pool := database(t)
	goOn := make(chan struct{})
	var (
		starts  sync.WaitGroup
		mu      sync.Mutex
		started int
	)
	for range 8 {
		j := instance(t, pool)
		starts.Go(func() {
			ours, err := j.Start(t.Context(), "rebuild", func(ctx context.Context, r *job.Run) error { <-goOn; return finish(ctx, r, nil) })
			if err != nil {
				t.Error(err)
			}
			if ours {
				mu.Lock()
				started++
				mu.Unlock()
			}
		})
	}
	starts.Wait()
	close(goOn)
	if started != 1 {
		t.Errorf("%d runs", started)
	}
}

func TestAFailedRunSaysWhyAndMayBeRepeated(t *testing.T) {
	pool := database(t)
	j := instance(t, pool)
	for name, tc := range map[string]struct {
		work job.Work
		want string
	}{
		"an error": {func(context.Context, *job.Run) error { return errors.New("the disk is full") }, "the disk is full"},
		"a panic":  {func(context.Context, *job.Run) error { panic("a defect") }, "panic: a defect"},
	} {
		if !start(t, j, tc.work) {
			t.Fatalf("%s: not started", name)
		}
		if s := ended(t, j); s.Status != job.Failed || s.Error != tc.want || s.EndedAt.IsZero() {
			t.Errorf("%s: %+v", name, s)
		}
		if !start(t, j, func(ctx context.Context, r *job.Run) error { return finish(ctx, r, nil) }) {
			t.Fatalf("%s: not started again", name)
		}
		if s := ended(t, j); s.Status != job.Done || s.Error != "" {
			t.Errorf("%s, repeated: %+v", name, s)
		}
	}
}

func TestAStoppedServiceFailsItsRuns(t *testing.T) {
	pool := database(t)
	here, there := instance(t, pool), instance(t, pool)
	begun := make(chan struct{})
	start(t, here, func(ctx context.Context, _ *job.Run) error { close(begun); <-ctx.Done(); return ctx.Err() })
	<-begun
	if err := here.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := ended(t, there); s.Status != job.Failed || s.Error != "the service stopped" {
		t.Errorf("%+v", s)
	}
	if _, err := here.Start(t.Context(), "rebuild", nil); err == nil {
		t.Error("a job began after the close")
	}
	if !start(t, there, func(ctx context.Context, r *job.Run) error { return finish(ctx, r, nil) }) {
		t.Error("it cannot be started again")
	}
}

// A process that is killed, or cannot reach the database, says nothing more: its lease ends, and its row stays at running.
func TestAKilledProcessFailsItsRuns(t *testing.T) {
	pool := database(t)
	severed, cut := pgtest.Severed(t, pool)
	here, there := instance(t, severed), instance(t, pool)
	here.SetTTL(time.Second)
	begun, goOn, late := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	start(t, here, func(ctx context.Context, r *job.Run) error {
		close(begun)
		<-goOn
		err := finish(ctx, r, nil) // it does not know yet
		late <- err
		return err
	})
	<-begun
	cut()
	if s := ended(t, there); s.Status != job.Failed || s.Error == "" || s.EndedAt.IsZero() {
		t.Errorf("%+v", s)
	}
	if !start(t, there, func(ctx context.Context, r *job.Run) error { return finish(ctx, r, detail{1}) }) {
		t.Fatal("it cannot be started again")
	}
	if s := ended(t, there); s.Status != job.Done {
		t.Errorf("the next run: %+v", s)
	}
	close(goOn)
	if err := <-late; err == nil {
		t.Error("a run that lost its lease finished")
	}
	if err := here.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := ended(t, there); s.Status != job.Done || string(s.Detail) != `{"steps": 1}` {
		t.Errorf("the lost run wrote over its successor: %+v", s)
	}
}

// A run whose process stood still for longer than its lease lives can do nothing beside its successor, although its connection
// is sound.
func TestARunThatLostItsLeaseIsFencedOff(t *testing.T) {
	pool := database(t)
	here, there := instance(t, pool), instance(t, pool)
	stands, goOn, ends := make(chan struct{}), make(chan struct{}), make(chan struct{})
	fenced := map[string]error{}
	start(t, here, func(ctx context.Context, r *job.Run) error {
		close(stands)
		<-goOn
		defer close(ends)
		<-ctx.Done() // its lease is another's
		free := context.WithoutCancel(ctx)
		fenced["guard"] = pgx.BeginFunc(free, r.Conn, func(tx pgx.Tx) error { return r.Guard(free, tx) })
		fenced["show"] = r.Show(free, detail{1})
		fenced["finish"] = finish(free, r, detail{1})
		return ctx.Err()
	})
	<-stands
	if _, err := pool.Exec(t.Context(), `UPDATE job_lease SET renewed_at = clock_timestamp() - interval '1 minute', ttl = '1 ms'`); err != nil {
		t.Fatal(err)
	}
	work := make(chan struct{})
	if !start(t, there, func(ctx context.Context, r *job.Run) error { <-work; return finish(ctx, r, detail{2}) }) {
		t.Fatal("no other may begin, although the lease ended")
	}
	close(goOn)
	<-ends
	for what, err := range fenced {
		if !errors.Is(err, job.ErrLost) {
			t.Errorf("%s: %v", what, err)
		}
	}
	close(work)
	if s := ended(t, there); s.Status != job.Done || string(s.Detail) != `{"steps": 2}` {
		t.Errorf("%+v", s)
	}
}

// A lease from a clock that was an hour ahead is void: it does not delay the next run for an hour.
func TestALeaseFromAClockAheadIsVoid(t *testing.T) {
	pool := database(t)
	j := instance(t, pool)
	if _, err := pool.Exec(t.Context(), `WITH made AS (INSERT INTO job (name, run, status) VALUES ('rebuild', gen_random_uuid(), 'running') RETURNING id, run)
		INSERT INTO job_lease SELECT id, run, clock_timestamp() + interval '1 hour', '10 s' FROM made`); err != nil {
		t.Fatal(err)
	}
	if s := ended(t, j); s.Status != job.Failed {
		t.Errorf("%+v", s)
	}
	if !start(t, j, func(ctx context.Context, r *job.Run) error { return finish(ctx, r, nil) }) {
		t.Error("it cannot be started")
	}
}

// A live lease outlasts its length, because it is renewed, and a transaction of the run that guards itself is not in the way.
func TestALeaseIsRenewed(t *testing.T) {
	pool := database(t)
	here, there := instance(t, pool), instance(t, pool)
	here.SetTTL(500 * time.Millisecond)
	var first time.Time
	renewed := func(tx pgx.Tx) (at time.Time) {
		if err := tx.QueryRow(t.Context(), `SELECT renewed_at FROM job_lease`).Scan(&at); err != nil {
			t.Error(err)
		}
		return at
	}
	if !start(t, here, func(ctx context.Context, r *job.Run) error {
		return pgx.BeginFunc(ctx, r.Conn, func(tx pgx.Tx) error {
			if err := r.Guard(ctx, tx); err != nil {
				return err
			}
			first = renewed(tx)
			pgtest.Eventually(t, "renewed for longer than it lives", func() bool { return renewed(tx).Sub(first) > time.Second })
			if start(t, there, func(context.Context, *job.Run) error { return nil }) {
				t.Error("a second run began beside the first")
			}
			return r.Finish(ctx, tx, nil)
		})
	}) {
		t.Fatal("not started")
	}
	if s := ended(t, there); s.Status != job.Done {
		t.Errorf("%+v", s)
	}
}

// Behind a PgBouncer in transaction mode the same holds, and nothing is left on the connections that others use.
func TestRunsBehindAPooler(t *testing.T) {
	pool, direct := pgtest.BouncedPool(t)
	if err := migrate.Up(t.Context(), pool, job.Migrations, job.MigrationsTable); err != nil {
		t.Fatal(err)
	}
	here, there := instance(t, pool), instance(t, direct)
	for n := range 5 {
		goOn := make(chan struct{})
		if !start(t, here, func(ctx context.Context, r *job.Run) error { <-goOn; return finish(ctx, r, detail{n}) }) {
			t.Fatalf("run %d did not begin, although none is under way", n)
		}
		if start(t, there, func(context.Context, *job.Run) error { return nil }) {
			t.Error("a second run began beside the first")
		}
		close(goOn)
		if s := ended(t, there); s.Status != job.Done || string(s.Detail) != fmt.Sprintf(`{"steps": %d}`, n) {
			t.Errorf("run %d: %+v", n, s)
		}
	}
	pgtest.NothingLeaks(t, pool)
}

// A caller who waits is answered at the stop, with the present state.
func TestAWaitEndsAtTheStop(t *testing.T) {
	pool := database(t)
	j := instance(t, pool)
	stop, goOn := make(chan struct{}), make(chan struct{})
	j.Stopping = stop
	start(t, j, func(ctx context.Context, r *job.Run) error { <-goOn; return finish(ctx, r, nil) })
	defer close(goOn)
	close(stop)
	begun := time.Now()
	if s := ended(t, j); s.Status != job.Running || time.Since(begun) > 20*time.Second {
		t.Errorf("%+v after %s", s, time.Since(begun))
	}
}

// What a run does in the transaction that finishes it happens if and only if it is done.
func TestFinishIsPartOfItsTransaction(t *testing.T) {
	pool := database(t)
	j := instance(t, pool)
	start(t, j, func(ctx context.Context, r *job.Run) error {
		return pgx.BeginFunc(ctx, r.Conn, func(tx pgx.Tx) error {
			return errors.Join(r.Finish(ctx, tx, nil), errors.New("the switch failed"))
		})
	})
	if s := ended(t, j); s.Status != job.Failed || s.Error != "the switch failed" {
		t.Errorf("%+v", s)
	}
}
