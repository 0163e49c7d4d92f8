package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kfake"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/outbox"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/services/edge"
)

// run runs a command line and returns what it answers.
func run(t *testing.T, ctx context.Context, args ...string) (string, error) {
	t.Helper()
	var b bytes.Buffer
	out = &b
	defer func() { out = os.Stdout }()
	var c commands
	k, err := kong.New(&c, kong.Name("billing-events"), kong.Description(about), kong.BindTo(ctx, (*context.Context)(nil)), kong.Exit(func(int) {}))
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := k.Parse(args)
	if err != nil {
		return "", err
	}
	err = parsed.Run()
	return b.String(), err
}

func database(t *testing.T) (dsn string, s *espg.Store) {
	t.Helper()
	pool := pgtest.Migrated(t, espg.Migrations, espg.MigrationsTable)
	return pool.Config().ConnString(), espg.New(pool, espg.Options{})
}

func happened(t *testing.T, s es.Store, st es.Stream, after int64, n int) {
	t.Helper()
	a := es.Append{Stream: st, Expected: after}
	for v := after + 1; v <= after+int64(n); v++ {
		a.Events = append(a.Events, es.Event{ID: uuid.NewString(), Type: "Happened", Stream: st, Version: v, At: time.Now(), CorrelationID: "<c>", Data: []byte(`{"n":1}`)})
	}
	if err := s.Append(t.Context(), a); err != nil {
		t.Fatal(err)
	}
}

// versions are those of the events that were printed.
func versions(t *testing.T, printed string) (out []float64) {
	t.Helper()
	for line := range strings.Lines(printed) {
		var s struct {
			Position   int64
			RecordedAt time.Time
			Event      struct{ AggregateVersion float64 }
		}
		if err := json.Unmarshal([]byte(line), &s); err != nil || s.Position == 0 || s.RecordedAt.IsZero() {
			t.Fatalf("%q: %v", line, err)
		}
		out = append(out, s.Event.AggregateVersion)
	}
	return out
}

func equal(a []float64, b ...float64) bool { return fmt.Sprint(a) == fmt.Sprint(b) }

// promoteChecks promotes a copy of a log, which fences the log's writer. It wants a log, and the same events in it.
func promoteChecks(t *testing.T, to, log, longer string) {
	t.Helper()
	ctx := t.Context()
	if _, err := run(t, ctx, "promote", to); err == nil || !strings.Contains(err.Error(), "--log") {
		t.Errorf("without a log: %v", err)
	}
	if _, err := run(t, ctx, "promote", longer, "--log="+log); err == nil || !strings.Contains(err.Error(), "is not what the database has") {
		t.Errorf("with another log: %v", err)
	}
	l, err := find(ctx, log)
	if err != nil {
		t.Fatal(err)
	}
	leader, err := kafka.ClaimPartition(ctx, l.kafka, l.topic, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer leader.Close()
	if _, err := run(t, ctx, "promote", to, "--log="+log); err != nil {
		t.Error(err)
	}
	var fenced *kafka.FencedError
	if _, err := leader.Commit(ctx, []kafka.Message{{Topic: l.topic, Value: []byte("{}")}}); !errors.As(err, &fenced) {
		t.Errorf("the leader of before goes on: %v", err)
	}
	if got, err := run(t, ctx, "promote", to, "--force"); err != nil || !strings.Contains(got, "above position 6 is lost") {
		t.Errorf("forced: %s %v", got, err)
	}
}

// An operator's day: look, compare, copy to Kafka and back, publish what is missing.
func TestCommands(t *testing.T) {
	fake, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer fake.Close()
	broker := fake.ListenAddrs()[0]
	ctx := t.Context()
	dsn, s := database(t)
	a, b := es.Stream{Type: "Test", ID: "a"}, es.Stream{Type: "Other", ID: "b"}
	happened(t, s, a, 0, 3)
	happened(t, s, b, 0, 1)
	happened(t, s, a, 3, 2)
	log := "kafka://" + broker + "/test.log"
	copied, err := run(t, ctx, "copy", dsn, log, "--kafka-replication=1")
	if err != nil || !strings.HasPrefix(copied, "copied and verified: 6 events, SHA-256 ") {
		t.Fatalf("%s %v", copied, err)
	}
	to, _ := database(t)
	back, err := run(t, ctx, "copy", log, to)
	if err != nil || back != copied {
		t.Fatalf("%s %v, want %s", back, err, copied)
	}
	for _, store := range []string{dsn, log, to} {
		for _, c := range []struct {
			args string
			want []float64
		}{
			{"read STORE Test a", []float64{1, 2, 3, 4, 5}}, {"read STORE Test a --after 2 --limit 2", []float64{3, 4}}, {"read STORE Test x", nil},
			{"follow STORE --once", []float64{1, 2, 3, 1, 4, 5}}, {"follow STORE Test --once --after 2", []float64{3, 4, 5}},
			{"follow STORE Other --limit 1", []float64{1}}, {"follow STORE --once --since 2100-01-01T00:00:00Z", nil},
			{"follow STORE --limit 2 --since 2000-01-01T00:00:00Z", []float64{1, 2}},
		} {
			args := strings.Fields(c.args)
			args[1] = store
			got, err := run(t, ctx, args...)
			if err != nil || !equal(versions(t, got), c.want...) {
				t.Errorf("%v: %v %v, want %v", args, versions(t, got), err, c.want)
			}
		}
		if got, err := run(t, ctx, "digest", store); err != nil || "copied and verified: "+got != copied {
			t.Errorf("digest %s: %s %v", store, got, err)
		}
	}
	happened(t, s, b, 1, 1)
	if _, err := run(t, ctx, "copy", log, dsn); err == nil || !strings.Contains(err.Error(), "differ at position 7") {
		t.Errorf("copied to a store that has more: %v", err)
	}

	cfg := kafka.Config{Brokers: []string{broker}, ClientID: "test", Log: slog.New(slog.DiscardHandler)}
	for _, kind := range []string{"Test", "Other"} {
		if err := kafka.EnsureTopics(ctx, cfg, kafka.Topic{Name: outbox.Topic(edge.TopicPrefix, kind), Partitions: 2}); err != nil {
			t.Fatal(err)
		}
	}
	diff := []string{"diff", dsn, "Test", "Other", "--kafka-brokers", broker}
	if got, err := run(t, ctx, diff...); !errors.Is(err, errDiffer) || strings.Count(got, "missing ") != 7 || !strings.Contains(got, "7 missing, 0 changed, 0 unknown") {
		t.Errorf("nothing is published: %s %v", got, err)
	}
	if got, err := run(t, ctx, append(diff, "--republish")...); err != nil || !strings.HasSuffix(got, "7 published\n") {
		t.Errorf("%s %v", got, err)
	}
	if got, err := run(t, ctx, diff...); err != nil || got != "0 missing, 0 changed, 0 unknown, 0 lost\n" {
		t.Errorf("after that: %s %v", got, err)
	}
	promoteChecks(t, to, log, dsn)
	for _, args := range [][]string{
		{"digest", "mysql://x"}, {"digest", "kafka://" + broker}, {"digest", "postgres://127.0.0.1:1/x"}, {"promote", log}, {"diff", log, "Test", "--kafka-brokers", broker},
		{"digest", "kafka://" + broker + "/unknown.log"},
	} {
		if got, err := run(t, ctx, args...); err == nil {
			t.Errorf("%v: %s", args, got)
		} else if strings.Contains(err.Error(), "%!") {
			t.Errorf("%v: %v", args, err)
		}
	}
}
