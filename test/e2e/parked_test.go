package e2e

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"example.com/billing/pkg/kafka"
	outboxv1 "example.com/billing/proto/gen/go/billing/outbox/v1"
	"example.com/billing/services/edge"
)

// parkedOf lists what a service has parked of one aggregate, newest first, page by page.
func parkedOf(t *testing.T, service, direction, aggregate string) (found []object) {
	t.Helper()
	for token, more := "", true; more; more = token != "" {
		page := must(t, http.StatusOK, "GET", "/api/v1/outbox/"+service+"/parked?pageSize=3&direction="+direction+"&pageToken="+token, nil)
		for _, p := range page["parked"].([]any) {
			if p.(object)["aggregateId"] == aggregate {
				found = append(found, p.(object))
			}
		}
		token = page["nextPageToken"].(string)
	}
	return found
}

// still is how many of them wait.
func still(parked []object) (n int) {
	for _, p := range parked {
		if p["doneAt"] == nil {
			n++
		}
	}
	return n
}

// listed says whether the list of accounts shows one of this owner with this maximum.
func listed(t *testing.T, owner, maxBalance string) bool {
	t.Helper()
	found := must(t, http.StatusOK, "GET", "/api/v1/accounts?ownerId="+owner, nil)["accounts"].([]any)
	return len(found) == 1 && (maxBalance == "" || found[0].(object)["maxBalance"] == maxBalance)
}

func decide(t *testing.T, service string, parked object, verb, reason string) object {
	t.Helper()
	return must(t, http.StatusOK, "POST", "/api/v1/outbox/"+service+"/parked/"+parked["id"].(string)+"/"+verb, object{"reason": reason}, "X-Actor", "ann")
}

// broken sends a message that is no event, but says it is, to a topic.
func broken(t *testing.T, topic, key, eventType string) {
	t.Helper()
	p, err := kafka.NewProducer(kafka.Config{Brokers: now.brokers, ClientID: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	m := kafka.Message{Topic: topic, Key: []byte(key), Value: []byte("broken"), Headers: []kafka.Header{{Key: "eventType", Value: []byte(eventType)}}}
	if n, err := p.Publish(t.Context(), []kafka.Message{m}); n != 1 {
		t.Fatal(err)
	}
}

// A poison message parks one account's lane in the read model; others flow on; it is discarded, and the rest is requeued.
func TestAPoisonMessageIsParkedAndDiscarded(t *testing.T) {
	owner := uuid.NewString()
	id := open(t, "USER", "ownerId", owner)
	eventually(t, "the account is listed", func() bool { return listed(t, owner, "") })
	broken(t, "billing.account.events", id, "AccountLimitsChanged")
	eventually(t, "the message is parked", func() bool { return len(parkedOf(t, "account", "incoming", id)) == 1 })
	must(t, http.StatusOK, "PATCH", "/api/v1/accounts/"+id+"/limits", object{"maxBalance": "77.00", "reason": "test"})
	eventually(t, "what comes behind is parked", func() bool { return len(parkedOf(t, "account", "incoming", id)) == 2 })
	other := uuid.NewString()
	open(t, "USER", "ownerId", other)
	eventually(t, "another account is listed", func() bool { return listed(t, other, "") })
	if listed(t, owner, "77.00") {
		t.Error("the event behind the poison was handled")
	}
	if st := must(t, http.StatusOK, "GET", "/api/v1/outbox/account/stats", nil); st["parkedIncoming"].(float64) < 2 || st["parkedLanes"].(float64) < 1 || st["oldestParkedMs"].(float64) <= 0 {
		t.Errorf("stats %v", st)
	}
	found := parkedOf(t, "account", "incoming", id)
	behind, poison := found[0], found[1]
	if poison["attempts"] == 0.0 {
		behind, poison = poison, behind
	}
	if poison["status"] != "parked" || poison["subscription"] != "accounts" || poison["eventType"] != "AccountLimitsChanged" || poison["lastError"] == "" || behind["aggregateVersion"] != 2.0 {
		t.Errorf("parked %v, behind it %v", poison, behind)
	}
	if p := decide(t, "account", behind, "requeue", "try again"); p["status"] != "requeued" || p["decidedBy"] != "ann" || p["decidedReason"] != "try again" {
		t.Errorf("requeued %v", p)
	}
	eventually(t, "the poison is parked again", func() bool {
		found := parkedOf(t, "account", "incoming", id)
		return still(found) == 2 && found[0]["status"] == "parked" && found[1]["status"] == "parked"
	})
	for range 2 {
		if p := decide(t, "account", poison, "discard", "nobody wrote it"); p["status"] != "discarded" || p["doneAt"] == nil {
			t.Errorf("discarded %v", p)
		}
	}
	decide(t, "account", behind, "requeue", "the poison is gone")
	eventually(t, "the rest is through", func() bool { return still(parkedOf(t, "account", "incoming", id)) == 0 && listed(t, owner, "77.00") })
	decide(t, "account", behind, "requeue", "a repeat is harmless")
}

// The same of a saga's trigger, over gRPC: the transaction's read model parks it too, each by itself.
func TestAPoisonTriggerIsParked(t *testing.T) {
	id := uuid.NewString()
	broken(t, "billing.transaction.events", id, "TransferRequested")
	for service, subscription := range map[string]string{"saga": "sagas", "transaction": "transactions"} {
		eventually(t, "it is parked", func() bool { return len(parkedOf(t, service, "incoming", id)) == 1 })
		p := parkedOf(t, service, "incoming", id)[0]
		if p["subscription"] != subscription {
			t.Errorf("%s: %v", service, p)
		}
		addr := map[string]string{"saga": now.saga, "transaction": now.transaction}[service]
		client := outboxv1.NewOutboxServiceClient(dial(t, addr))
		res, err := client.DiscardParked(metadata.AppendToOutgoingContext(t.Context(), "x-actor", "bob"), &outboxv1.DiscardParkedRequest{Id: p["id"].(string), Reason: "nobody wrote it"})
		if got := res.GetParked(); err != nil || got.GetStatus() != "discarded" || got.GetDecidedBy() != "bob" {
			t.Errorf("%s: %v, %v", service, got, err)
		}
		_, err = client.RequeueParked(t.Context(), &outboxv1.RequeueParkedRequest{Id: uuid.NewString(), Reason: "why"})
		if status.Code(err) != codes.NotFound {
			t.Errorf("%s: %v", service, err)
		}
	}
	if got := move(t, "topup", open(t, "EXTERNAL"), open(t, "USER"), "1.00"); got["status"] != "completed" {
		t.Errorf("other transactions do not go on: %v", got)
	}
}

// limitTopic has Kafka refuse what is larger.
func limitTopic(t *testing.T, topic, bytes string) {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(now.brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	res, err := kadm.NewClient(c).AlterTopicConfigs(context.Background(), []kadm.AlterConfig{{Name: "max.message.bytes", Value: &bytes}}, topic)
	if err == nil {
		err = res[0].Err
	}
	if err != nil {
		t.Fatal(err)
	}
}

// refusedAtOnce: where the topic is the store itself, what Kafka refuses is not accepted. Others are, and so is the same request once Kafka takes it.
func refusedAtOnce(t *testing.T, lift func()) {
	t.Helper()
	var owner, key string
	ask := func() int {
		return call(t, "POST", "/api/v1/accounts", object{
			"ownerId": owner, "ownerType": "person", "accountType": "USER", "currency": "USD", "metadata": object{"note": strings.Repeat("x", 12<<10)},
		}, "Idempotency-Key", key).status
	}
	count := func() int {
		return len(must(t, http.StatusOK, "GET", "/api/v1/accounts?ownerType=person&ownerId="+owner, nil)["accounts"].([]any))
	}
	eventually(t, "it is refused", func() bool { // the brokers take a moment to know the new limit: those of before are accepted
		owner, key = uuid.NewString(), uuid.NewString()
		return ask() == http.StatusServiceUnavailable
	})
	other := uuid.NewString()
	eventually(t, "another one is accepted", func() bool {
		body := object{"ownerId": other, "ownerType": "person", "accountType": "USER", "currency": "USD"}
		return call(t, "POST", "/api/v1/accounts", body, "Idempotency-Key", "other "+key).status == http.StatusCreated
	})
	eventually(t, "another one is listed", func() bool { return listed(t, other, "") })
	if n := count(); n != 0 {
		t.Errorf("%d accounts of what was refused", n)
	}
	lift()
	eventually(t, "it is accepted", func() bool { return ask() == http.StatusCreated })
	eventually(t, "it is listed", func() bool { return count() > 0 })
	if n := count(); n != 1 {
		t.Errorf("%d accounts of one request", n)
	}
}

// An event that Kafka refuses parks its own account's lane; others flow on; once Kafka takes it the lane is requeued, in order.
func TestAnEventThatKafkaRefusesIsParkedAndRequeued(t *testing.T) {
	const topic, usual = "billing.account.events", "1048588"
	limitTopic(t, topic, "8192")
	defer limitTopic(t, topic, usual) // also where the test fails before it
	if now.store == edge.StoreKafka {
		refusedAtOnce(t, func() { limitTopic(t, topic, usual) })
		return
	}
	owner := uuid.NewString()
	large := must(t, http.StatusCreated, "POST", "/api/v1/accounts", object{
		"ownerId": owner, "ownerType": "person", "accountType": "USER", "currency": "USD", "metadata": object{"note": strings.Repeat("x", 12<<10)},
	})["accountId"].(string)
	must(t, http.StatusOK, "PATCH", "/api/v1/accounts/"+large+"/limits", object{"maxBalance": "77.00", "reason": "test"})
	other := uuid.NewString()
	open(t, "USER", "ownerId", other)
	eventually(t, "another account is listed", func() bool { return listed(t, other, "") })
	eventually(t, "the events are parked", func() bool { return len(parkedOf(t, "account", "outgoing", large)) == 2 })
	if st := must(t, http.StatusOK, "GET", "/api/v1/outbox/account/stats", nil); st["parkedOutgoing"].(float64) < 2 {
		t.Errorf("stats %v", st)
	}
	found := parkedOf(t, "account", "outgoing", large)
	if a := call(t, "POST", "/api/v1/outbox/account/parked/"+found[0]["id"].(string)+"/discard", object{"reason": "r"}); a.status != http.StatusUnprocessableEntity || a.body["reason"] != "NOT_DISCARDABLE" {
		t.Errorf("discard: %d %s", a.status, a.raw)
	}
	limitTopic(t, topic, usual)
	eventually(t, "it is through", func() bool { // the brokers take a moment to know the new limit
		decide(t, "account", found[0], "requeue", "the topic takes more now")
		return still(parkedOf(t, "account", "outgoing", large)) == 0
	})
	eventually(t, "the list shows both events", func() bool { return listed(t, owner, "77.00") })
}
