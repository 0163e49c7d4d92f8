package subscription

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/pgtest"
)

const ended = time.Nanosecond // a lease that has ended when the next statement looks

// open is a store, and a table of effects.
func open(t testing.TB) (*espg.Store, *pgxpool.Pool) {
	t.Helper()
	pool := pgtest.Migrated(t, espg.Migrations, espg.MigrationsTable)
	exec(t, pool, `CREATE TABLE effect (n bigserial PRIMARY KEY, position bigint, stream_id text, version bigint)`)
	return espg.New(pool, espg.Options{}), pool
}

func exec(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func number(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) (n int64) {
	t.Helper()
	if err := pool.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// happen appends one event to each of n new streams, and as many again, until each has so many.
func happen(t testing.TB, s es.Store, n, versions int) {
	t.Helper()
	streams := make([]es.Stream, n)
	for i := range streams {
		streams[i] = es.Stream{Type: "Test", ID: uuid.NewString()}
	}
	for v := range int64(versions) {
		items := make([][]es.Append, n)
		for i, st := range streams {
			items[i] = []es.Append{{Stream: st, Expected: v, Events: []es.Event{
				{ID: uuid.NewString(), Type: "Happened", Stream: st, Version: v + 1, At: time.UnixMilli(1), Data: []byte(`{}`)},
			}}}
		}
		for _, err := range s.AppendBatch(context.Background(), items) {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// effects writes a row for each event.
func effects(ctx context.Context, tx pgx.Tx, events []es.Event) error {
	b := &pgx.Batch{}
	for _, e := range events {
		b.Queue(`INSERT INTO effect (position, stream_id, version) VALUES ($1, $2, $3)`, e.Position, e.Stream.ID, e.Version)
	}
	return tx.SendBatch(ctx, b).Close()
}

// config is a quick subscription that writes effects. Errors of it that the test does not want fail it.
func config(t testing.TB, pool *pgxpool.Pool) Config {
	return Config{
		Name: "test", Partitions: 4, Pool: pool, Handle: effects, PollInterval: time.Millisecond, LeaseTTL: 10 * time.Second, RetryMax: 10 * time.Millisecond,
		OnError: func(err error, _ time.Duration) { t.Error(err) },
	}
}

// begin runs an instance until stop is called, or the end of the test.
func begin(t testing.TB, c Config) (stop func()) {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// awaitEffects waits until there are n, and holds them against the events: each once, and each stream's in order.
func awaitEffects(t testing.TB, pool *pgxpool.Pool, n int64) {
	t.Helper()
	pgtest.Eventually(t, fmt.Sprintf("there are %d effects", n), func() bool { return number(t, pool, `SELECT count(*) FROM effect`) >= n })
	checkEffects(t, pool)
}

func checkEffects(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	for what, sql := range map[string]string{
		"events without an effect": `SELECT count(*) FROM es_event e WHERE NOT EXISTS (SELECT FROM effect f WHERE f.position = e.position)`,
		"effects that are twice":   `SELECT count(*) - count(DISTINCT position) FROM effect`,
		"effects out of order": `SELECT count(*) FROM (SELECT version, row_number() OVER (PARTITION BY stream_id ORDER BY n) AS nth FROM effect) o
			WHERE version <> nth`,
	} {
		if n := number(t, pool, sql); n != 0 {
			t.Errorf("%s: %d", what, n)
		}
	}
}
