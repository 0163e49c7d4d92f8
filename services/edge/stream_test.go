package edge

import (
	"maps"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/inbox"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/pgtest"
)

// What the alerts and the dashboard read is there by these names; where the database does not say, it is -1.
func TestOutboxMetrics(t *testing.T) {
	pool := pgtest.Pool(t)
	if err := migrate.Up(t.Context(), pool, espg.Migrations, espg.MigrationsTable); err != nil {
		t.Fatal(err)
	}
	if err := migrate.Up(t.Context(), pool, inbox.Migrations, inbox.MigrationsTable); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `INSERT INTO outbox_parked (id, position, stream_type, stream_id, version, event_type, attempts, parked_at, status, done_at)
			SELECT gen_random_uuid(), n, 'Account', 'a', n, 'Happened', 0, clock_timestamp(), 'requeued', CASE WHEN n > 2 THEN clock_timestamp() END
			FROM generate_series(1, 5) n;
		INSERT INTO inbox_parked (subscription, topic, key, partition, message_offset, header_names, header_values, sent_at,
				event_type, stream_type, stream_id, version, attempts, parked_at, status)
			SELECT 's', 't', '', 0, n, '{}', '{}', clock_timestamp(), 'Happened', 'Account', 'a', n, 0, clock_timestamp(), 'parked'
			FROM generate_series(1, 3) n`); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	if err := registry.Register(newMeasured(pool)); err != nil {
		t.Fatal(err)
	}
	shown := func() map[string]float64 {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		values := map[string]float64{}
		for _, f := range families {
			values[f.GetName()] = f.GetMetric()[0].GetGauge().GetValue()
		}
		return values
	}
	want := map[string]float64{"outbox_pending_events": 0, "outbox_oldest_pending_seconds": 0, "outbox_parked_events": 2, "inbox_parked_messages": 3}
	got := shown()
	if age, ok := got["postgres_oldest_snapshot_seconds"]; !ok || age < 0 {
		t.Errorf("the oldest snapshot's age is %v, %v", age, ok)
	}
	delete(got, "postgres_oldest_snapshot_seconds")
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	pool.Close()
	want["postgres_oldest_snapshot_seconds"] = -1
	for name := range want {
		want[name] = -1
	}
	if got := shown(); !maps.Equal(got, want) {
		t.Errorf("without a database: got %v, want %v", got, want)
	}
}

// Two systems on one Kafka have topics and groups of their own; a prefix that Kafka cannot have is refused at the start.
func TestTopicPrefix(t *testing.T) {
	for prefix, want := range map[string]string{"": "billing", "billing": "billing", "staging-2.billing": "staging-2.billing"} {
		if got, err := (KafkaSettings{TopicPrefix: prefix}).Prefix(); got != want || err != nil {
			t.Errorf("prefix %q is read as %q, %v", prefix, got, err)
		}
	}
	for _, bad := range []string{"Billing", "a_b", ".a", "a.", "a b", "a/b", "ü", strings.Repeat("a", 65)} {
		if _, err := (KafkaSettings{TopicPrefix: bad}).Prefix(); err == nil {
			t.Errorf("prefix %q is taken", bad)
		}
		if _, err := (Stream{Kafka: KafkaSettings{TopicPrefix: bad}}).Start(newApp(t)); err == nil {
			t.Errorf("a service starts with prefix %q", bad)
		}
	}
	s := Stream{Aggregate: "Saga", Sources: []string{"Transaction"}, Events: &Events{}}
	if topics := s.topics("blue"); topics[0].Name != "blue.saga.events" || topics[1].Name != "blue.transaction.events" {
		t.Errorf("topics: %v", topics)
	}
}
