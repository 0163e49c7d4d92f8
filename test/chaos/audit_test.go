package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"example.com/billing/test/chaos/auditor"
)

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
	l AS (SELECT es_end() + 1 AS position),
	r AS (UPDATE outbox_relay SET position = position + 1),
	b AS (INSERT INTO outbox_batch SELECT position, position, 1, now() FROM l),
	h AS (UPDATE es_head SET version = es_head.version + 1 FROM c WHERE es_head.stream_id = c.stream_id RETURNING es_head.version)
	INSERT INTO es_event SELECT l.position, '11111111-1111-4111-8111-111111111111', c.stream_type, c.stream_id, h.version, c.event_type, c.correlation_id, now(),
		convert_to(replace(regexp_replace(convert_from(c.payload, 'UTF8'), '"aggregateVersion":\d+', '"aggregateVersion":' || h.version), c.event_id::text, '11111111-1111-4111-8111-111111111111'), 'UTF8')
	FROM c, l, h`

// rolledUp has book_total be all of the books, so that what is altered there is all that is.
const rolledUp = `WITH gone AS (DELETE FROM book_delta RETURNING *)
	INSERT INTO book_total AS t SELECT currency, sum(user_total), sum(external_total), sum(system_total), sum(in_transit) FROM gone GROUP BY currency
	ON CONFLICT (currency) DO UPDATE SET user_total = t.user_total + excluded.user_total, external_total = t.external_total + excluded.external_total,
		system_total = t.system_total + excluded.system_total, in_transit = t.in_transit + excluded.in_transit`

func (h *history) tamperDatabases(t *testing.T) {
	// A transfer whose caller was told its end.
	told := h.requests[slices.IndexFunc(h.requests, func(r auditor.Request) bool { return r.Op == "transfer" && r.Status == "completed" })].ID
	for _, tc := range []struct {
		name, database, sql string
		want                []string // pieces of what is found
		open                string   // how what Open says is under way ends
	}{
		{"a credit once more", "account", creditAgain, []string{
			"register: ", "was decided before, by Account ", ": starts from ", "USD: -60 are in transit, and nothing is under way", "that compensated; it moved ",
			"is committed and not on its topic", "read model: account_view ", "read model: book_total USD",
		}, "events are not in account_view"},
		{"a debit of another amount", "account", `UPDATE es_event SET payload = convert_to(regexp_replace(convert_from(payload, 'UTF8'), '"changeAmount":"', '"changeAmount":"1'), 'UTF8')
			WHERE position = (SELECT max(position) FROM es_event WHERE convert_from(payload, 'UTF8') LIKE '%"changeType":"DEBIT"%')`, []string{
			" and DEBIT of 160 are not ", "USD: all balances are -100 and in transit are 0: together not zero", "that compensated; it moved ", "differs from what is committed",
		}, ""},
		{"a debit less", "account", `DELETE FROM es_event WHERE position = (SELECT max(position) FROM es_event WHERE convert_from(payload, 'UTF8') LIKE '%"changeType":"DEBIT"%')`, []string{
			"order: Account database, position ", "(BalanceChanged): follows version ", ": starts from ", "USD: -60 are in transit", "that compensated; it moved ", "(BalanceChanged): is not committed",
		}, ""},
		{"an account shown as it was", "account", `UPDATE account_view SET version = version - 1 WHERE id = (SELECT id FROM account_view ORDER BY version DESC LIMIT 1)`, []string{"read model: account_view "}, "events are not in account_view"},
		{"an account shown with other money", "account", `UPDATE account_view SET state = convert_to(regexp_replace(convert_from(state, 'UTF8'), '"balance":"-?', '\&1'), 'UTF8')
			WHERE id = (SELECT id FROM account_view ORDER BY version DESC LIMIT 1)`, []string{"its state differs in the balance "}, ""},
		{"an account not shown", "account", `DELETE FROM account_view WHERE id = (SELECT id FROM account_view ORDER BY version DESC LIMIT 1)`, []string{"read model: account_view "}, "events are not in account_view"},
		{"other books", "account", `UPDATE book_total SET in_transit = in_transit + 1, user_total = user_total - 1 WHERE currency = 'USD'`, []string{"read model: book_total USD"}, ""},
		{"books of a currency less", "account", `DELETE FROM book_total WHERE currency = 'JPY'`, []string{"read model: book_total JPY"}, ""},
		{"money in a currency without postings", "account", `INSERT INTO book_total VALUES ('GBP', 1, -1, 0, 0)`, []string{"read model: book_total GBP"}, ""},
		{"money in a currency without accounts", "account", `INSERT INTO book_total VALUES ('SEK', 1, -1, 0, 0)`, []string{"read model: book_total SEK: there are no accounts in it"}, ""},
		{"an account that nobody closes", "account", `INSERT INTO account_closing SELECT id, 'default' FROM account_view LIMIT 1`, []string{"read model: account_closing "}, "1 accounts are closing"},
		{"an unknown account that is closing", "account", `INSERT INTO account_closing VALUES (gen_random_uuid(), 'default')`, []string{"read model: account_closing "}, "1 accounts are closing"},
		{"another snapshot", "account", `UPDATE es_head SET snapshot = convert_to(regexp_replace(convert_from(snapshot, 'UTF8'), '"balance":"-?', '\&1'), 'UTF8')
			WHERE stream_id = (SELECT stream_id FROM es_head WHERE snapshot IS NOT NULL ORDER BY version DESC LIMIT 1)`, []string{"snapshot: ", " differs in the balance "}, ""},
		{"a relay that is behind", "account", `UPDATE outbox_relay SET position = position - 1`, []string{"outbox: Account database: the relay's checkpoint is "}, "1 account events are not published"},
		{"a transaction that has not ended", "transaction", `DELETE FROM es_event WHERE event_type = 'TransferCompleted' AND stream_id = '` + told + `'`, []string{
			": has not ended", "order: Transaction database, position ", ": the head's version is 2, want 1", ": the caller was told \"completed\", and it is \"pending\"", "read model: transaction_pending ",
		}, ""},
		{"a transaction shown as pending", "transaction", `UPDATE transaction_view SET status = 'pending' WHERE id = (SELECT id FROM transaction_view LIMIT 1)`, []string{"read model: transaction_view "}, ""},
		{"a transaction that failed, and moved money", "transaction", `UPDATE es_event SET event_type = 'TransferFailed',
			payload = convert_to(replace(convert_from(payload, 'UTF8'), 'TransferCompleted', 'TransferFailed'), 'UTF8')
			WHERE event_type = 'TransferCompleted' AND stream_id = '` + told + `'`, []string{
			"that failed; it moved ", "is a transfer that failed, its saga a transfer that completed", ": the caller was told \"completed\", and it is \"failed\"", "differs from what is committed",
			"read model: transaction_view ",
		}, ""},
		{"a saga that ended otherwise", "saga", `UPDATE saga_state SET status = 'failed' WHERE saga_id = (SELECT saga_id FROM saga_state WHERE status = 'completed' LIMIT 1)`, []string{" failed, its state ", "\"failed\", its event says "}, ""},
		{"a saga that needs attention", "saga", `UPDATE saga_state SET status = 'needs_attention' WHERE saga_id = (SELECT saga_id FROM saga_state LIMIT 1)`, []string{"\"needs_attention\", its event says "}, "1 sagas need attention"},
		{"a saga that is not found by its account", "saga", `DELETE FROM saga_subject WHERE ctid = (SELECT min(ctid) FROM saga_subject)`, []string{"read model: saga_subject "}, ""},
		{"a saga that stayed open", "saga", `INSERT INTO saga_open SELECT saga_id, created_at FROM saga_state LIMIT 1`, []string{"read model: saga_open "}, ""},
		{"a saga less", "saga", `DELETE FROM es_event WHERE position = (SELECT max(position) FROM es_event)`, []string{
			": has a head and no events", ": the relay's checkpoint is ", ": the batches end at ", ", and has no event of its end", "(SagaCompensated): is not committed",
		}, "-1 saga events are not published"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			database := "billing_" + tc.database
			h.exec("postgres", `CREATE DATABASE tampered TEMPLATE `+database)
			defer h.exec("postgres", `DROP DATABASE tampered WITH (FORCE)`)
			if tc.database == "account" {
				h.exec("tampered", rolledUp)
			}
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
		}), []string{"is committed and not on its topic"}},
		"an event that is not committed": {once(func(records []*kgo.Record) ([]*kgo.Record, bool) {
			r := *records[0]
			r.Value = []byte(strings.Replace(string(r.Value), `"eventId":"`, `"eventId":"11111111-1111-4111-8111-111111111111","was":"`, 1))
			return append(slices.Clone(records), &r), true
		}), []string{"is not committed (event 11111111-1111-4111-8111-111111111111)"}},
		"an event with a space more": {once(func(records []*kgo.Record) ([]*kgo.Record, bool) {
			records[0].Value = append(records[0].Value, ' ')
			return records, true
		}), []string{"differs from what is committed"}},
		"a second version before the first": {once(func(records []*kgo.Record) ([]*kgo.Record, bool) {
			second := secondVersion(records)
			if second < 0 {
				return records, false
			}
			first := slices.IndexFunc(records, func(r *kgo.Record) bool { return string(r.Key) == string(records[second].Key) })
			records[first], records[second] = records[second], records[first]
			return records, true
		}), []string{" version 2 (", "appears right after version 0"}},
		"an aggregate in two partitions": {once(func(records []*kgo.Record) ([]*kgo.Record, bool) {
			second := secondVersion(records)
			if second < 0 {
				return records, false
			}
			records[second].Partition = (records[second].Partition + 1) % 6
			return records, true
		}), []string{"other events of it are in partition "}},
		"another header": {once(func(records []*kgo.Record) ([]*kgo.Record, bool) {
			records[0].Headers = slices.Clone(records[0].Headers)
			records[0].Headers[0].Value = []byte("Nothing")
			return records, true
		}), []string{"header eventType is \"Nothing\", want "}},
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
	for name, tc := range map[string]struct {
		edit func(r []auditor.Request) []auditor.Request
		want string
	}{
		"an accepted request without a transaction": {func(r []auditor.Request) []auditor.Request {
			r[transfer].ID = uuid.NewString()
			return r
		}, ", which is not there"},
		"an unanswered request": {func(r []auditor.Request) []auditor.Request {
			return append(r, auditor.Request{Op: "transfer", Key: "k", Answer: auditor.Unanswered, Attempts: 3})
		}, "transfer k: was asked 3 times and never answered"},
		"a caller was told another end": {func(r []auditor.Request) []auditor.Request {
			r[transfer].Status = "compensated"
			return r
		}, "the caller was told \"compensated\", and it is \"completed\""},
		"another amount was asked for": {func(r []auditor.Request) []auditor.Request {
			r[transfer].Amount += "1"
			return r
		}, ": asked for " + h.requests[transfer].Amount + "1, got "},
		"a refused request with a transaction": {func(r []auditor.Request) []auditor.Request {
			r[transfer].Answer = auditor.Refused
			return r
		}, ": was refused (), and there is the transaction "},
		"nobody asked": {func(r []auditor.Request) []auditor.Request { return slices.Delete(r, transfer, transfer+1) }, ": nobody asked for it (key "},
		"nobody asked for a release": {func(r []auditor.Request) []auditor.Request {
			return slices.DeleteFunc(r, func(r auditor.Request) bool { return r.Op == "void" })
		}, ": nobody asked for the release of "},
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			for _, r := range tc.edit(slices.Clone(h.requests)) {
				line, err := json.Marshal(r)
				if err != nil {
					t.Fatal(err)
				}
				b.Write(append(line, '\n'))
			}
			if err := os.WriteFile(filepath.Join(h.dir, "edited.jsonl"), []byte(b.String()), 0o600); err != nil {
				t.Fatal(err)
			}
			report := wantFound(t, h.auditor("", "edited.jsonl"), tc.want)
			if missing := strings.Contains(name, "without") || strings.Contains(name, "unanswered"); missing != (report.WithoutOutcome > 0) {
				t.Errorf("%d requests are without an outcome", report.WithoutOutcome)
			}
		})
	}
}

// wantFound audits, and wants each of these texts in a violation; without texts, no violation at all.
func wantFound(t *testing.T, a auditor.Auditor, texts ...string) *auditor.Report {
	t.Helper()
	report, err := a.Audit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range texts {
		if !slices.ContainsFunc(report.Violations, func(v auditor.Violation) bool { return strings.Contains(v.String(), text) }) {
			t.Errorf("no violation tells of %q: %v", text, report.Violations)
		}
	}
	if (report.Count == 0) != (len(texts) == 0) {
		t.Errorf("%d violations: %v", report.Count, report.Violations)
	}
	return report
}
