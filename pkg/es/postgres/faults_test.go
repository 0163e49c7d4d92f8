package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/pgtest"
)

// Commits are delayed at random, by two stores that know nothing of each other, while a reader follows. It sees every event
// once and every position in turn: what it has read nobody can still commit before.
func TestCommitOrderIsPositionOrder(t *testing.T) {
	const writers, each = 8, 12
	slow := func(b *pgx.Batch, e es.Event) error {
		if e.Version%3 == 0 {
			b.Queue(`SELECT pg_sleep(random() * 0.02)`)
		}
		return nil
	}
	a, pool := openInline(t, slow)
	b := postgres.New(pool, postgres.Options{Inline: func(b *pgx.Batch, events []es.Event) error {
		for _, e := range events {
			b.Queue(`INSERT INTO seen SELECT position, event_id, stream_id, recorded_at FROM es_event WHERE event_id = $1`, e.ID)
		}
		return slow(b, events[0])
	}})
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			s, st := []*postgres.Store{a, b}[w%2], stream(fmt.Sprint("s", w))
			for v := range int64(each) {
				if err := s.Append(context.Background(), after(st, v, 1)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	var (
		last     int64
		versions = map[string]int64{}
	)
	for finished := false; ; {
		before := last
		for e, err := range a.ReadAll(t.Context(), "", es.From{After: last}) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Position != last+1 || e.Version != versions[e.Stream.ID]+1 {
				t.Fatalf("position %d, version %d follow %d, %d", e.Position, e.Version, last, versions[e.Stream.ID])
			}
			last, versions[e.Stream.ID] = e.Position, e.Version
		}
		if finished && last == before {
			break
		}
		select {
		case <-done:
			finished = true
		default:
		}
	}
	checkBooks(t, a, pool, writers*each)
}

// holdLog locks the log as an append does, until the returned function is called.
func holdLog(t *testing.T, pool *pgxpool.Pool) (release func()) {
	t.Helper()
	tx, err := pool.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(context.Background(), postgres.LockLog); err != nil {
		t.Fatal(err)
	}
	return func() { _ = tx.Rollback(context.Background()) }
}

// waiting waits until a session of this database waits for a lock, and returns its process id.
func waiting(t *testing.T, pool *pgxpool.Pool) (pid int32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for pid == 0 {
		err := pool.QueryRow(ctx, `SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&pid)
		if err != nil {
			t.Fatal(err)
		}
	}
	return pid
}

// An append that is cut off in the middle says that it does not know. It leaves all behind or nothing: a server that was sent the whole
// may carry it out for a caller who has gone.
func TestACutAppendIsUnavailable(t *testing.T) {
	for _, tc := range []struct {
		name string
		cut  func(pool *pgxpool.Pool, pid int32, cancel func())
	}{
		{"the server ends the session", func(pool *pgxpool.Pool, pid int32, _ func()) {
			_, _ = pool.Exec(context.Background(), `SELECT pg_terminate_backend($1)`, pid)
		}},
		{"the caller's time is up", func(_ *pgxpool.Pool, _ int32, cancel func()) { cancel() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, pool := openInline(t, nil)
			if err := s.Append(t.Context(), after(stream("a"), 0, 1)); err != nil {
				t.Fatal(err)
			}
			release := holdLog(t, pool)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			result := make(chan []error, 1)
			go func() {
				result <- s.AppendBatch(ctx, [][]es.Append{{after(stream("a"), 1, 1)}, {after(stream("b"), 0, 1)}})
			}()
			pid := waiting(t, pool)
			tc.cut(pool, pid, cancel)
			for i, err := range <-result {
				var unavailable *es.UnavailableError
				if !errors.As(err, &unavailable) || !unavailable.Unavailable() {
					t.Errorf("item %d: %v", i, err)
				}
			}
			release()
			pgtest.Eventually(t, "the session is over", func() bool {
				return number(t, pool, `SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND state <> 'idle'`, pid) == 0
			})
			written := number(t, pool, `SELECT count(*) FROM es_event`) - 1
			if written != 0 && written != 2 {
				t.Fatalf("%d of 2 events were written", written)
			}
			checkBooks(t, s, pool, 1+written)
			if err := s.Append(t.Context(), after(stream("a"), 1+written/2, 1)); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

func TestAServerThatIsNotThereIsUnavailable(t *testing.T) {
	pool, err := pgxpool.New(t.Context(), "postgres://nobody@127.0.0.1:1/nothing?connect_timeout=1")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	s := postgres.New(pool, postgres.Options{})
	_, loadErr := s.Load(t.Context(), stream("a"), 0, 0)
	_, headsErr := s.Heads(t.Context(), []es.Stream{stream("a")})
	_, lookupErr := s.Lookup(t.Context(), []string{"6f1c3f54-0c0e-5d0b-9c83-0d2f3c1f8a11"})
	for what, err := range map[string]error{
		"append": s.Append(t.Context(), after(stream("a"), 0, 1)), "load": loadErr, "heads": headsErr, "look up": lookupErr,
	} {
		var unavailable *es.UnavailableError
		if !errors.As(err, &unavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Committed hints at commits, and at nothing else.
func TestCommittedHasAValueAfterACommit(t *testing.T) {
	s, _ := open(t)
	hinted := func() bool {
		select {
		case <-s.Committed():
			return true
		default:
			return false
		}
	}
	for _, tc := range []struct {
		name string
		a    es.Append
		want bool
	}{
		{"a check", es.Append{Stream: stream("a")}, false},
		{"a commit", after(stream("a"), 0, 1), true},
		{"a conflict", after(stream("a"), 0, 1), false},
		{"another commit", after(stream("a"), 1, 1), true},
	} {
		_ = s.Append(t.Context(), tc.a)
		if got := hinted(); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
	for v := range int64(3) { // nobody listens: commits do not wait
		if err := s.Append(t.Context(), after(stream("b"), v, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if !hinted() || hinted() {
		t.Error("several commits are one hint")
	}
}

func TestTheSecretIsTheDatabases(t *testing.T) {
	s, pool := open(t)
	first, err := s.Secret(t.Context())
	if err != nil || len(first) != 32 {
		t.Fatalf("%x, %v", first, err)
	}
	again, err := postgres.New(pool, postgres.Options{}).Secret(t.Context())
	if err != nil || string(again) != string(first) {
		t.Errorf("%x became %x (%v)", first, again, err)
	}
	other, _ := open(t)
	if elsewhere, err := other.Secret(t.Context()); err != nil || string(elsewhere) == string(first) {
		t.Errorf("two databases share a secret (%v)", err)
	}
}

// A clock that went back does not break the order of what is recorded, nor what a look at it promises.
func TestRecordedTimeNeverDecreases(t *testing.T) {
	s, pool := openInline(t, nil)
	ahead := time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
	if err := s.Append(t.Context(), after(stream("a"), 0, 1)); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, `UPDATE es_event SET recorded_at = $1`, ahead)
	exec(t, pool, `UPDATE seen SET recorded_at = $1`, ahead)
	for v := int64(1); v <= 3; v++ {
		ahead = ahead.Add(time.Microsecond)
		if err := s.Append(t.Context(), after(stream("a"), v, 1)); err != nil {
			t.Fatal(err)
		}
		events, err := s.Load(t.Context(), stream("a"), v, 0)
		if err != nil || !events[0].RecordedAt.Equal(ahead) {
			t.Errorf("recorded at %v, want %v (%v)", events[0].RecordedAt, ahead, err)
		}
		if now, err := s.Clock(t.Context()); err != nil || !now.Equal(ahead.Add(time.Microsecond)) {
			t.Errorf("the clock says %v, want a microsecond after %v (%v)", now, ahead, err)
		}
	}
	checkBooks(t, s, pool, 4)
}

// What waits for a look at the clock is recorded after it, whether its group is sent whole or looked at first.
func TestWhatWaitsForTheClockIsRecordedAfterIt(t *testing.T) {
	s, pool := open(t)
	st := stream("a")
	if err := s.Append(t.Context(), after(st, 0, 1)); err != nil {
		t.Fatal(err)
	}
	look := func(version int64) {
		t.Helper()
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(t.Context()) }()
		if _, err := tx.Exec(t.Context(), "SELECT pg_advisory_xact_lock_shared(1248, 0)"); err != nil { // as Clock does
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- s.Append(context.WithoutCancel(t.Context()), after(st, version, 1)) }()
		waiting(t, pool)
		var now time.Time
		if err := tx.QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&now); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(tx.Commit(t.Context()), <-done); err != nil {
			t.Fatal(err)
		}
		events, err := s.Load(t.Context(), st, version, 0)
		if err != nil || len(events) != 1 || events[0].RecordedAt.Before(now) {
			t.Errorf("recorded %v, %v, want one event not before %s", events, err, now)
		}
	}
	look(1)
	var conflict *es.ConflictError
	if err := s.Append(t.Context(), after(st, 9, 1)); !errors.As(err, &conflict) { // the next groups begin with a look
		t.Fatal(err)
	}
	look(2)
}
