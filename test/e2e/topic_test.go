package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"example.com/billing/deploy/local/system"
	"example.com/billing/pkg/outbox"
	"example.com/billing/services/edge"
)

var update = flag.Bool("update", false, "write the golden files that do not exist yet")

// What a foreign client reads from the topics, of one transfer and one that was undone, is what the golden files say: topic,
// key, headers and the whole JSON, byte for byte but for ids and times.
func TestTopicsHoldTheSeedsEvents(t *testing.T) {
	bank := open(t, "EXTERNAL", "ownerId", "bank")
	source, destination := open(t, "USER", "ownerId", "alice"), open(t, "USER", "ownerId", "bob", "maxBalance", "120.00")
	correlation := "test-" + uuid.NewString()
	ids := map[string]string{bank: "<bank>", source: "<source>", destination: "<destination>", correlation: "<correlation>"}
	send := func(name, kind, source, destination, amount, want string) {
		body := order(source, destination, amount)
		body["idempotencyKey"] = name + correlation
		tx := must(t, http.StatusOK, "POST", "/api/v1/transactions/"+kind+"?wait=30s", body, "X-Correlation-ID", correlation, "X-Actor", "tester")
		if tx["status"] != want {
			t.Fatalf("%s: %v", name, tx)
		}
		ids[tx["transactionId"].(string)] = "<" + name + ">"
	}
	send("topup", "topup", bank, source, "100.00", "completed")
	send("transfer", "transfer", source, destination, "50.00", "completed")
	send("refused", "transfer", source, destination, "50.01", "failed")
	send("second", "transfer", source, destination, "50.00", "completed")
	send("more", "topup", bank, source, "100.00", "completed")
	// The destination has 100.00 of at most 120.00: another 50.00 are too much.
	send("undone", "transfer", source, destination, "50.00", "compensated")

	compareTopics(t, "", correlation, ids)
}

// The same of a payment that is refunded in part, and of a hold that is captured in part and voided.
func TestTopicsHoldPaymentsAndHolds(t *testing.T) {
	bank := open(t, "EXTERNAL", "ownerId", "bank")
	customer, merchant := open(t, "USER", "ownerId", "alice"), open(t, "USER", "ownerId", "shop")
	correlation := "test-" + uuid.NewString()
	ids := map[string]string{bank: "<bank>", customer: "<customer>", merchant: "<merchant>", correlation: "<correlation>"}
	send := func(name, path string, body object, want string) string {
		if !strings.HasSuffix(path, "/void") { // which needs none
			body["idempotencyKey"] = name + correlation
		}
		tx := must(t, http.StatusOK, "POST", "/api/v1/"+path+"?wait=30s", body, "X-Correlation-ID", correlation, "X-Actor", "tester")
		if tx["status"] != want {
			t.Fatalf("%s: %v", name, tx)
		}
		id, ok := tx["transactionId"].(string)
		if !ok {
			id = tx["holdId"].(string)
		}
		ids[id] = "<" + name + ">"
		return id
	}
	send("topup", "transactions/topup", order(bank, customer, "100.00"), "completed")
	payment := send("payment", "transactions/payment", object{"customerAccountId": customer, "merchantAccountId": merchant, "amount": "40.00", "currency": "USD"}, "completed")
	send("refund", "transactions/refund", object{"paymentId": payment, "amount": "15.00", "reason": "late"}, "completed")
	held := send("hold", "holds", object{"accountId": customer, "destinationAccountId": merchant, "amount": "30.00", "currency": "USD", "expiresAt": time.Now().Add(time.Hour)}, "active")
	send("capture", "holds/"+held+"/capture", object{"amount": "20.00"}, "completed")
	send("hold", "holds/"+held+"/void", object{"reason": "enough"}, "voided")
	compareTopics(t, ".payments", correlation, ids)
}

// compareTopics compares what the topics hold of one correlation id with the golden files.
func compareTopics(t *testing.T, suffix, correlation string, ids map[string]string) {
	t.Helper()
	got := read(t, correlation)
	for _, r := range got["billing.transaction.events"] {
		if header(r, "eventType") == "ReleaseRequested" {
			ids[string(r.Key)] = "<release>"
		}
	}
	for topic, records := range got {
		var b strings.Builder
		byAggregate(records, ids)
		for _, r := range records {
			checkEnvelope(t, r)
			fmt.Fprintf(&b, "key %s\n", r.Key)
			for _, h := range told(r) {
				fmt.Fprintf(&b, "%s: %s\n", h.Key, h.Value)
			}
			fmt.Fprintf(&b, "%s\n\n", r.Value)
		}
		golden(t, topic+suffix+".txt", scrub(b.String(), ids))
	}
}

// read consumes the three topics from their beginning and returns the records of one correlation id, by topic: as many as the
// services have committed, once each of the six transactions' sagas has ended.
func read(t *testing.T, correlation string) map[string][]*kgo.Record {
	t.Helper()
	committed := func(database string) (n int) {
		query(t, database, `SELECT count(*) FROM es_event WHERE convert_from(payload, 'UTF8') LIKE '%"correlationId":"`+correlation+`"%'`, &n)
		return n
	}
	eventually(t, "the sagas have ended", func() bool { return committed(system.SagaDatabase) == 6 })
	left := committed(system.AccountDatabase) + committed(system.TransactionDatabase) + committed(system.SagaDatabase)
	topics := []string{"billing.account.events", "billing.transaction.events", "billing.saga.events"}
	c, err := kgo.NewClient(kgo.SeedBrokers(now.brokers...), kgo.ConsumeTopics(topics...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	got := map[string][]*kgo.Record{}
	for left > 0 {
		fetches := c.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("%d records are missing: %v", left, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if header(r, "correlationId") == correlation {
				got[r.Topic] = append(got[r.Topic], r)
				left--
			}
		})
	}
	return got
}

// byAggregate orders records by their aggregate's name, then version: partitions come in any order.
func byAggregate(records []*kgo.Record, names map[string]string) {
	version := func(r *kgo.Record) int {
		v, _ := strconv.Atoi(header(r, "aggregateVersion"))
		return v
	}
	slices.SortFunc(records, func(a, b *kgo.Record) int {
		return cmp.Or(strings.Compare(names[string(a.Key)], names[string(b.Key)]), version(a)-version(b))
	})
}

// told are a record's headers but for those whose value depends on what else was committed: its place in the log of a database, or when
// the Kafka store took the event.
func told(r *kgo.Record) []kgo.RecordHeader {
	return slices.DeleteFunc(slices.Clone(r.Headers), func(h kgo.RecordHeader) bool {
		if now.store == edge.StoreKafka && h.Key == "recordedAt" {
			return true
		}
		place, err := strconv.ParseInt(string(h.Value), 10, 64)
		return (h.Key == outbox.PositionHeader || h.Key == outbox.IncarnationHeader) && err == nil && place > 0
	})
}

func header(r *kgo.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

var keys = regexp.MustCompile(`^\{"eventId":"[0-9a-f-]{36}","eventType":"\w+","aggregateId":"[0-9a-f-]{36}","aggregateType":"(Account|Transaction|Saga)","aggregateVersion":\d+,"timestamp":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z","correlationId":"[^"]+"(,"causationId":"[0-9a-f-]{36}")?(,"metadata":\{.+?\})?,"data":\{.*\}\}$`)

// checkEnvelope: the seed's keys in the seed's order, the key is the aggregate's id, the headers repeat the envelope.
func checkEnvelope(t *testing.T, r *kgo.Record) {
	t.Helper()
	if !keys.Match(r.Value) {
		t.Errorf("envelope %s", r.Value)
	}
	var e map[string]any
	if err := json.Unmarshal(r.Value, &e); err != nil {
		t.Fatal(err)
	}
	if r.Topic != "billing."+strings.ToLower(e["aggregateType"].(string))+".events" || string(r.Key) != e["aggregateId"] {
		t.Errorf("topic %s key %s of %s", r.Topic, r.Key, r.Value)
	}
	if header(r, "eventType") != e["eventType"] || header(r, "aggregateVersion") != fmt.Sprint(e["aggregateVersion"]) || len(told(r)) != 3 {
		t.Errorf("headers %v of %s", r.Headers, r.Value)
	}
	if e["eventType"] == "BalanceChanged" {
		data := e["data"].(map[string]any)
		for _, key := range []string{"previousBalance", "newBalance", "changeAmount", "changeType", "reason"} {
			if s, _ := data[key].(string); s == "" {
				t.Errorf("BalanceChanged without %s: %v", key, data)
			}
		}
	}
}

var (
	uuids = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	times = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`)
)

// scrub gives what differs from run to run a name.
func scrub(s string, ids map[string]string) string {
	for id, name := range ids {
		s = strings.ReplaceAll(s, id, name)
	}
	return times.ReplaceAllString(uuids.ReplaceAllString(s, "<uuid>"), "<time>")
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	want, err := os.ReadFile(path)
	if os.IsNotExist(err) && *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(strings.Split(got, "\n"), strings.Split(string(want), "\n")) {
		t.Errorf("%s\n got:\n%s\nwant:\n%s", name, got, want)
	}
}
