package inbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kfake"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/parking"
	"example.com/billing/pkg/pgtest"
)

var errPoison = errors.New("no handler can take this")

func open(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.Pool(t)
	if err := migrate.Up(t.Context(), pool, Migrations, MigrationsTable); err != nil {
		t.Fatal(err)
	}
	return pool
}

// box is an inbox that wastes no time.
func box(pool *pgxpool.Pool) *Inbox {
	return New(Config{Pool: pool, Log: slog.New(slog.DiscardHandler), RetryPause: time.Millisecond, RetryMax: 5 * time.Millisecond, PollInterval: 5 * time.Millisecond})
}

// run works on what is requeued until the test ends.
func run(t *testing.T, i *Inbox) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = i.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

// handler notes what it has handled; fails, if set, says which messages it cannot handle.
type handler struct {
	mu      sync.Mutex
	handled map[string][]string // values by key
	calls   int
	fails   func(m kafka.Message) error
}

// newHandler makes one that cannot handle these values.
func newHandler(values ...string) *handler {
	return &handler{handled: map[string][]string{}, fails: poison(values...)}
}

// handle takes all of a batch or nothing, as a transaction does.
func (h *handler) handle(_ context.Context, batch []kafka.Message) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls++
	for _, m := range batch {
		if h.fails == nil {
			break
		}
		if err := h.fails(m); err != nil {
			return fmt.Errorf("handle offset %d: %w", m.Offset, err)
		}
	}
	for _, m := range batch {
		h.handled[string(m.Key)] = append(h.handled[string(m.Key)], string(m.Value))
	}
	return nil
}

func (h *handler) fail(f func(m kafka.Message) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fails = f
}

// of returns what was handled of a key.
func (h *handler) of(key string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.handled[key], " ")
}

// count is how often the handler was called.
func (h *handler) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls
}

// poison is a fails for these values.
func poison(values ...string) func(m kafka.Message) error {
	return func(m kafka.Message) error {
		if slices.Contains(values, string(m.Value)) {
			return errPoison
		}
		return nil
	}
}

// outageBut is a fails for all keys but one, with an error that names the key and says nothing about the message.
func outageBut(key string) func(m kafka.Message) error {
	return func(m kafka.Message) error {
		if string(m.Key) != key {
			return &es.UnavailableError{Op: string(m.Key), Err: io.EOF}
		}
		return nil
	}
}

// batch makes messages of one partition from "key=value", with offsets from the first.
func batch(first int64, pairs ...string) []kafka.Message {
	out := make([]kafka.Message, len(pairs))
	for n, p := range pairs {
		key, value, _ := strings.Cut(p, "=")
		out[n] = kafka.Message{
			Topic: "t", Partition: 2, Offset: first + int64(n), Key: []byte(key), Value: []byte(value), Time: time.UnixMilli(1_700_000_000_000),
			Headers: []kafka.Header{{Key: "eventType", Value: []byte("Happened")}, {Key: "aggregateVersion", Value: []byte(strconv.Itoa(n + 1))}},
		}
	}
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// rows are all parked messages, the oldest offset first, as "key/offset status attempts".
func rows(t *testing.T, pool *pgxpool.Pool) string {
	t.Helper()
	var out *string
	must(t, pool.QueryRow(context.Background(), `SELECT string_agg(convert_from(key, 'UTF8') || '/' || message_offset || ' ' ||
		CASE WHEN status = 'requeued' AND done_at IS NOT NULL THEN 'done' ELSE status END || ' ' || attempts, ', ' ORDER BY message_offset) FROM inbox_parked`).Scan(&out))
	if out == nil {
		return ""
	}
	return *out
}

func idOf(t *testing.T, pool *pgxpool.Pool, offset int64) (id string) {
	t.Helper()
	must(t, pool.QueryRow(context.Background(), `SELECT id::text FROM inbox_parked WHERE message_offset = $1`, offset).Scan(&id))
	return id
}

func requeue(t *testing.T, pool *pgxpool.Pool, offset int64) int64 {
	t.Helper()
	_, n, err := Lanes(pool).Requeue(context.Background(), idOf(t, pool, offset), "ann", "the handler is mended")
	must(t, err)
	return n
}

func count(t *testing.T, pool *pgxpool.Pool) parking.Counts {
	t.Helper()
	c, err := Lanes(pool).Count(context.Background())
	must(t, err)
	return c
}

// broker is the real Kafka if there is one, or the embedded one, with a topic of the test's own.
func broker(t *testing.T) (kafka.Config, string) {
	t.Helper()
	cfg, topic := kafka.Config{ClientID: "test", Log: slog.New(slog.DiscardHandler)}, "inbox-"+uuid.NewString()
	if brokers := os.Getenv("BILLING_TEST_KAFKA_BROKERS"); brokers != "" {
		cfg.Brokers = strings.Split(brokers, ",")
	} else {
		fake, err := kfake.NewCluster(kfake.NumBrokers(1))
		must(t, err)
		t.Cleanup(fake.Close)
		cfg.Brokers = fake.ListenAddrs()
	}
	must(t, kafka.EnsureTopics(t.Context(), cfg, kafka.Topic{Name: topic, Partitions: 3}))
	return cfg, topic
}
