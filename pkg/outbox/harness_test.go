package outbox

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/migrate"
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
