package outbox

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/parking"
	"example.com/billing/pkg/pgtest"
)

// Refusals are counted in the database: relays that take turns try an event as often as one alone. And an outage in between
// does not count.
func TestRelaysCountTogether(t *testing.T) {
	s, pool := open(t)
	happen(t, s, 1)
	tb := table{pool}
	a, _ := acquire(t, tb, "a", ended)
	fail := func(epoch int64, position int64, want int) {
		t.Helper()
		if n, err := tb.failed(t.Context(), epoch, 1, position, errors.New("no\x00 \xff")); n != want || err != nil {
			t.Errorf("refused %d times (%v), want %d", n, err, want)
		}
	}
	fail(a.epoch, 1, 1)
	b, _ := acquire(t, tb, "b", ended)
	fail(b.epoch, 1, 2)
	fail(b.epoch, 0, 2) // an outage
	fail(b.epoch, 1, 3)
	fail(b.epoch, 2, 1) // another event
}

// Two relays and a parked lane: whoever works keeps it parked, and sends it in order once it is requeued, new events behind it.
func TestTwoRelaysKeepALaneParked(t *testing.T) {
	s, pool := open(t)
	sick := es.Stream{Type: "Account", ID: uuid.NewString()}
	var poison atomic.Value
	poison.Store("")
	refuses := func() []string { return []string{poison.Load().(string)} }
	a, b := picky(refuses), picky(refuses)
	stop := start(t, Config{Pool: pool, Publisher: a, LeaseTTL: time.Hour, RetryMax: time.Millisecond})
	want := []string{commit(t, s, sick, 1, 0)}
	pgtest.Eventually(t, "a works", func() bool { return checkpoint(t, pool) == 1 })
	e := happened(sick, 2)
	poison.Store(e.ID)
	if err := s.Append(t.Context(), es.Append{Stream: sick, Expected: 1, Events: []es.Event{e}}); err != nil {
		t.Fatal(err)
	}
	want = append(want, e.ID, commit(t, s, sick, 3, 0))
	pgtest.Eventually(t, "a parks the lane", func() bool { return waiting(t, pool).Rows == 2 })
	start(t, Config{Pool: pool, Publisher: b, LeaseTTL: time.Hour, RetryMax: time.Millisecond})
	stop() // b takes over
	want = append(want, commit(t, s, sick, 4, 0))
	other := happen(t, s, 2)
	pgtest.Eventually(t, "b parks what comes behind, and the others flow", func() bool { return waiting(t, pool).Rows == 3 && checkpoint(t, pool) == 6 })
	poison.Store("")
	requeue(t, pool, want[2])
	pgtest.Eventually(t, "the lane is through", func() bool { return waiting(t, pool).Rows == 0 })
	want = append(want, commit(t, s, sick, 5, 0))
	pgtest.Eventually(t, "and as any other", func() bool { return checkpoint(t, pool) == 7 })
	got := append(a.published(), b.published()...)
	if of := slices.DeleteFunc(slices.Clone(got), func(id string) bool { return slices.Contains(other, id) }); !slices.Equal(of, want) || len(got) != len(want)+2 {
		t.Errorf("published\n %v of the lane, want\n %v", of, want)
	}
}

// A relay that lost its lease parks nothing, sends nothing through and moves nothing, in the middle of either.
func TestALateRelayChangesNoLane(t *testing.T) {
	s, pool := open(t)
	sick := es.Stream{Type: "Account", ID: uuid.NewString()}
	first := commit(t, s, sick, 1, 0)
	second := commit(t, s, sick, 2, 0)
	late := NewRelay(Config{Pool: pool, Publisher: picky(func() []string { return []string{first} }), Prefix: "billing", AttemptsMax: 1})
	l, ok := acquire(t, late.table, late.owner, ended)
	if !ok {
		t.Fatal("the lease is not free")
	}
	now, _ := acquire(t, late.table, "now", time.Hour)
	if err := late.park(t.Context(), &l, 1, 5, errors.New("refused")); !errors.Is(err, ErrFenced) {
		t.Errorf("park: %v", err)
	}
	if err := late.table.advance(t.Context(), lease{epoch: l.epoch, position: 2, incarnation: 1}, 0, []int64{1, 2}, late.owner, time.Hour); !errors.Is(err, ErrFenced) {
		t.Errorf("advance: %v", err)
	}
	if got, p := parked(t, pool), checkpoint(t, pool); len(got) != 0 || p != 0 {
		t.Fatalf("a late relay parked %+v, checkpoint %d", got, p)
	}
	// The one that has the lease parks; the late one sees the lane requeued, and its answers are not heard.
	if err := late.table.advance(t.Context(), lease{epoch: now.epoch, position: 2, incarnation: 1}, 0, []int64{1, 2}, "now", time.Hour); err != nil {
		t.Fatal(err)
	}
	requeue(t, pool, second)
	for _, refuses := range []string{first, ""} { // refused, then acknowledged
		late.Publisher, late.looked = picky(func() []string { return []string{refuses} }), time.Time{}
		if _, err := late.resend(t.Context(), &l); !errors.Is(err, ErrFenced) {
			t.Errorf("resend: %v", err)
		}
	}
	for _, r := range parked(t, pool) {
		if r.Status != parking.Requeued || !r.DoneAt.IsZero() || r.Attempts != 0 {
			t.Errorf("a late relay changed %+v", r)
		}
	}
}

// Who requeues waits for a relay that is parking: nothing of the lane is left behind.
func TestARequeueWaitsForWhoParks(t *testing.T) {
	s, pool := open(t)
	sick := es.Stream{Type: "Account", ID: uuid.NewString()}
	first := commit(t, s, sick, 1, 0)
	commit(t, s, sick, 2, 0)
	tb := table{pool}
	l, _ := acquire(t, tb, "a", time.Hour)
	if err := tb.advance(t.Context(), lease{epoch: l.epoch, position: 1, incarnation: 1}, 0, []int64{1}, "a", time.Hour); err != nil {
		t.Fatal(err)
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), `UPDATE outbox_relay SET position = 2`); err != nil { // as change begins
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), parkRows, []int64{2}, 0, 0, ""); err != nil {
		t.Fatal(err)
	}
	done := make(chan int64, 1)
	go func() { done <- requeue(t, pool, first) }()
	pgtest.Eventually(t, "it waits, or has not waited", func() bool { return pgtest.Waiting(t, pool) > 0 || len(done) > 0 })
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := <-done; n != 2 {
		t.Errorf("requeued %d, want 2: %+v", n, parked(t, pool))
	}
}
