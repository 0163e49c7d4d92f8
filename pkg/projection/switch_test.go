package projection_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/job"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/projection"
)

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
	shown := f.table(t)
	if len(shown) != streams {
		t.Errorf("%d rows", len(shown))
	}
	for id, r := range shown {
		if r.Version != events {
			t.Errorf("%s shows version %d", id, r.Version)
		}
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
	pgtest.AwaitLock(t, f.pool, "account", 1, func() bool { return len(handled) > 0 }) // until it waits, or went through
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
	pgtest.AwaitLock(t, f.pool, "account", 1, func() bool { // until the switch stands before the reader
		st, err := f.jobs.Latest(t.Context(), "rebuild")
		if err != nil || st.Status != job.Running {
			t.Fatalf("%+v, %v", st, err)
		}
		return false
	})
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
	pgtest.AwaitLock(t, f.pool, "account", 2, nil)
	soon, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := pool.Ping(soon); err != nil {
		t.Error(err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	batches.Wait()
}
