package projection_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
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
	"example.com/billing/pkg/projection"
)

// rebuilder is a fixture whose model can be rebuilt.
type rebuilder struct {
	*fixture
	jobs *job.Jobs
}

func openRebuilder(t *testing.T) *rebuilder {
	t.Helper()
	f := open(t)
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

// The new table is the old one in all but its rows: indexes by the same names, storage settings, keys.
func TestTheNewTableIsShapedAsTheOld(t *testing.T) {
	f := openRebuilder(t)
	shape := func() string {
		var s string
		if err := f.pool.QueryRow(t.Context(), `SELECT concat((SELECT array_agg(pg_get_indexdef(indexrelid) ORDER BY indexrelid::regclass::text) FROM pg_index WHERE indrelid = 'account'::regclass),
			(SELECT reloptions FROM pg_class WHERE oid = 'account'::regclass),
			(SELECT array_agg(ROW(conname, pg_get_constraintdef(oid)) ORDER BY conname) FROM pg_constraint WHERE conrelid = 'account'::regclass))`).Scan(&s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := shape()
	for range 2 {
		f.rebuild(t)
		if after := shape(); after != before || !strings.Contains(after, "account_odd") || !strings.Contains(after, "fillfactor=70") {
			t.Errorf("before %s\nafter %s", before, after)
		}
	}
	var left int
	if err := f.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_class WHERE relname LIKE '%rebuild%'`).Scan(&left); err != nil || left != 0 {
		t.Errorf("%d relations are left over, %v", left, err)
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
		<-g.letOn
	case <-g.letOn: // open
	}
	return g.Source.ReadAll(ctx, aggregateType, from)
}

// The projection writes, and readers read, while the rebuild runs: no list is ever behind what was written before it was asked
// for, and after the switch nothing is missing. Prepared statements of the pool outlive the switch.
func TestReadsAndWritesDuringARebuild(t *testing.T) {
	f := openRebuilder(t)
	const streams, events, rebuilds = 16, 40, 4
	var all []es.Stream
	var histories [][]es.Event
	for range streams {
		s := newStream()
		all, histories = append(all, s), append(histories, f.history(t, s, 1, 1))
	}
	var (
		mu      sync.Mutex
		written = make([]int64, streams) // the projection has returned with these versions
	)
	upTo := func() []int64 {
		mu.Lock()
		defer mu.Unlock()
		return append([]int64(nil), written...)
	}
	var writers, readers sync.WaitGroup
	for i := range all {
		writers.Go(func() {
			for v := int64(1); v <= events; v++ {
				e := histories[i][0]
				if v > 1 {
					e = es.Event{ID: uuid.NewString(), Type: "Moved", Stream: all[i], Version: v, At: time.UnixMilli(1), Data: fmt.Appendf(nil, `{"change":%d}`, v)}
					if err := f.store.Append(context.Background(), es.Append{Stream: all[i], Expected: v - 1, Events: []es.Event{e}}); err != nil {
						t.Error(err)
						return
					}
				}
				if err := f.Handle(context.Background(), []es.Event{e}); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				written[i] = v
				mu.Unlock()
			}
		})
	}
	stop := make(chan struct{})
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				atLeast := upTo()
				rows := f.table(t)
				for i, s := range all {
					r := rows[s.ID]
					if r.Version < atLeast[i] || r.State != (balance{Sum: r.Version * (r.Version + 1) / 2, Moves: r.Version}) {
						t.Errorf("a read shows %+v of %s, where version %d was written", r, s, atLeast[i])
						return
					}
				}
			}
		})
	}
	for range rebuilds {
		if d := f.rebuild(t); d.Repaired != 0 {
			t.Errorf("%+v", d)
		}
	}
	writers.Wait()
	d := f.rebuild(t)
	close(stop)
	readers.Wait()
	if d.Rows != streams || d.Repaired != 0 || d.Behind != 0 || d.Events != streams*events {
		t.Errorf("at the end: %+v", d)
	}
	for id, r := range f.table(t) {
		if r.Version != events {
			t.Errorf("%s shows version %d", id, r.Version)
		}
	}
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

// What the projection writes once the last events are being folded waits for the switch, and then goes to the new table: written
// to the old one it would be lost.
func TestAWriteDuringTheSwitchIsNotLost(t *testing.T) {
	f := openRebuilder(t)
	s := newStream()
	events := f.history(t, s, 4, 3)
	if err := f.Handle(t.Context(), events[:3]); err != nil {
		t.Fatal(err)
	}
	gate := newGated(f.store)
	f.start(t, gate)
	<-gate.reached // to catch up
	gate.letOn <- struct{}{}
	<-gate.reached // under the lock: which events there are is settled
	if err := f.store.Append(t.Context(), es.Append{Stream: s, Expected: 3, Events: events[3:]}); err != nil {
		t.Fatal(err)
	}
	handled := make(chan error, 1)
	go func() { handled <- f.Handle(context.Background(), events[3:]) }()
	for waits := false; !waits && len(handled) == 0; { // until it waits, or went through
		if err := f.pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'account'::regclass AND NOT granted)`).Scan(&waits); err != nil {
			t.Fatal(err)
		}
	}
	if r := f.row(t, s); r.Version != 3 {
		t.Errorf("a reader beside it: %+v", r)
	}
	close(gate.letOn)
	if st, d := f.end(t); st.Status != job.Done || d.Events != 3 {
		t.Errorf("%+v", st)
	}
	if err := <-handled; err != nil {
		t.Fatal(err)
	}
	if r := f.row(t, s); r.Version != 4 || r.State.Sum != 10 {
		t.Errorf("after the switch: %+v", r)
	}
}

// An attempt to switch that fails has folded nothing: the next one folds the same events again.
func TestAFailedSwitchIsTakenBack(t *testing.T) {
	f := openRebuilder(t)
	s := newStream()
	events := f.history(t, s, 3, 2)
	gate := newGated(f.store)
	f.start(t, gate)
	<-gate.reached // to catch up; what comes now is folded by the attempt
	if err := f.store.Append(t.Context(), es.Append{Stream: s, Expected: 2, Events: events[2:]}); err != nil {
		t.Fatal(err)
	}
	gate.letOn <- struct{}{}
	<-gate.reached // under the lock, where a reader comes that stays
	tx, err := f.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `SELECT FROM account`); err != nil {
		t.Fatal(err)
	}
	gate.letOn <- struct{}{}
	<-gate.reached // to catch up again: the attempt has failed
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(gate.letOn)
	if st, d := f.end(t); st.Status != job.Done || d.Rows != 1 || d.Events != 3 {
		t.Errorf("%+v", st)
	}
	if r := f.row(t, s); r.Version != 3 {
		t.Errorf("%+v", r)
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
	closed := make(chan error)
	go func() { closed <- f.jobs.Close(context.Background()) }()
	close(gate.letOn)
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	// It may have ended before it was stopped; mostly it has not.
	f.jobs = job.New(f.pool, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = f.jobs.Close(context.Background()) })
	if r := f.row(t, s); r.Version != 3 {
		t.Errorf("after the stop: %+v", r)
	}
	f.exec(t, `DROP TABLE IF EXISTS account_rebuild; CREATE TABLE account_rebuild (other text)`)
	if d := f.rebuild(t); d.Rows != 1 || d.Repaired+d.Behind > 1 {
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

// Somebody who reads the table for long, such as a backup, is waited for, and readers who come meanwhile are not held up.
func TestTheSwitchWaitsForALongReader(t *testing.T) {
	f := openRebuilder(t)
	s := newStream()
	events := f.history(t, s, 3, 3)
	if err := f.Handle(t.Context(), events[:2]); err != nil {
		t.Fatal(err)
	}
	tx, err := f.pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	count := func() (n int) {
		if err := tx.QueryRow(t.Context(), `SELECT count(*) FROM account`).Scan(&n); err != nil {
			t.Error(err)
		}
		return n
	}
	count()
	f.start(t, f.store)
	for { // until the switch stands before the reader
		var waits bool
		if err := f.pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'account'::regclass AND mode = 'AccessExclusiveLock' AND NOT granted)`).Scan(&waits); err != nil {
			t.Fatal(err)
		}
		if waits {
			break
		}
		if st, _ := f.jobs.Latest(t.Context(), "rebuild"); st.Status != job.Running {
			t.Fatalf("%+v", st)
		}
	}
	if r := f.row(t, s); r.Version != 2 {
		t.Errorf("a reader beside it: %+v", r)
	}
	if err := f.Handle(t.Context(), events); err != nil || f.row(t, s).Version != 3 {
		t.Errorf("a writer beside it: %v", err)
	}
	if n := count(); n != 1 {
		t.Errorf("the long reader sees %d rows", n)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st, d := f.end(t); st.Status != job.Done || d.Rows != 1 || f.row(t, s).Version != 3 {
		t.Errorf("%+v", st)
	}
}

// A migration that changes the table while it is rebuilt is not taken back.
func TestAChangedTableIsNotSwitched(t *testing.T) {
	f := openRebuilder(t)
	gate := newGated(f.store)
	f.start(t, gate)
	<-gate.reached
	f.exec(t, `ALTER TABLE account ADD COLUMN later text`)
	close(gate.letOn)
	if st, _ := f.end(t); st.Status != job.Failed || !strings.Contains(st.Error, "changed while it was rebuilt") {
		t.Errorf("%+v", st)
	}
	f.exec(t, `SELECT later FROM account`)
	f.rebuild(t)
	f.exec(t, `SELECT later FROM account`)
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

// Batches that wait for the rebuild's lock leave connections for everybody else.
func TestWaitingBatchesLeaveConnections(t *testing.T) {
	f := openRebuilder(t)
	cfg := f.pool.Config()
	cfg.MaxConns = 4
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	p := projection.New(pool, f.model, f.store.Load)
	tx, err := f.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `LOCK TABLE account IN EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	var batches sync.WaitGroup
	for range 8 {
		events := f.history(t, newStream(), 1, 1)
		batches.Go(func() {
			if err := p.Handle(context.Background(), events); err != nil {
				t.Error(err)
			}
		})
	}
	for waiting := 0; waiting < 2; {
		if err := f.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE relation = 'account'::regclass AND NOT granted`).Scan(&waiting); err != nil {
			t.Fatal(err)
		}
	}
	if err := pool.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	batches.Wait()
}
