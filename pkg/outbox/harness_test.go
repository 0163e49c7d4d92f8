package outbox

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/parking"
	"example.com/billing/pkg/pgtest"
)

func open(t *testing.T) (*espg.Store, *pgxpool.Pool) {
	t.Helper()
	pool := pgtest.Pool(t)
	if err := migrate.Up(t.Context(), pool, espg.Migrations, espg.MigrationsTable); err != nil {
		t.Fatal(err)
	}
	return espg.New(pool, espg.Options{}), pool
}

// happened is an event of a stream.
func happened(st es.Stream, version int64) es.Event {
	return es.Event{ID: uuid.NewString(), Type: "Happened", Stream: st, Version: version, At: time.UnixMilli(1), CorrelationID: "c-1", Data: []byte(`{}`)}
}

// happen commits n events of one new stream as one group, and returns their ids.
func happen(t *testing.T, s *espg.Store, n int) []string {
	t.Helper()
	st := es.Stream{Type: "Account", ID: uuid.NewString()}
	a := es.Append{Stream: st}
	var ids []string
	for v := range int64(n) {
		e := happened(st, v+1)
		a.Events, ids = append(a.Events, e), append(ids, e.ID)
	}
	if err := s.Append(context.Background(), a); err != nil {
		t.Error(err)
	}
	return ids
}

func exec(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// recorder is a Publisher that notes what it acknowledged. before, if set, decides how many of a batch it takes.
type recorder struct {
	before func(ctx context.Context, batch []kafka.Message) (int, error)

	mu  sync.Mutex
	ids []string
}

func (r *recorder) Publish(ctx context.Context, batch []kafka.Message) (int, error) {
	n, err := len(batch), error(nil)
	if r.before != nil {
		n, err = r.before(ctx, batch)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ids = append(r.ids, eventIDs(batch[:n])...)
	return n, err
}

func (r *recorder) published() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.ids...)
}

func eventIDs(batch []kafka.Message) (ids []string) {
	for _, m := range batch {
		e, err := es.Decode(m.Value)
		if err != nil {
			panic(err)
		}
		ids = append(ids, e.ID)
	}
	return ids
}

// start runs a relay that looks often until the test ends or stop is called.
func start(t *testing.T, c Config) (stop func()) {
	t.Helper()
	c.Prefix = "billing"
	return relay(t, c)
}

// relay is start on topics of another prefix.
func relay(t *testing.T, c Config) (stop func()) {
	t.Helper()
	c.Log = slog.New(slog.DiscardHandler)
	if c.PollInterval == 0 {
		c.PollInterval = 5 * time.Millisecond
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := NewRelay(c).Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

func stats(t *testing.T, pool *pgxpool.Pool) Stats {
	t.Helper()
	s, err := ReadStats(context.Background(), pool)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// checkpoint reads how far the relays are.
func checkpoint(t *testing.T, pool *pgxpool.Pool) (position int64) {
	t.Helper()
	if err := pool.QueryRow(context.Background(), `SELECT position FROM outbox_relay`).Scan(&position); err != nil {
		t.Fatal(err)
	}
	return position
}

// commit appends the next version of a stream, with padding that may make it too large for Kafka.
func commit(t *testing.T, s *espg.Store, st es.Stream, version int64, padding int) string {
	t.Helper()
	e := happened(st, version)
	e.Data = fmt.Appendf(nil, `{"padding":%q}`, strings.Repeat("x", padding))
	if err := s.Append(context.Background(), es.Append{Stream: st, Expected: version - 1, Events: []es.Event{e}}); err != nil {
		t.Fatal(err)
	}
	return e.ID
}

// picky is a publisher that refuses these events as Kafka refuses what is too large: it takes what comes before.
func picky(ids func() []string) *recorder {
	return &recorder{before: func(_ context.Context, batch []kafka.Message) (int, error) {
		for i, id := range eventIDs(batch) {
			if slices.Contains(ids(), id) {
				return i, &kafka.RefusedError{Index: i, Topic: batch[i].Topic, Err: sarama.ErrMessageSizeTooLarge}
			}
		}
		return len(batch), nil
	}}
}

func parked(t *testing.T, pool *pgxpool.Pool) []parking.Row {
	t.Helper()
	rows, err := Lanes(pool).List(context.Background(), parking.Filter{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(rows, func(a, b parking.Row) int { return int(a.Version - b.Version) })
	return rows
}

func waiting(t *testing.T, pool *pgxpool.Pool) parking.Counts {
	t.Helper()
	c, err := Lanes(pool).Count(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func requeue(t *testing.T, pool *pgxpool.Pool, id string) int64 {
	t.Helper()
	_, n, err := Lanes(pool).Requeue(context.Background(), id, "ann", "the topic takes more now")
	if err != nil {
		t.Fatal(err)
	}
	return n
}
