package outbox

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/pgtest"
)

func TestAnOutboxWithoutEventsHasNothingToTell(t *testing.T) {
	_, pool := open(t)
	if s := stats(t, pool); s != (Stats{}) {
		t.Errorf("%+v", s)
	}
}

// The publisher takes 3 of 10 and fails, fails again, and recovers: the checkpoint follows what was acknowledged, nothing
// acknowledged is sent again, and the stats tell the story.
func TestAPublisherThatFailsHalfway(t *testing.T) {
	s, pool := open(t)
	ids := happen(t, s, 10)
	type call struct {
		batch []kafka.Message
		n     int
		err   error
	}
	calls, answers := make(chan call), make(chan call)
	r := &recorder{before: func(ctx context.Context, batch []kafka.Message) (int, error) {
		select {
		case calls <- call{batch: batch}:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		select {
		case a := <-answers:
			return a.n, a.err
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}}
	start(t, Config{Pool: pool, Publisher: r, RetryMax: 5 * time.Millisecond})
	for _, step := range []struct {
		from  int // the batch begins with this event
		n     int
		err   string
		stats Stats // at the next call
	}{
		{0, 3, "the broker is away", Stats{Pending: 7, Delivered: 3, Failed: 7, Retries: 1, LastError: "the broker is away"}},
		{3, 0, "still away", Stats{Pending: 7, Delivered: 3, Failed: 7, Retries: 2, LastError: "still away"}},
		{3, 2, strings.Repeat("long ", 1000), Stats{Pending: 5, Delivered: 5, Failed: 5, Retries: 1, LastError: strings.Repeat("long ", 200)}},
	} {
		c := <-calls
		if got := eventIDs(c.batch); !slices.Equal(got, ids[step.from:]) {
			t.Fatalf("sent %d events, want those from the %dth", len(got), step.from)
		}
		answers <- call{n: step.n, err: errors.New(step.err)}
		pgtest.Eventually(t, "the failure is recorded", func() bool { return stats(t, pool).LastError == step.stats.LastError })
		got := stats(t, pool)
		if got.OldestPending <= 0 {
			t.Errorf("the oldest pending event has no age: %+v", got)
		}
		if step.n > 0 && got.ProcessedAt.IsZero() {
			t.Error("some events were acknowledged, and nobody knows when")
		}
		if got.OldestPending, got.ProcessedAt = 0, (time.Time{}); got != step.stats {
			t.Errorf("stats\n got %+v\nwant %+v", got, step.stats)
		}
	}
	<-calls
	answers <- call{n: 5}
	pgtest.Eventually(t, "all is delivered", func() bool { return stats(t, pool).Pending == 0 })
	got := stats(t, pool)
	got.ProcessedAt = time.Time{}
	if got != (Stats{Delivered: 10}) {
		t.Errorf("after the recovery: %+v", got)
	}
	if !slices.Equal(r.published(), ids) {
		t.Errorf("acknowledged %v, want %v", r.published(), ids)
	}
}

func TestARelayWakesUpAtACommit(t *testing.T) {
	s, pool := open(t)
	r := &recorder{}
	start(t, Config{Pool: pool, Publisher: r, Committed: s.Committed(), PollInterval: time.Hour})
	for n := 1; n <= 3; n++ {
		happen(t, s, 2)
		pgtest.Eventually(t, "published", func() bool { return len(r.published()) == 2*n })
	}
}

func TestBatchesAreBounded(t *testing.T) {
	s, pool := open(t)
	var largest int
	r := &recorder{before: func(_ context.Context, batch []kafka.Message) (int, error) {
		largest = max(largest, len(batch))
		return len(batch), nil
	}}
	var ids []string
	for range 5 {
		ids = append(ids, happen(t, s, 5)...)
	}
	stop := start(t, Config{Pool: pool, Publisher: r, BatchMax: 7, PollInterval: time.Hour})
	pgtest.Eventually(t, "published", func() bool { return len(r.published()) == len(ids) })
	stop()
	if !slices.Equal(r.published(), ids) || largest != 7 {
		t.Errorf("%d events in batches of up to %d", len(r.published()), largest)
	}
}

func TestTheOldestPendingEventHasAnAge(t *testing.T) {
	s, pool := open(t)
	happen(t, s, 3)
	happen(t, s, 2)
	exec(t, pool, `UPDATE es_event SET recorded_at = clock_timestamp() - interval '1 hour' WHERE position = 1;
		UPDATE es_event SET recorded_at = clock_timestamp() - interval '1 minute' WHERE position = 4`)
	for _, tc := range []struct {
		position int64
		age      time.Duration
	}{{0, time.Hour}, {3, time.Minute}, {5, 0}} {
		exec(t, pool, `UPDATE outbox_relay SET position = $1`, tc.position)
		got := stats(t, pool)
		if got.Pending != 5-tc.position || got.OldestPending < tc.age || got.OldestPending > tc.age+30*time.Second || tc.age == 0 && got.OldestPending != 0 {
			t.Errorf("behind position %d: %+v", tc.position, got)
		}
	}
}

// Clean-up forgets what was delivered long ago, and only that, in the order of the positions.
func TestCleanUp(t *testing.T) {
	s, pool := open(t)
	for range 4 {
		happen(t, s, 2) // rows 1-2, 3-4, 5-6, 7-8
	}
	exec(t, pool, `UPDATE outbox_relay SET position = 5; UPDATE outbox_batch SET created_at = clock_timestamp() - interval '2 hours' WHERE from_position < 7`)
	for _, want := range []int64{2, 0} { // of the third, one event is not delivered
		if n, err := (table{pool}).cleanup(t.Context(), time.Hour); n != want || err != nil {
			t.Errorf("forgot %d rows (%v), want %d", n, err, want)
		}
	}
	if got := stats(t, pool); got.Pending != 3 || got.Delivered != 1 {
		t.Errorf("%+v", got)
	}
	exec(t, pool, `UPDATE outbox_relay SET position = 8`)
	if n, err := (table{pool}).cleanup(t.Context(), time.Hour); n != 1 || err != nil {
		t.Errorf("forgot %d rows (%v), want the third", n, err)
	}
	if got := stats(t, pool); got.Pending != 0 || got.Delivered != 2 {
		t.Errorf("%+v", got)
	}
	if n, err := (table{pool}).cleanup(t.Context(), 0); n != 1 || err != nil {
		t.Errorf("forgot %d rows (%v), want the last", n, err)
	}
	if got := stats(t, pool); got.Pending != 0 || got.Delivered != 0 {
		t.Errorf("%+v", got)
	}
	happen(t, s, 2)
	if got := stats(t, pool); got.Pending != 2 || got.Delivered != 0 {
		t.Errorf("%+v", got)
	}
}

// Stats and clean-up read a few rows, however many the outbox remembers.
func TestStatsReadAFewRows(t *testing.T) {
	s, pool := open(t)
	happen(t, s, 1)
	exec(t, pool, `INSERT INTO outbox_batch SELECT n, n, 1, clock_timestamp() FROM generate_series(2, 20000) AS n; UPDATE outbox_relay SET position = 20000`)
	if n, err := (table{pool}).cleanup(t.Context(), time.Hour); n != 0 || err != nil {
		t.Errorf("forgot %d (%v)", n, err)
	}
	if got := stats(t, pool); got.Delivered != 20000 {
		t.Errorf("%+v", got)
	}
	read := func() (n int64) {
		t.Helper()
		if err := pool.QueryRow(t.Context(), `SELECT coalesce(seq_tup_read + idx_tup_fetch, 0) FROM pg_stat_xact_user_tables WHERE relname = 'outbox_batch'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	one, err := pgxpool.NewWithConfig(t.Context(), func() *pgxpool.Config { c := pool.Config(); c.MaxConns = 1; return c }())
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	pool = one // the counters are the transaction's own
	exec(t, pool, `BEGIN`)
	stats(t, pool)
	if n, err := (table{pool}).cleanup(t.Context(), time.Hour); n != 0 || err != nil {
		t.Errorf("forgot %d (%v)", n, err)
	}
	if n := read(); n > 10 {
		t.Errorf("%d rows read", n)
	}
	exec(t, pool, `ROLLBACK`)
}

// A relay that always has something to do cleans up all the same, and keeps its lease meanwhile.
func TestABusyRelayCleansUp(t *testing.T) {
	s, pool := open(t)
	epochs := map[int64]bool{}
	var calls int
	cleaned := make(chan struct{})
	r := &recorder{before: func(_ context.Context, batch []kafka.Message) (int, error) {
		happen(t, s, 1) // the next one is there before this one is done
		var rows, epoch int64
		if err := pool.QueryRow(context.Background(), `SELECT (SELECT count(*) FROM outbox_batch), epoch FROM outbox_relay`).Scan(&rows, &epoch); err != nil {
			t.Error(err)
		}
		epochs[epoch] = true
		if calls++; calls > 20 && rows <= 5 { // the checkpoint is written from time to time
			select {
			case <-cleaned:
			default:
				close(cleaned)
			}
		}
		return len(batch), nil
	}}
	happen(t, s, 1)
	stop := start(t, Config{Pool: pool, Publisher: r, Keep: time.Nanosecond, CleanEvery: time.Nanosecond, PollInterval: time.Hour})
	select {
	case <-cleaned:
	case <-time.After(20 * time.Second):
		t.Error("never cleaned up")
	}
	stop()
	if len(epochs) != 1 {
		t.Errorf("the lease was taken %d times", len(epochs))
	}
}
