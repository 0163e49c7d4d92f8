package inbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/parking"
	"example.com/billing/pkg/pgtest"
)

// While a lane is on its way, what comes behind goes with it, in order; and a lane that fails again waits again.
func TestRequeueHandsOutInOrder(t *testing.T) {
	pool := open(t)
	h := newHandler("x", "y")
	i := box(pool)
	i.BatchMax = 2
	handle := i.Subscribe(Subscription{Name: "s", Handle: h.handle})
	must(t, handle(t.Context(), batch(1, "a=x", "a=2", "a=y", "a=4")))
	if n := requeue(t, pool, 4); n != 4 { // of any of them
		t.Errorf("requeued %d", n)
	}
	if n := requeue(t, pool, 1); n != 0 { // is on its way already
		t.Errorf("requeued %d more", n)
	}
	must(t, handle(t.Context(), batch(5, "a=5"))) // comes while the lane is on its way
	if got := rows(t, pool); !strings.HasSuffix(got, "a/5 requeued 0") {
		t.Errorf("%s", got)
	}
	drain := func() {
		for moved := true; moved; {
			var err error
			moved, err = i.handOut(t.Context())
			must(t, err)
		}
	}
	drain()
	if got := rows(t, pool); got != "a/1 parked 6, a/2 parked 0, a/3 parked 0, a/4 parked 0, a/5 parked 0" {
		t.Errorf("refused again: %s", got)
	}
	h.fail(poison("y"))
	requeue(t, pool, 1)
	drain()
	if got := rows(t, pool); got != "a/1 done 6, a/2 done 0, a/3 parked 1, a/4 parked 0, a/5 parked 0" || h.of("a") != "x 2" {
		t.Errorf("the second one refused: %s, handled %q", got, h.of("a"))
	}
	h.fail(func(kafka.Message) error { return &es.UnavailableError{Op: "write", Err: io.EOF} })
	requeue(t, pool, 3)
	if _, err := i.handOut(t.Context()); !Transient(err) {
		t.Errorf("an outage: %v", err)
	}
	if got := rows(t, pool); !strings.HasSuffix(got, "a/3 requeued 1, a/4 requeued 0, a/5 requeued 0") {
		t.Errorf("after an outage: %s", got)
	}
	h.fail(nil)
	drain()
	if got := rows(t, pool); strings.Count(got, "done") != 5 || h.of("a") != "x 2 y 4 5" {
		t.Errorf("%s, handled %q", got, h.of("a"))
	}
}

// A lane that an outage holds up leaves the others on their way, and the outage is still reported.
func TestATransientLaneHoldsUpNoOther(t *testing.T) {
	pool := open(t)
	h := newHandler("x")
	i := box(pool)
	must(t, i.Subscribe(Subscription{Name: "s", Handle: h.handle})(t.Context(), batch(1, "a=x", "b=x", "c=x", "b=2")))
	h.fail(outageBut("b"))
	for offset := range int64(3) {
		requeue(t, pool, offset+1)
	}
	moved, err := i.handOut(t.Context())
	if !moved || !Transient(err) || !strings.Contains(err.Error(), "a:") || !strings.Contains(err.Error(), "c:") {
		t.Errorf("moved: %v, %v", moved, err)
	}
	if got := rows(t, pool); got != "a/1 requeued 5, b/2 done 5, c/3 requeued 5, b/4 done 0" || h.of("b") != "x 2" {
		t.Errorf("%s, handled %q", got, h.of("b"))
	}
}

// Lanes that an outage holds up, as many as are handed out at once and more, leave the others their turn.
func TestManyTransientLanesHoldUpNoOther(t *testing.T) {
	pool := open(t)
	h := newHandler("x")
	i := box(pool)
	var pairs []string
	for n := range lanesMax + 20 {
		pairs = append(pairs, fmt.Sprintf("a%03d=x", n))
	}
	must(t, i.Subscribe(Subscription{Name: "s", Handle: h.handle})(t.Context(), batch(1, append(pairs, "b=x")...)))
	h.fail(outageBut("b"))
	_, err := pool.Exec(t.Context(), `UPDATE inbox_parked SET status = 'requeued'`)
	must(t, err)
	for range 2 {
		if _, err := i.handOut(t.Context()); !Transient(err) {
			t.Errorf("the outage: %v", err)
		}
	}
	if h.of("b") != "x" {
		t.Errorf("handled %q", h.of("b"))
	}
	h.fail(nil)
	for range 2 { // from the first one on again, until all had their turn
		_, err := i.handOut(t.Context())
		must(t, err)
	}
	if c := count(t, pool); c.Rows != 0 {
		t.Errorf("%d wait: their turn does not come again", c.Rows)
	}
}

// A message that can never be handled is discarded: the row stays, and the rest of the lane is requeued.
func TestDiscard(t *testing.T) {
	pool := open(t)
	h := newHandler("x")
	i := box(pool)
	handle := i.Subscribe(Subscription{Name: "s", Handle: h.handle})
	must(t, handle(t.Context(), batch(1, "a=x", "a=2")))
	for range 2 { // a repeat does no harm
		r, err := Lanes(pool).Discard(t.Context(), idOf(t, pool, 1), "ann", "a test wrote it")
		if err != nil || r.Status != parking.Discarded || r.DecidedBy != "ann" || r.Reason != "a test wrote it" || r.DoneAt.IsZero() {
			t.Errorf("%+v, %v", r, err)
		}
	}
	must(t, handle(t.Context(), batch(1, "a=x"))) // comes again: stays discarded
	if n := requeue(t, pool, 2); n != 1 {
		t.Errorf("requeued %d", n)
	}
	if r, err := Lanes(pool).Discard(t.Context(), idOf(t, pool, 2), "ann", "perhaps it is just handled"); !errors.Is(err, parking.ErrDone) || rows(t, pool) != "a/1 discarded 5, a/2 requeued 0" {
		t.Errorf("discard what is on its way: %+v, %v", r, err)
	}
	run(t, i)
	pgtest.Eventually(t, "the rest is through", func() bool { return count(t, pool).Rows == 0 })
	must(t, handle(t.Context(), batch(1, "a=x", "a=2", "a=3")))
	pgtest.Eventually(t, "the lane is as any other", func() bool { return strings.HasSuffix(h.of("a"), "3") })
	if got := rows(t, pool); !strings.HasPrefix(got, "a/1 discarded 5, a/2 done 0") {
		t.Errorf("%s", got)
	}
	if _, err := Lanes(pool).Discard(t.Context(), idOf(t, pool, 2), "ann", "too late"); !errors.Is(err, parking.ErrDone) {
		t.Errorf("discard what is through: %v", err)
	}
	if _, err := Lanes(pool).Discard(t.Context(), uuid.NewString(), "ann", "why"); !errors.Is(err, parking.ErrUnknown) {
		t.Errorf("unknown: %v", err)
	}
}

// Several instances, a consumer that goes on parking, and people who requeue: every message is handled, each key in order.
func TestInstancesRequeueInOrder(t *testing.T) {
	pool := open(t)
	h := newHandler("0")
	var handle func(context.Context, []kafka.Message) error
	for n := range 2 {
		i := box(pool)
		f := i.Subscribe(Subscription{Name: "s", Handle: h.handle})
		if n == 0 {
			handle = f
		}
		run(t, i)
	}
	must(t, handle(t.Context(), batch(1, "a=0")))
	h.fail(nil)
	want := "0"
	requeue(t, pool, 1)
	for n := range 200 {
		must(t, handle(t.Context(), batch(int64(n+2), fmt.Sprint("a=", n+1))))
		want += fmt.Sprint(" ", n+1)
	}
	pgtest.Eventually(t, "all is handled", func() bool { return count(t, pool).Rows == 0 && strings.HasSuffix(h.of("a"), " 200") })
	if got := h.of("a"); got != want {
		t.Errorf("handled %s", got)
	}
}

func TestCleanUp(t *testing.T) {
	pool := open(t)
	h := newHandler("x")
	must(t, box(pool).Subscribe(Subscription{Name: "s", Handle: h.handle})(t.Context(), batch(1, "a=x", "b=x")))
	_, err := pool.Exec(t.Context(), `UPDATE inbox_parked SET status = 'requeued', done_at = clock_timestamp() - interval '2 days' WHERE message_offset = 1`)
	must(t, err)
	if n, err := Lanes(pool).Clean(t.Context(), 72*time.Hour); n != 0 || err != nil {
		t.Errorf("forgot %d: %v", n, err)
	}
	if n, err := Lanes(pool).Clean(t.Context(), time.Hour); n != 1 || err != nil || rows(t, pool) != "b/2 parked 5" {
		t.Errorf("forgot %d: %v; left %s", n, err, rows(t, pool))
	}
	i := box(pool)
	i.KeepParked, i.CleanEvery = time.Millisecond, time.Millisecond
	_, err = pool.Exec(t.Context(), `UPDATE inbox_parked SET status = 'discarded', done_at = clock_timestamp()`)
	must(t, err)
	run(t, i)
	pgtest.Eventually(t, "it is forgotten from time to time", func() bool { return rows(t, pool) == "" })
}
