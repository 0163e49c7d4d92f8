package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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

// once is an edit that changes one place of one partition: the first that do can change.
func once(do func([]*kgo.Record) ([]*kgo.Record, bool)) func([]*kgo.Record) []*kgo.Record {
	done := false
	return func(records []*kgo.Record) []*kgo.Record {
		if !done {
			records, done = do(records)
		}
		return records
	}
}

// A history as it should be is found to be so; whatever is done to it is found too, as what it is.
func TestAuditorFindsWhatWasDone(t *testing.T) {
	h := newHistory(t)
	t.Run("nothing was done", func(t *testing.T) {
		report, err := h.auditor("", "journal.jsonl").Audit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range report.Violations {
			t.Error(v)
		}
		t.Log(report.Checked)
		for _, what := range []string{"transfer completed", "transfer failed", "transfer compensated", "refund completed", "payment completed", "hold completed", "release completed", "requests refused", "snapshots of accounts"} {
			if report.Checked[what] == 0 {
				t.Errorf("the history has no %s", what)
			}
		}
	})
	t.Run("in the databases", func(t *testing.T) { h.tamperDatabases(t) })
	t.Run("in Kafka", func(t *testing.T) { h.tamperTopics(t) })
	t.Run("with the journal", func(t *testing.T) { h.tamperJournal(t) })
}

// creditAgain appends a copy of the newest credit to its account, as a relay and projections in order would show it.
const creditAgain = `WITH c AS (SELECT * FROM es_event WHERE event_type = 'BalanceChanged' AND convert_from(payload, 'UTF8') LIKE '%"changeType":"CREDIT"%' ORDER BY position DESC LIMIT 1),
	l AS (UPDATE es_log SET position = position + 1 RETURNING position),
	r AS (UPDATE outbox_relay SET position = position + 1),
	b AS (INSERT INTO outbox_batch SELECT position, position, 1, now() FROM l),
	h AS (UPDATE es_head SET version = es_head.version + 1 FROM c WHERE es_head.stream_id = c.stream_id RETURNING es_head.version)
	INSERT INTO es_event SELECT l.position, '11111111-1111-4111-8111-111111111111', c.stream_type, c.stream_id, h.version, c.event_type, c.correlation_id, now(),
		convert_to(replace(regexp_replace(convert_from(c.payload, 'UTF8'), '"aggregateVersion":\d+', '"aggregateVersion":' || h.version), c.event_id::text, '11111111-1111-4111-8111-111111111111'), 'UTF8')
	FROM c, l, h`

func (h *history) tamperDatabases(t *testing.T) {
	for _, tc := range []struct {
		name, database, sql string
		want                []string // kinds, each found at least once
		open                string   // how what Open says is under way ends
	}{
		{"a credit once more", "account", creditAgain, []string{"money", "register", "published", "read model"}, "events are not in account_view"},
		{"a debit of another amount", "account", `UPDATE es_event SET payload = convert_to(regexp_replace(convert_from(payload, 'UTF8'), '"changeAmount":"', '"changeAmount":"1'), 'UTF8')
			WHERE position = (SELECT max(position) FROM es_event WHERE convert_from(payload, 'UTF8') LIKE '%"changeType":"DEBIT"%')`, []string{"money", "published"}, ""},
		{"an account's event less", "account", `DELETE FROM es_event WHERE position = (SELECT max(position) - 5 FROM es_event WHERE event_type = 'BalanceChanged')`, []string{"order", "money"}, ""},
		{"an account shown as it was", "account", `UPDATE account_view SET version = version - 1 WHERE id = (SELECT id FROM account_view ORDER BY version DESC LIMIT 1)`, []string{"read model"}, "events are not in account_view"},
		{"an account shown with other money", "account", `UPDATE account_view SET state = convert_to(replace(convert_from(state, 'UTF8'), '"balance":"', '"balance":"1'), 'UTF8')
			WHERE id = (SELECT id FROM account_view ORDER BY version DESC LIMIT 1)`, []string{"read model"}, ""},
		{"an account not shown", "account", `DELETE FROM account_view WHERE id = (SELECT id FROM account_view ORDER BY version DESC LIMIT 1)`, []string{"read model"}, "events are not in account_view"},
		{"other books", "account", `UPDATE book_total SET in_transit = in_transit + 1, user_total = user_total - 1 WHERE currency = 'USD'`, []string{"read model"}, ""},
		{"another snapshot", "account", `UPDATE es_head SET snapshot = convert_to(replace(convert_from(snapshot, 'UTF8'), '"balance":"', '"balance":"1'), 'UTF8')
			WHERE stream_id = (SELECT stream_id FROM es_head WHERE snapshot IS NOT NULL ORDER BY version DESC LIMIT 1)`, []string{"snapshot"}, ""},
		{"a relay that is behind", "account", `UPDATE outbox_relay SET position = position - 1`, []string{"outbox"}, "1 account events are not published"},
		{"a transaction that has not ended", "transaction", `DELETE FROM es_event WHERE position = (SELECT max(position) FROM es_event WHERE event_type = 'TransferCompleted')`, []string{"outcome", "order"}, ""},
		{"a transaction shown as pending", "transaction", `UPDATE transaction_view SET status = 'pending' WHERE id = (SELECT id FROM transaction_view LIMIT 1)`, []string{"read model"}, ""},
		{"a transaction that failed, and moved money", "transaction", `UPDATE es_event SET event_type = 'TransferFailed',
			payload = convert_to(replace(convert_from(payload, 'UTF8'), 'TransferCompleted', 'TransferFailed'), 'UTF8')
			WHERE position = (SELECT max(position) FROM es_event WHERE event_type = 'TransferCompleted')`, []string{"money", "outcome", "published", "read model"}, ""},
		{"a saga that ended otherwise", "saga", `UPDATE saga_state SET status = 'failed' WHERE saga_id = (SELECT saga_id FROM saga_state WHERE status = 'completed' LIMIT 1)`, []string{"read model"}, ""},
		{"a saga that needs attention", "saga", `UPDATE saga_state SET status = 'needs_attention' WHERE saga_id = (SELECT saga_id FROM saga_state LIMIT 1)`, []string{"read model"}, "1 sagas need attention"},
		{"a saga less", "saga", `DELETE FROM es_event WHERE position = (SELECT max(position) FROM es_event)`, []string{"outcome", "order"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			database := "billing_" + tc.database
			h.exec("postgres", `CREATE DATABASE tampered TEMPLATE `+database)
			defer h.exec("postgres", `DROP DATABASE tampered WITH (FORCE)`)
			h.exec("tampered", tc.sql)
			a := h.auditor("", "journal.jsonl")
			*map[string]*string{"account": &a.Account, "transaction": &a.Transaction, "saga": &a.Saga}[tc.database] = h.pg.DSN("tampered")
			wantFound(t, a, tc.want...)
			open, err := a.Open(t.Context())
			if got := strings.Join(open, ", "); err != nil || !strings.HasSuffix(got, tc.open) || (got == "") != (tc.open == "") {
				t.Errorf("under way: %v (%v), want %q", open, err, tc.open)
			}
		})
	}
}

func (h *history) tamperTopics(t *testing.T) {
	secondVersion := func(records []*kgo.Record) int {
		return slices.IndexFunc(records, func(r *kgo.Record) bool { return string(r.Headers[1].Value) == "2" })
	}
	for name, tc := range map[string]struct {
		edit func([]*kgo.Record) []*kgo.Record
		want []string
	}{
		"nothing": {func(records []*kgo.Record) []*kgo.Record { return records }, nil},
		"everything comes again": {func(records []*kgo.Record) []*kgo.Record { // as a relay may send it
			for _, r := range slices.Clone(records) {
				again := *r
				records = append(records, &again)
			}
			return records
		}, nil},
		"an event is lost": {once(func(records []*kgo.Record) ([]*kgo.Record, bool) {
			return records[:len(records)-1], true
		}), []string{"published"}},
		"an event that is not committed": {once(func(records []*kgo.Record) ([]*kgo.Record, bool) {
			r := *records[0]
			r.Value = []byte(strings.Replace(string(r.Value), `"eventId":"`, `"eventId":"11111111-1111-4111-8111-111111111111","was":"`, 1))
			return append(slices.Clone(records), &r), true
		}), []string{"published"}},
		"an event with a space more": {once(func(records []*kgo.Record) ([]*kgo.Record, bool) {
			records[0].Value = append(records[0].Value, ' ')
			return records, true
		}), []string{"published"}},
		"a second version before the first": {once(func(records []*kgo.Record) ([]*kgo.Record, bool) {
			second := secondVersion(records)
			if second < 0 {
				return records, false
			}
			first := slices.IndexFunc(records, func(r *kgo.Record) bool { return string(r.Key) == string(records[second].Key) })
			records[first], records[second] = records[second], records[first]
			return records, true
		}), []string{"order"}},
		"an aggregate in two partitions": {once(func(records []*kgo.Record) ([]*kgo.Record, bool) {
			second := secondVersion(records)
			if second < 0 {
				return records, false
			}
			records[second].Partition = (records[second].Partition + 1) % 6
			return records, true
		}), []string{"order"}},
		"another header": {once(func(records []*kgo.Record) ([]*kgo.Record, bool) {
			records[0].Headers = slices.Clone(records[0].Headers)
			records[0].Headers[0].Value = []byte("Nothing")
			return records, true
		}), []string{"published"}},
	} {
		t.Run(name, func(t *testing.T) {
			prefix := uuid.NewString() + "."
			h.copyTopics(prefix, tc.edit)
			wantFound(t, h.auditor(prefix, "journal.jsonl"), tc.want...)
		})
	}
}

func (h *history) tamperJournal(t *testing.T) {
	find := func(fits func(auditor.Request) bool) int { return slices.IndexFunc(h.requests, fits) }
	transfer := find(func(r auditor.Request) bool { return r.Op == "transfer" && r.Answer == auditor.Accepted })
	for name, edit := range map[string]func(r []auditor.Request) []auditor.Request{
		"an accepted request without a transaction": func(r []auditor.Request) []auditor.Request {
			r[transfer].ID = uuid.NewString()
			return r
		},
		"an unanswered request": func(r []auditor.Request) []auditor.Request {
			return append(r, auditor.Request{Op: "transfer", Key: "k", Answer: auditor.Unanswered, Attempts: 3})
		},
		"a caller was told another end": func(r []auditor.Request) []auditor.Request {
			r[transfer].Status = "compensated"
			return r
		},
		"another amount was asked for": func(r []auditor.Request) []auditor.Request {
			r[transfer].Amount += "1"
			return r
		},
		"a refused request with a transaction": func(r []auditor.Request) []auditor.Request {
			r[transfer].Answer = auditor.Refused
			return r
		},
		"nobody asked": func(r []auditor.Request) []auditor.Request { return slices.Delete(r, transfer, transfer+1) },
		"nobody asked for a release": func(r []auditor.Request) []auditor.Request {
			return slices.DeleteFunc(r, func(r auditor.Request) bool { return r.Op == "void" })
		},
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			for _, r := range edit(slices.Clone(h.requests)) {
				line, err := json.Marshal(r)
				if err != nil {
					t.Fatal(err)
				}
				b.Write(append(line, '\n'))
			}
			if err := os.WriteFile(filepath.Join(h.dir, "edited.jsonl"), []byte(b.String()), 0o600); err != nil {
				t.Fatal(err)
			}
			report := wantFound(t, h.auditor("", "edited.jsonl"), "outcome")
			if missing := strings.Contains(name, "without") || strings.Contains(name, "unanswered"); missing != (report.WithoutOutcome > 0) {
				t.Errorf("%d requests are without an outcome", report.WithoutOutcome)
			}
		})
	}
}

// wantFound audits, and wants at least one violation of each of these kinds; of none, none at all.
func wantFound(t *testing.T, a auditor.Auditor, kinds ...string) *auditor.Report {
	t.Helper()
	report, err := a.Audit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, v := range report.Violations {
		found[v.Kind] = v.String()
	}
	for _, kind := range kinds {
		if found[kind] == "" {
			t.Errorf("no violation of %q in %v", kind, report.Violations)
		}
	}
	if (report.Count == 0) != (len(kinds) == 0) {
		t.Errorf("%d violations: %v", report.Count, report.Violations)
	}
	t.Logf("found %v", found)
	return report
}
