package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"example.com/billing/deploy/local/embedded"
	"example.com/billing/deploy/local/system"
	"example.com/billing/test/chaos/auditor"
	"example.com/billing/test/drive"
	"example.com/billing/test/model"
)

// history is what a small system at rest has left: its databases and topics, and the journal of what it was asked.
type history struct {
	t        *testing.T
	dir      string
	pg       *embedded.Postgres
	brokers  []string
	requests []auditor.Request
}

// newHistory runs the system for a few hundred requests of all kinds, and stops its services.
func newHistory(t *testing.T) *history {
	dir, err := os.MkdirTemp("", "billing-audit-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	sys, err := system.Start(t.Context(), system.Settings{DataDir: dir, PostgresBin: os.Getenv("BILLING_POSTGRES_BIN")}, func(string, ...any) {})
	if err != nil {
		t.Fatal(err)
	}
	j, err := newJournal(filepath.Join(dir, "journal.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	rest := drive.REST("http://" + sys.HTTP)
	l := &load{journal: j, doors: []door{{rest, rest}, {rest, rest}}, seed: 5, run: uuid.NewString()[:8]}
	if err := l.settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := newWorker(l, 0)
	for range 200 {
		w.step(t.Context())
	}
	dollars := l.world.currencies[0]
	for i, amount := range []string{"1.00", "60.00"} { // the second is more than the account may have
		w.order(t.Context(), w.rng, model.Order{
			Kind: "transfer", Key: fmt.Sprint("full-", i), Source: dollars.users[0], Destination: dollars.full, Amount: amount, Currency: dollars.code,
		}, endMax)
	}
	pounds := auditor.Request{Op: "open", Key: "pounds", Type: "USER", Currency: "GBP"} // a currency without postings
	w.ask(t.Context(), w.rng, pounds, func(d *drive.Driver) model.Answer {
		return d.Open(pounds.Key, model.Opening{Type: pounds.Type, Currency: pounds.Currency})
	})
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	h := &history{t: t, dir: dir, pg: sys.Postgres(), brokers: sys.Brokers()}
	h.rest()
	if err := sys.Stop(); err != nil {
		t.Fatal(err)
	}
	h.pg, err = embedded.StartPostgres(t.Context(), embedded.PostgresOptions{Bin: os.Getenv("BILLING_POSTGRES_BIN"), DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.pg.Stop(context.Background()) })
	kafka, err := embedded.StartKafka(t.Context(), embedded.KafkaOptions{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kafka.Stop(context.Background()) })
	h.brokers = kafka.Brokers()
	if h.requests, err = auditor.ReadJournal(filepath.Join(dir, "journal.jsonl")); err != nil {
		t.Fatal(err)
	}
	return h
}

// auditor looks at the topics of this prefix; "" is the system's own.
func (h *history) auditor(prefix, journal string) auditor.Auditor {
	return auditor.Auditor{
		Journal: filepath.Join(h.dir, journal), Brokers: h.brokers, TopicPrefix: prefix,
		Account: h.pg.DSN(system.AccountDatabase), Transaction: h.pg.DSN(system.TransactionDatabase), Saga: h.pg.DSN(system.SagaDatabase),
	}
}

// rest waits until nothing is under way.
func (h *history) rest() {
	h.t.Helper()
	var open []string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		var err error
		if open, err = h.auditor("", "").Open(h.t.Context()); err != nil {
			h.t.Fatal(err)
		}
		if len(open) == 0 {
			return
		}
		time.Sleep(lookEvery) // between two looks
	}
	h.t.Fatalf("not at rest: %v", open)
}

// exec runs SQL on a database.
func (h *history) exec(database, sql string, args ...any) {
	h.t.Helper()
	conn, err := pgx.Connect(h.t.Context(), h.pg.DSN(database))
	if err != nil {
		h.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	tag, err := conn.Exec(h.t.Context(), sql, args...)
	if err != nil {
		h.t.Fatalf("%s: %v", sql, err)
	}
	if strings.HasPrefix(sql, "UPDATE") || strings.HasPrefix(sql, "DELETE") || strings.HasPrefix(sql, "INSERT") {
		if tag.RowsAffected() == 0 {
			h.t.Fatalf("%s touched nothing", sql)
		}
	}
}

// copyTopics copies the topics under another prefix; edit says what each partition's records become.
func (h *history) copyTopics(prefix string, edit func([]*kgo.Record) []*kgo.Record) {
	t := h.t
	t.Helper()
	names := []string{"account.events", "transaction.events", "saga.events"}
	client, err := kgo.NewClient(kgo.SeedBrokers(h.brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ConsumeTopics("billing."+names[0], "billing."+names[1], "billing."+names[2]), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	var all int64
	for _, name := range names {
		if _, err := admin.CreateTopic(t.Context(), 6, 1, nil, prefix+name); err != nil {
			t.Fatal(err)
		}
		ends, err := admin.ListEndOffsets(t.Context(), "billing."+name)
		if err != nil {
			t.Fatal(err)
		}
		ends.Each(func(o kadm.ListedOffset) { all += o.Offset })
	}
	byPartition := map[string][]*kgo.Record{}
	for all > 0 {
		fetches := client.PollFetches(t.Context())
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			all--
			key := fmt.Sprint(r.Topic, r.Partition)
			byPartition[key] = append(byPartition[key], &kgo.Record{
				Topic: prefix + strings.TrimPrefix(r.Topic, "billing."), Partition: r.Partition, Key: r.Key, Value: r.Value, Headers: r.Headers,
			})
		})
	}
	for _, records := range byPartition {
		if err := client.ProduceSync(t.Context(), edit(records)...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}
