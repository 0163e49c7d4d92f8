package main

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kfake"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/outbox"
	"example.com/billing/services/edge"
)

// A database that was promoted without its last events: the tool names what is lost, publishes what the topic lacks of the present
// history, and notes that it was seen. A dry run changes nothing.
func TestRecoverAfterAFailOverThatLostEvents(t *testing.T) {
	fake, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer fake.Close()
	ctx, broker := t.Context(), fake.ListenAddrs()[0]
	dsn, s := database(t)
	cfg := kafka.Config{Brokers: []string{broker}, ClientID: "test", Log: slog.New(slog.DiscardHandler)}
	if err := kafka.EnsureTopics(ctx, cfg, kafka.Topic{Name: outbox.Topic(edge.TopicPrefix, "Test"), Partitions: 2}); err != nil {
		t.Fatal(err)
	}
	topic := []string{"Test", "--kafka-brokers", broker}
	command := func(name string, more ...string) (string, error) {
		t.Helper()
		return run(t, ctx, append(append([]string{name, dsn}, topic...), more...)...)
	}
	happened(t, s, es.Stream{Type: "Test", ID: "a"}, 0, 5)
	if got, err := command("diff", "--republish"); err != nil {
		t.Fatalf("%s %v", got, err)
	}
	// The standby that is promoted lacks positions 4 and 5. It has another identity than its row says.
	pool, err := pgxpool.New(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for _, sql := range []string{
		`DELETE FROM es_event WHERE position > 3`, `UPDATE es_head SET version = 3`, `UPDATE es_incarnation SET identity = 'the old primary'`,
	} {
		if _, err := pool.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	promoted := espg.New(pool, espg.Options{}) // every process started anew: none knows what there was
	happened(t, promoted, es.Stream{Type: "Test", ID: "b"}, 0, 1)

	const names = "the events at positions 4 to 5 of the history before it are lost"
	for range 2 { // a dry run changes nothing
		got, err := command("recover", "--dry-run")
		if err != nil || !strings.Contains(got, "1 missing, 0 changed, 0 unknown, 2 lost") || !strings.Contains(got, names) || !strings.Contains(got, "dry run") {
			t.Fatalf("%s %v", got, err)
		}
	}
	if _, err := command("diff"); !errors.Is(err, errDiffer) {
		t.Errorf("the dry run published: %v", err)
	}
	if got, err := command("recover"); err != nil || !strings.Contains(got, "1 published") || !strings.Contains(got, names) {
		t.Fatalf("%s %v", got, err)
	}
	if got, err := command("diff"); err != nil || !strings.HasSuffix(got, "0 missing, 0 changed, 0 unknown, 2 lost\n") {
		t.Errorf("after the recovery: %s %v", got, err)
	}
	if lost, err := promoted.Unrecovered(ctx); err != nil || len(lost) != 0 {
		t.Errorf("after the recovery: %+v %v", lost, err)
	}
	if got, err := command("recover"); err != nil || !strings.Contains(got, "nothing is lost") {
		t.Errorf("recovered again: %s %v", got, err)
	}
}
