package inbox

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/kafka"
)

// statements is a tracer that counts what is sent to the database.
type statements struct{ n atomic.Int64 }

func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	s.n.Add(1)
	return ctx
}

func (*statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// sent returns how many statements f has led to.
func (s *statements) sent(f func()) int64 {
	before := s.n.Load()
	f()
	return s.n.Load() - before
}

// counted is a pool on the same database that counts its statements.
func counted(t *testing.T, pool *pgxpool.Pool) (*pgxpool.Pool, *statements) {
	t.Helper()
	cfg, s := pool.Config().Copy(), &statements{}
	cfg.ConnConfig.Tracer = s
	watched, err := pgxpool.NewWithConfig(t.Context(), cfg)
	must(t, err)
	t.Cleanup(watched.Close)
	return watched, s
}

// of moves messages to another partition.
func of(number int32, messages []kafka.Message) []kafka.Message {
	for n := range messages {
		messages[n].Partition = number
	}
	return messages
}

// The database is asked for parked lanes where a partition begins, jumps or is replayed, and not while its messages follow on.
func TestWhatFollowsOnAsksNothing(t *testing.T) {
	pool, sql := counted(t, open(t))
	h := newHandler()
	handle := box(pool).Subscribe(Subscription{Name: "s", Source: "Account", Handle: h.handle, Wants: func(m kafka.Message) bool { return string(m.Key) != "dull" }})
	for _, tc := range []struct {
		name  string
		batch []kafka.Message
		asks  bool
	}{
		{"the first", batch(10, "a=1", "b=1"), true},
		{"follows on", batch(12, "a=2"), false},
		{"follows on, and is not wanted", batch(13, "dull=1", "dull=2"), false},
		{"follows on behind what is not wanted", batch(15, "c=1"), false},
		{"another partition", of(3, batch(5, "d=1")), true},
		{"both follow on", append(batch(16, "a=3"), of(3, batch(6, "d=2", "d=3"))...), false},
		{"one follows on, one jumps", append(batch(17, "a=4"), of(3, batch(9, "d=4"))...), true},
		{"both follow on again", append(of(3, batch(10, "d=5")), batch(18, "a=5")...), false},
		{"a gap within", []kafka.Message{batch(19, "a=6")[0], batch(21, "a=7")[0]}, true},
		{"replayed", batch(18, "a=5"), true},
		{"follows on behind that", batch(19, "a=6"), false},
		{"nothing", nil, false},
	} {
		n := sql.sent(func() { must(t, handle(t.Context(), tc.batch)) })
		if n > 0 != tc.asks || n > 1 {
			t.Errorf("%s: %d statements", tc.name, n)
		}
	}
	if got := h.of("d"); got != "1 2 3 4 5" {
		t.Errorf("handled %q", got)
	}
}

// What comes behind a parked message waits, whoever parked it.
func TestWhatComesBehindAParkedMessageWaits(t *testing.T) {
	const first = "a=1"
	type consume = func(context.Context, []kafka.Message) error
	for _, tc := range []struct {
		name string
		// park has a=x parked, by own or another inbox; own has had offset 10 before, and knows that nothing was parked.
		park func(t *testing.T, own, other consume)
		next []kafka.Message // for own, behind it in its lane
		rows string
	}{
		{"in this process", func(t *testing.T, own, _ consume) { must(t, own(t.Context(), batch(11, "a=x"))) },
			batch(12, "a=2", "b=1"), "a/11 parked 5, a/12 parked 0"},
		{"in this process, some batches ago", func(t *testing.T, own, _ consume) {
			must(t, own(t.Context(), batch(11, "a=x")))
			must(t, own(t.Context(), batch(12, "b=0")))
			must(t, own(t.Context(), batch(13, "b=0")))
		}, batch(14, "a=2", "b=1"), "a/11 parked 5, a/14 parked 0"},
		{"in the same batch", func(t *testing.T, own, _ consume) { must(t, own(t.Context(), batch(11, "a=x", "a=2", "b=0"))) },
			batch(14, "a=3", "b=1"), "a/11 parked 5, a/12 parked 0, a/14 parked 0"},
		{"on another partition", func(t *testing.T, own, _ consume) { must(t, own(t.Context(), of(3, batch(20, "a=x")))) },
			batch(11, "a=2", "b=1"), "a/11 parked 0, a/20 parked 5"},
		{"by another process, which has moved the offset", func(t *testing.T, _, other consume) { must(t, other(t.Context(), batch(11, "a=x"))) },
			batch(12, "a=2", "b=1"), "a/11 parked 5, a/12 parked 0"},
		{"by another process, from an offset before", func(t *testing.T, _, other consume) { must(t, other(t.Context(), batch(9, "a=x", "b=0", "b=0"))) },
			batch(12, "a=2", "b=1"), "a/9 parked 5, a/12 parked 0"},
		{"and is replayed", func(t *testing.T, own, other consume) {
			must(t, other(t.Context(), batch(11, "a=x")))
			must(t, own(t.Context(), batch(9, "b=0", "b=0")))
		}, batch(12, "a=2", "b=1"), "a/11 parked 5, a/12 parked 0"},
		{"and this process goes back to where it was clear", func(t *testing.T, own, other consume) {
			must(t, other(t.Context(), batch(9, "a=x")))
			must(t, own(t.Context(), batch(12, "b=0")))
		}, batch(11, "a=2", "b=1"), "a/9 parked 5, a/11 parked 0"},
		{"and this process begins at a new partition", func(t *testing.T, _, other consume) { must(t, other(t.Context(), of(4, batch(11, "a=x")))) },
			of(4, batch(12, "a=2", "b=1")), "a/11 parked 5, a/12 parked 0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pool := open(t)
			h, others := newHandler("x"), newHandler("x")
			s := Subscription{Name: "s", Source: "Account"}
			s.Handle = others.handle
			other := box(pool).Subscribe(s)
			s.Handle = h.handle
			own := box(pool).Subscribe(s)
			must(t, own(t.Context(), batch(10, first)))
			tc.park(t, own, other)
			must(t, own(t.Context(), tc.next))
			if got := rows(t, pool); got != tc.rows {
				t.Errorf("parked %s, want %s", got, tc.rows)
			}
			if h.of("a") != "1" || h.of("b") == "" {
				t.Errorf("handled %q of the lane, %q of another", h.of("a"), h.of("b"))
			}
		})
	}
}

// While anything of a subscription is parked each batch looks; once all is through none does. Another subscription's lanes do not count.
func TestEachBatchLooksWhileSomethingIsParked(t *testing.T) {
	plain := open(t)
	pool, sql := counted(t, plain)
	h := newHandler("x")
	i := box(pool)
	handle := i.Subscribe(Subscription{Name: "s", Source: "Account", Handle: h.handle})
	well := i.Subscribe(Subscription{Name: "well", Source: "Account", Handle: newHandler().handle})
	must(t, well(t.Context(), batch(10, "a=1")))
	must(t, handle(t.Context(), batch(10, "a=x")))
	for offset := int64(11); offset < 14; offset++ {
		if n := sql.sent(func() { must(t, handle(t.Context(), batch(offset, "b=1"))) }); n == 0 {
			t.Errorf("offset %d: nobody looked", offset)
		}
		if n := sql.sent(func() { must(t, well(t.Context(), batch(offset, "b=1"))) }); n != 0 {
			t.Errorf("offset %d: %d statements of a subscription that has nothing parked", offset, n)
		}
	}
	h.fail(nil)
	requeue(t, plain, 10)
	lanes, err := i.requeuedLanes(t.Context(), []string{"s"}, requeuedLane{}, 1)
	must(t, err)
	must(t, i.settle(t.Context(), lanes[0], []string{idOf(t, plain, 10)}, "", nil))
	must(t, handle(t.Context(), batch(14, "b=1"))) // sees that all is through
	if n := sql.sent(func() { must(t, handle(t.Context(), batch(15, "a=2"))) }); n != 0 {
		t.Errorf("%d statements, though all is through", n)
	}
	if h.of("a") != "2" {
		t.Errorf("handled %q", h.of("a"))
	}
}

// A batch that could not be handled or parked is looked at anew: what it knew before is no longer true.
func TestABatchThatFailedIsLookedAtAgain(t *testing.T) {
	plain := open(t)
	pool, sql := counted(t, plain)
	h := newHandler("x")
	handle := box(pool).Subscribe(Subscription{Name: "s", Source: "Account", Handle: h.handle})
	must(t, handle(t.Context(), batch(10, "a=1")))
	_, err := plain.Exec(t.Context(), `ALTER TABLE inbox_parked RENAME TO away`)
	must(t, err)
	if err := handle(t.Context(), batch(11, "a=x")); err == nil {
		t.Fatal("parked nowhere")
	}
	_, err = plain.Exec(t.Context(), `ALTER TABLE away RENAME TO inbox_parked`)
	must(t, err)
	if n := sql.sent(func() { must(t, handle(t.Context(), batch(11, "a=x"))) }); n == 0 {
		t.Error("nobody looked")
	}
	must(t, handle(t.Context(), batch(12, "a=2")))
	if got := rows(t, plain); got != "a/11 parked 5, a/12 parked 0" {
		t.Errorf("parked %s", got)
	}
}
