package inbox

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/pgtest"
)

// during does something while another transaction has taken the lock and changed something, but not committed.
func during(t *testing.T, pool *pgxpool.Pool, change string, do func() error) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	must(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	for _, sql := range []string{lockParking, change} {
		_, err := tx.Exec(t.Context(), sql)
		must(t, err)
	}
	done := make(chan error, 1)
	go func() { done <- do() }()
	pgtest.Eventually(t, "it waits, or has not waited", func() bool { return pgtest.Waiting(t, pool) > 0 || len(done) > 0 })
	must(t, tx.Commit(t.Context()))
	must(t, <-done)
}

type handling = func(ctx context.Context, batch []kafka.Message) error

// Who parks, who requeues and who settles wait for one another: all rows of a lane that wait have one status, whoever is first.
func TestALaneHasOneStatus(t *testing.T) {
	const behind = `INSERT INTO inbox_parked (subscription, topic, key, partition, message_offset, header_names, header_values, sent_at,
		event_type, stream_type, stream_id, version, attempts, parked_at, status)
		SELECT subscription, topic, key, partition, 2, '{}', '{}', sent_at, '', '', '', 0, 0, clock_timestamp(), status FROM inbox_parked`
	for name, c := range map[string]struct {
		before, meanwhile string
		do                func(i *Inbox, handle handling) error
		want              string
	}{
		"requeued while something is parked": {`SELECT`, behind, func(i *Inbox, _ handling) error {
			_, _, err := Lanes(i.Pool).Requeue(t.Context(), idOf(t, i.Pool, 1), "ann", "why")
			return err
		}, "a/1 requeued 5, a/2 requeued 0"},
		"something is parked while it is requeued": {`SELECT`, `UPDATE inbox_parked SET status = 'requeued'`,
			func(_ *Inbox, handle handling) error {
				return handle(t.Context(), batch(2, "a=2"))
			}, "a/1 requeued 5, a/2 requeued 0"},
		"fails again while something is parked": {`UPDATE inbox_parked SET status = 'requeued'`, behind,
			func(i *Inbox, _ handling) error {
				return i.settle(t.Context(), requeuedLane{"s", "t", []byte("a")}, nil, idOf(t, i.Pool, 1), errPoison)
			}, "a/1 parked 6, a/2 parked 0"},
	} {
		t.Run(name, func(t *testing.T) {
			pool := open(t)
			i := box(pool)
			handle := i.Subscribe(Subscription{Name: "s", Handle: newHandler("x").handle})
			must(t, handle(t.Context(), batch(1, "a=x")))
			_, err := pool.Exec(t.Context(), c.before)
			must(t, err)
			during(t, pool, c.meanwhile, func() error { return c.do(i, handle) })
			if got := rows(t, pool); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// Between the look for lanes on their way and a lane's turn another instance may have parked it again: what is parked stays, and
// so does what is behind it.
func TestALaneThatIsParkedAgainMeanwhile(t *testing.T) {
	pool := open(t)
	h := newHandler("x")
	i := box(pool)
	must(t, i.Subscribe(Subscription{Name: "s", Handle: h.handle})(t.Context(), batch(1, "a=x", "a=2", "a=3")))
	h.fail(nil)
	lane := requeuedLane{"s", "t", []byte("a")}
	for _, c := range []struct {
		parked []int64
		want   string
	}{{[]int64{1, 2, 3}, ""}, {[]int64{2}, "x"}} {
		_, err := pool.Exec(t.Context(), `UPDATE inbox_parked SET status = CASE WHEN message_offset = ANY($1) THEN 'parked' ELSE 'requeued' END`, c.parked)
		must(t, err)
		_, err = i.handOutLane(t.Context(), lane)
		must(t, err)
		if got := h.of("a"); got != c.want {
			t.Errorf("%v parked: handled %q, want %q", c.parked, got, c.want)
		}
	}
}
