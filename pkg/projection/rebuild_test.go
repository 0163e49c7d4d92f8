package projection_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"iter"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/job"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/projection"
)

// rebuilder is a fixture whose model can be rebuilt.
type rebuilder struct {
	*fixture
	jobs *job.Jobs
}

func openRebuilder(t *testing.T) *rebuilder {
	t.Helper()
	return openRebuilderOn(t, pgtest.Pool(t))
}

func openRebuilderOn(t *testing.T, pool *pgxpool.Pool) *rebuilder {
	t.Helper()
	f := openOn(t, pool)
	if err := migrate.Up(t.Context(), f.pool, job.Migrations, job.MigrationsTable); err != nil {
		t.Fatal(err)
	}
	f.exec(t, `ALTER TABLE account SET (fillfactor = 70); CREATE INDEX account_tenant ON account (tenant, id DESC); CREATE INDEX account_odd ON account (version) WHERE version % 2 = 1`)
	r := &rebuilder{f, job.New(f.pool, slog.New(slog.DiscardHandler))}
	t.Cleanup(func() { _ = r.jobs.Close(context.Background()) })
	return r
}

func (f *fixture) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := f.pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

// start begins a rebuild from a source.
func (r *rebuilder) start(t *testing.T, source projection.Source) {
	t.Helper()
	started, err := r.jobs.Start(t.Context(), "rebuild", func(ctx context.Context, run *job.Run) error { return r.model.Rebuild(ctx, run, source) })
	if err != nil || !started {
		t.Fatalf("started %v, %v", started, err)
	}
}

// end waits for the rebuild.
func (r *rebuilder) end(t *testing.T) (job.State, projection.Rebuilt) {
	t.Helper()
	s, err := r.jobs.Wait(t.Context(), "rebuild", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	var d projection.Rebuilt
	if s.Detail != nil {
		if err := json.Unmarshal(s.Detail, &d); err != nil {
			t.Fatal(err)
		}
	}
	return s, d
}

// rebuild rebuilds to the end.
func (r *rebuilder) rebuild(t *testing.T) projection.Rebuilt {
	t.Helper()
	r.start(t, r.store)
	s, d := r.end(t)
	if s.Status != job.Done {
		t.Fatalf("%+v", s)
	}
	return d
}

// table reads the whole table: id → version and state.
func (f *fixture) table(t *testing.T) map[string]projection.Row[balance] {
	t.Helper()
	rows, err := f.pool.Query(t.Context(), `SELECT id::text, version, state FROM account`)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, f.model.Scan)
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]projection.Row[balance]{}
	for _, r := range all {
		by[r.ID] = r
	}
	return by
}

// old makes the events of the store ones of long ago: nobody could still be on the way with them.
type old struct{ projection.Source }

func (o old) ReadAll(ctx context.Context, aggregateType string, from es.From) iter.Seq2[es.Event, error] {
	return func(yield func(es.Event, error) bool) {
		for e, err := range o.Source.ReadAll(ctx, aggregateType, from) {
			e.RecordedAt = e.RecordedAt.Add(-time.Hour)
			if !yield(e, err) {
				return
			}
		}
	}
}

func TestARebuildRepairsAndCounts(t *testing.T) {
	f := openRebuilder(t)
	var streams []es.Stream
	for i := range 20 {
		s := newStream()
		streams = append(streams, s)
		events := f.history(t, s, 3+i, 3+i)
		if err := f.Handle(t.Context(), events); err != nil {
			t.Fatal(err)
		}
	}
	want := f.table(t)
	f.exec(t, `UPDATE account SET state = '{"sum":1,"moves":9}' WHERE id = $1`, streams[0].ID)              // other content
	f.exec(t, `UPDATE account SET tenant = 'another' WHERE id = $1`, streams[1].ID)                         // in another column
	f.exec(t, `DELETE FROM account WHERE id = $1`, streams[2].ID)                                           // missing
	f.exec(t, `INSERT INTO account VALUES ($1, 1, '{}', 't-1')`, uuid.NewString())                          // of no stream
	f.exec(t, `UPDATE account SET version = version + 7 WHERE id = $1`, streams[3].ID)                      // ahead of its stream
	f.exec(t, `UPDATE account SET version = 1, state = '{"sum":1,"moves":1}' WHERE id = $1`, streams[4].ID) // behind
	f.start(t, old{f.store})
	s, d := f.end(t)
	if s.Status != job.Done || d.Rows != 20 || d.Repaired != 5 || d.Behind != 1 || d.Events != d.EventsTotal || d.Events == 0 {
		t.Errorf("%s %s: %+v", s.Status, s.Error, d)
	}
	if got := f.table(t); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	again := f.rebuild(t)
	if again.Repaired != 0 || again.Behind != 0 || again.Checksum != d.Checksum {
		t.Errorf("again: %+v, before %+v", again, d)
	}
	var row string
	if err := f.pool.QueryRow(t.Context(), `SELECT string_agg(concat_ws(E'\t', id, version, '\'||state::text, tenant) || E'\n', '' ORDER BY id) FROM account`).Scan(&row); err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256([]byte(row)); hex.EncodeToString(sum[:]) != d.Checksum {
		t.Errorf("the checksum cannot be taken again: %x, %s", sum, d.Checksum)
	}
}

// A stream that has just begun may not have arrived yet.
func TestANewStreamIsNoFault(t *testing.T) {
	f := openRebuilder(t)
	f.history(t, newStream(), 2, 2)
	if d := f.rebuild(t); d.Rows != 1 || d.Repaired != 0 || d.Behind != 1 {
		t.Errorf("%+v", d)
	}
}

// gated is a store that stops a reader of all events until it is let on.
type gated struct {
	projection.Source
	reached chan struct{} // gets a value when a reader stands at the gate
	letOn   chan struct{}
}

func newGated(s projection.Source) gated { return gated{s, make(chan struct{}), make(chan struct{})} }

func (g gated) ReadAll(ctx context.Context, aggregateType string, from es.From) iter.Seq2[es.Event, error] {
	select {
	case g.reached <- struct{}{}:
		select {
		case <-g.letOn:
		case <-ctx.Done():
		}
	case <-g.letOn: // open
	case <-ctx.Done():
	}
	return g.Source.ReadAll(ctx, aggregateType, from)
}

// What is written to the old table while the events are being read is in the new one.
func TestARebuildCatchesUp(t *testing.T) {
	f := openRebuilder(t)
	s := newStream()
	events := f.history(t, s, 4, 2)
	gate := newGated(f.store)
	f.start(t, gate)
	<-gate.reached
	if err := f.store.Append(t.Context(), es.Append{Stream: s, Expected: 2, Events: events[2:]}); err != nil {
		t.Fatal(err)
	}
	if err := f.Handle(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	close(gate.letOn)
	if st, d := f.end(t); st.Status != job.Done || d.Repaired != 0 || d.Behind != 0 || d.Events != 4 {
		t.Errorf("%+v", st)
	}
	if r := f.row(t, s); r.Version != 4 || r.State.Sum != 10 {
		t.Errorf("%+v", r)
	}
}

// Behind a PgBouncer in transaction mode a rebuild works, and leaves no setting, lock or table to others.
func TestARebuildBehindAPooler(t *testing.T) {
	pool, _ := pgtest.BouncedPool(t)
	f := openRebuilderOn(t, pool)
	s := newStream()
	if err := f.Handle(t.Context(), f.history(t, s, 3, 3)); err != nil {
		t.Fatal(err)
	}
	var others sync.WaitGroup
	stop := make(chan struct{})
	for range 3 { // which take turns with the rebuild on the server's connections
		others.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := pool.Exec(t.Context(), `SELECT 1`); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 3 {
		if d := f.rebuild(t); d.Rows != 1 || d.Repaired != 0 || d.Behind != 0 {
			t.Errorf("%+v", d)
		}
	}
	close(stop)
	others.Wait()
	if r := f.row(t, s); r.Version != 3 {
		t.Errorf("%+v", r)
	}
	pgtest.NothingLeaks(t, pool)
	var left int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_class WHERE relname LIKE 'account_rebuild%'`).Scan(&left); err != nil || left != 0 {
		t.Errorf("%d tables are left, %v", left, err)
	}
}

// A service that stops in the middle leaves the old table in use and a new one half done: the next rebuild begins anew.
func TestARebuildSurvivesARestart(t *testing.T) {
	f := openRebuilder(t)
	s := newStream()
	events := f.history(t, s, 3, 3)
	if err := f.Handle(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	gate := newGated(f.store)
	f.start(t, gate)
	<-gate.reached
	f.exec(t, `INSERT INTO account_rebuild VALUES ($1, 99, '{}', 'left over')`, uuid.NewString())
	if err := f.jobs.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.jobs = job.New(f.pool, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = f.jobs.Close(context.Background()) })
	if st, _ := f.end(t); st.Status != job.Failed || st.Error != "the service stopped" {
		t.Errorf("%+v", st)
	}
	if r := f.row(t, s); r.Version != 3 {
		t.Errorf("after the stop: %+v", r)
	}
	if d := f.rebuild(t); d.Rows != 1 || d.Repaired != 0 || d.Behind != 0 {
		t.Errorf("%+v", d)
	}
	f.exec(t, `DROP TABLE IF EXISTS account_rebuild; CREATE TABLE account_rebuild (other text)`)
	if d := f.rebuild(t); d.Rows != 1 || d.Repaired != 0 || d.Behind != 0 {
		t.Errorf("%+v", d)
	}
	if r := f.row(t, s); r.Version != 3 {
		t.Errorf("%+v", r)
	}
}

// An event that is missing fails the rebuild: nothing is switched.
func TestARebuildNeedsAllEvents(t *testing.T) {
	f := openRebuilder(t)
	s := newStream()
	if err := f.Handle(t.Context(), f.history(t, s, 4, 4)); err != nil {
		t.Fatal(err)
	}
	for name, source := range map[string]projection.Source{
		"an event is missing":         lacking{f.store, 2},
		"the first event is missing":  lacking{f.store, 1},
		"the last one cannot be read": unreadable{f.store},
	} {
		f.start(t, source)
		st, _ := f.end(t)
		if st.Status != job.Failed || !strings.Contains(st.Error, s.ID) {
			t.Errorf("%s: %+v", name, st)
		}
		if r := f.row(t, s); r.Version != 4 || r.State.Sum != 10 {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// lacking is a store that lost a version.
type lacking struct {
	projection.Source
	version int64
}

func (l lacking) ReadAll(ctx context.Context, aggregateType string, from es.From) iter.Seq2[es.Event, error] {
	return func(yield func(es.Event, error) bool) {
		for e, err := range l.Source.ReadAll(ctx, aggregateType, from) {
			if e.Version != l.version && !yield(e, err) {
				return
			}
		}
	}
}

func (l lacking) Load(ctx context.Context, s es.Stream, after int64, limit int) ([]es.Event, error) {
	events, err := l.Source.Load(ctx, s, after, limit)
	var left []es.Event
	for _, e := range events {
		if e.Version != l.version {
			left = append(left, e)
		}
	}
	return left, err
}

// unreadable is a store with an event of an unknown type.
type unreadable struct{ projection.Source }

func (u unreadable) ReadAll(ctx context.Context, aggregateType string, from es.From) iter.Seq2[es.Event, error] {
	return func(yield func(es.Event, error) bool) {
		for e, err := range u.Source.ReadAll(ctx, aggregateType, from) {
			if e.Version == 4 {
				e.Type = "Vanished"
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// A stream that Write leaves out has no row to begin at: it is loaded.
func TestAStreamWithoutARowIsLoaded(t *testing.T) {
	f := openRebuilder(t)
	write := f.model.Write
	f.model.Write = func(ctx context.Context, tx pgx.Tx, table string, rows []projection.Row[balance]) error {
		var shown []projection.Row[balance]
		for _, r := range rows {
			if r.State.Moves > 2 {
				shown = append(shown, r)
			}
		}
		return write(ctx, tx, table, shown)
	}
	s := newStream()
	events := f.history(t, s, 4, 2)
	gate := newGated(f.store)
	f.start(t, gate)
	<-gate.reached // the first pass reads two events
	gate.letOn <- struct{}{}
	<-gate.reached // the last one reads two more
	if err := f.store.Append(t.Context(), es.Append{Stream: s, Expected: 2, Events: events[2:]}); err != nil {
		t.Fatal(err)
	}
	close(gate.letOn)
	if st, _ := f.end(t); st.Status != job.Done {
		t.Errorf("%+v", st)
	}
	if d := f.rebuild(t); d.Rows != 1 || d.Repaired != 0 {
		t.Errorf("%+v", d)
	}
}
