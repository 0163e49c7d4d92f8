package ops_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kfake"

	"example.com/billing/pkg/es"
	eskafka "example.com/billing/pkg/es/kafka"
	"example.com/billing/pkg/es/ops"
	"example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/outbox"
	"example.com/billing/pkg/pgtest"
)

// brokersEnv names the brokers of a real Kafka; `make test` sets it where it can.
const brokersEnv = "BILLING_TEST_KAFKA_BROKERS"

// cluster is a real Kafka, or one in this process.
func cluster(t *testing.T) kafka.Config {
	t.Helper()
	cfg := kafka.Config{ClientID: "test", Log: slog.New(slog.DiscardHandler)}
	if brokers := os.Getenv(brokersEnv); brokers != "" {
		cfg.Brokers = strings.Split(brokers, ",")
		return cfg
	}
	t.Logf("on the Kafka of this process: %s is not set", brokersEnv)
	fake, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	cfg.Brokers = fake.ListenAddrs()
	return cfg
}

// database is one with the store's tables.
func database(t *testing.T) (dsn string, pool *pgxpool.Pool) {
	t.Helper()
	pool = pgtest.Migrated(t, postgres.Migrations, postgres.MigrationsTable)
	return pool.Config().ConnString(), pool
}

// logOf is a Kafka store that leads an empty log.
func logOf(t *testing.T, cfg kafka.Config, topic string) *eskafka.Store {
	t.Helper()
	if err := kafka.EnsureTopics(t.Context(), cfg, eskafka.Topic(topic, 0)); err != nil {
		t.Fatal(err)
	}
	s, err := eskafka.Open(t.Context(), eskafka.Options{Kafka: cfg, Topic: topic, Dir: t.TempDir(), Log: cfg.Log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	led := make(chan error, 1)
	go func() { led <- s.Lead(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-led, s.Close(context.Background())); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-s.Leading():
	case <-time.After(30 * time.Second):
		t.Fatal("it does not lead")
	}
	return s
}

// target is a database to be copied to.
type target struct{ *postgres.Store }

func (x target) Import(ctx context.Context, events []es.Event) error {
	return x.Store.Import(ctx, events, postgres.ImportOptions{Published: true})
}

// fill appends n events of all sorts to some streams.
func fill(t *testing.T, s es.Store, versions map[es.Stream]int64, n int) {
	t.Helper()
	random := rand.New(rand.NewPCG(1, uint64(len(versions))))
	for n > 0 {
		var items [][]es.Append
		taken := map[es.Stream]bool{}
		for range 1 + random.IntN(20) {
			st := es.Stream{Type: []string{"Test", "Other"}[random.IntN(2)], ID: fmt.Sprintf("%08x-0000-4000-8000-000000000000", random.IntN(200))}
			if taken[st] {
				continue
			}
			taken[st] = true
			a := es.Append{Stream: st, Expected: versions[st]}
			for i := range 1 + random.IntN(4) {
				a.Events = append(a.Events, es.Event{
					ID: uuid.NewString(), Type: "Happened", Stream: st, Version: a.Expected + int64(i) + 1, At: time.Now(), CorrelationID: "c <&> \x7f\u2028",
					CausationID: uuid.NewString(), Metadata: map[string]any{"tenantId": "Zoë", "z": 1.5, "a": []any{nil, true}},
					Data: fmt.Appendf(nil, `{"n":%d,"amount":"10.00","big":12345678901234567890,"s":"\u00e9"}`, i),
				})
			}
			versions[st] += int64(len(a.Events))
			n -= len(a.Events)
			items = append(items, []es.Append{a})
		}
		if err := errors.Join(s.AppendBatch(t.Context(), items)...); err != nil {
			t.Fatal(err)
		}
	}
}

func digest(t *testing.T, log ops.Log) ops.Digest {
	t.Helper()
	d, err := ops.DigestOf(t.Context(), log, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Postgres → Kafka → Postgres, and dump → restore: every byte, place and time is as it was. A copy that is broken off goes on, and one that was
// complete takes what came since.
func TestRoundTrips(t *testing.T) {
	ctx := t.Context()
	dsn, pool := database(t)
	origin, versions := postgres.New(pool, postgres.Options{}), map[es.Stream]int64{}
	fill(t, origin, versions, 10_000)
	want := digest(t, origin)

	cfg := cluster(t)
	topic := fmt.Sprintf("ops-%x", time.Now().UnixNano())
	log := logOf(t, cfg, topic)
	broken, stop := context.WithCancel(ctx)
	_, err := ops.Copy(broken, origin, stopping{log, 3, stop}, nil)
	if err == nil {
		t.Fatal("the copy was not broken off")
	}
	if end, err := log.End(ctx); err != nil || end == 0 || end >= want.Events {
		t.Fatalf("broken off at position %d (%v) of %d", end, err, want.Events)
	}
	if got, err := ops.Copy(ctx, origin, log, nil); err != nil || got != want {
		t.Fatalf("to Kafka: %s (%v), want %s", got, err, want)
	}
	reader := eskafka.Reader{Kafka: cfg, Topic: topic}
	if got := digest(t, reader); got != want {
		t.Errorf("the log as another client reads it: %s, want %s", got, want)
	}

	_, back := database(t)
	if got, err := ops.Copy(ctx, reader, target{postgres.New(back, postgres.Options{})}, nil); err != nil || got != want {
		t.Fatalf("back to Postgres: %s (%v), want %s", got, err, want)
	}
	var differ int
	for _, table := range []string{"es_event", "es_head"} { // the tables themselves, but for what is made again
		columns := map[string]string{"es_event": "position, event_id, stream_type, stream_id, version, event_type, correlation_id, recorded_at, payload", "es_head": "stream_type, stream_id, version"}[table]
		var sums [2]string
		for i, p := range []*pgxpool.Pool{pool, back} {
			if err := p.QueryRow(ctx, `SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM (SELECT `+columns+` FROM `+table+`) t`).Scan(&sums[i]); err != nil {
				t.Fatal(err)
			}
		}
		if sums[0] != sums[1] {
			differ++
			t.Errorf("%s is not as it was", table)
		}
	}

	t.Run("dump and restore", func(t *testing.T) {
		restored := restore(t, dsn)
		if got := digest(t, restored); got != want {
			t.Errorf("restored: %s, want %s", got, want)
		}
		// It goes on where it was: positions, versions and times follow.
		more := make(map[es.Stream]int64, len(versions))
		for st, v := range versions {
			more[st] = v
		}
		fill(t, restored, more, 100)
		if got := digest(t, restored); got.Events < want.Events+100 {
			t.Errorf("after 100 more it has %s", got)
		}
		if got, err := ops.DigestOf(ctx, restored, want.Events, nil); err != nil || got != want {
			t.Errorf("what was restored is now %s (%v), want %s", got, err, want)
		}
	})

	fill(t, origin, versions, 1000)
	want = digest(t, origin)
	if got, err := ops.Copy(ctx, origin, log, nil); err != nil || got != want {
		t.Errorf("the rest: %s (%v), want %s", got, err, want)
	}
	var differs *ops.DifferError
	if _, err := ops.Copy(ctx, origin, target{other(t)}, nil); !errors.As(err, &differs) || differs.Position != 1 {
		t.Errorf("to a store of another history: %v", err)
	}
	if _, err := ops.Copy(ctx, postgres.New(back, postgres.Options{}), log, nil); !errors.As(err, &differs) {
		t.Errorf("to a store that has more: %v", err)
	}
}

// stopping is a target that ends the copy after some pages.
type stopping struct {
	*eskafka.Store
	pages int
	stop  func()
}

func (x stopping) Import(ctx context.Context, events []es.Event) error {
	if end, err := x.End(context.WithoutCancel(ctx)); err != nil || end >= int64(x.pages)*2000 {
		x.stop()
		return errors.Join(err, context.Canceled)
	}
	return x.Store.Import(ctx, events)
}

// other is a store with another history.
func other(t *testing.T) *postgres.Store {
	_, pool := database(t)
	s := postgres.New(pool, postgres.Options{})
	fill(t, s, map[es.Stream]int64{}, 10)
	return s
}

// restore dumps a database and restores it elsewhere.
func restore(t *testing.T, dsn string) *postgres.Store {
	t.Helper()
	dump, err := client("pg_dump")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	psql, err := client("psql")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "dump.sql")
	run := func(program string, args ...string) {
		cmd := exec.CommandContext(t.Context(), program, args...)
		var said bytes.Buffer
		cmd.Stderr = &said
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v\n%s", program, err, said.String())
		}
	}
	run(dump, "--no-owner", "--file", file, dsn)
	to := pgtest.DSN(t)
	run(psql, "--quiet", "--set", "ON_ERROR_STOP=1", "--file", file, to)
	pool, err := pgxpool.New(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return postgres.New(pool, postgres.Options{})
}

// client finds one of Postgres's programs.
func client(name string) (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	slices.Sort(found)
	if len(found) > 0 {
		return found[len(found)-1], nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("needs %s: %w", name, err)
	}
	return path, nil
}

// What a topic lacks, has otherwise, or has that was never committed is told, and what is missing is published.
func TestDiff(t *testing.T) {
	ctx := t.Context()
	_, pool := database(t)
	s, cfg := postgres.New(pool, postgres.Options{}), cluster(t)
	fill(t, s, map[es.Stream]int64{}, 500)
	topics := ops.Topics{Kafka: cfg, Prefix: fmt.Sprintf("ops%x", time.Now().UnixNano()), Types: []string{"Test"}}
	topic := outbox.Topic(topics.Prefix, "Test")
	if err := kafka.EnsureTopics(ctx, cfg, kafka.Topic{Name: topic, Partitions: 3}); err != nil {
		t.Fatal(err)
	}
	var missing, published []es.Event
	for e, err := range s.ReadAll(ctx, "Test", es.From{}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Position%7 == 3 {
			missing = append(missing, e)
		} else {
			published = append(published, e)
		}
	}
	changed, unknown := published[5], published[9]
	published[5].Data = []byte(`{"n":-1}`)
	unknown.ID = uuid.NewString()
	if err := ops.Republish(ctx, topics, append(published, unknown)); err != nil {
		t.Fatal(err)
	}
	producer, err := kafka.NewProducer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = producer.Close() }()
	if _, err := producer.Publish(ctx, []kafka.Message{{Topic: topic, Value: []byte("poison")}}); err != nil {
		t.Fatal(err)
	}
	diff := func() (found map[string][]string) {
		t.Helper()
		found = map[string][]string{}
		err := ops.Diff(ctx, s, topics, t.TempDir(), func(d ops.Difference) error {
			found[d.Kind] = append(found[d.Kind], d.Event.ID)
			if d.Kind == ops.Unknown && !strings.HasPrefix(d.Where, topic+"/") {
				t.Errorf("unknown at %s", d.Where)
			}
			return nil
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	found := diff()
	var want []string
	for _, e := range missing {
		want = append(want, e.ID)
	}
	if !slices.Equal(found[ops.Missing], want) || !slices.Equal(found[ops.Changed], []string{changed.ID}) || len(found[ops.Unknown]) != 2 || !slices.Contains(found[ops.Unknown], unknown.ID) {
		t.Errorf("found %d missing of %d, changed %v, unknown %v", len(found[ops.Missing]), len(want), found[ops.Changed], found[ops.Unknown])
	}
	if err := ops.Republish(ctx, topics, missing); err != nil {
		t.Fatal(err)
	}
	if found := diff(); len(found[ops.Missing]) > 0 || len(found[ops.Changed]) != 1 || len(found[ops.Unknown]) != 2 {
		t.Errorf("after it was published: %v", found)
	}
}
