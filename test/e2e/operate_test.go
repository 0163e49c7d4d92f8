package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	"example.com/billing/test/drive"
)

// operator says verbs over one protocol: the saga's new status, or the reason of a refusal.
type operator struct {
	name string
	say  func(t *testing.T, saga, verb, reason string) (status, refusal string)
}

func operators(t *testing.T) []operator {
	t.Helper()
	client := sagav1.NewSagaServiceClient(dial(t, now.saga))
	return []operator{
		{"REST", func(t *testing.T, saga, verb, reason string) (string, string) {
			a := call(t, "POST", "/api/v1/sagas/"+saga+"/"+verb, object{"reason": reason})
			status, _ := a.body["status"].(string)
			refusal, _ := a.body["reason"].(string)
			if a.status != http.StatusOK {
				status = ""
			}
			return status, refusal
		}},
		{"gRPC", func(t *testing.T, saga, verb, reason string) (string, string) {
			s, err := say(t.Context(), client, saga, verb, reason)
			if err != nil {
				return "", drive.Reason(err)
			}
			return s.GetStatus(), ""
		}},
	}
}

func say(ctx context.Context, c sagav1.SagaServiceClient, id, verb, why string) (*sagav1.Saga, error) {
	switch verb {
	case "retry":
		r, err := c.RetrySaga(ctx, &sagav1.RetrySagaRequest{SagaId: id, Reason: why})
		return r.GetSaga(), err
	case "skip":
		r, err := c.SkipSaga(ctx, &sagav1.SkipSagaRequest{SagaId: id, Reason: why})
		return r.GetSaga(), err
	case "compensate":
		r, err := c.CompensateSaga(ctx, &sagav1.CompensateSagaRequest{SagaId: id, Reason: why})
		return r.GetSaga(), err
	case "resume":
		r, err := c.ResumeSaga(ctx, &sagav1.ResumeSagaRequest{SagaId: id, Reason: why})
		return r.GetSaga(), err
	}
	r, err := c.ResolveSaga(ctx, &sagav1.ResolveSagaRequest{SagaId: id, Reason: why})
	return r.GetSaga(), err
}

// orphan starts a saga of a transaction that does not exist: it moves its money, and then cannot tell anybody that it is done.
// One in an unknown currency does not get that far: its first step needs a person.
func orphan(t *testing.T, source, destination, currency string) string {
	t.Helper()
	id := uuid.NewString()
	event, err := json.Marshal(object{
		"eventId": uuid.NewString(), "eventType": "TransferRequested", "aggregateId": id, "aggregateType": "Transaction", "aggregateVersion": 1,
		"timestamp": time.Now().UTC().Format("2006-01-02T15:04:05.000Z"), "correlationId": "orphan", "metadata": object{"tenantId": "default", "actor": "test"},
		"data": object{"sourceAccountId": source, "destinationAccountId": destination, "amount": "1.00", "currency": currency},
	})
	if err != nil {
		t.Fatal(err)
	}
	res, err := sagav1.NewSagaTriggerServiceClient(dial(t, now.saga)).EnsureSaga(t.Context(), &sagav1.EnsureSagaRequest{Events: [][]byte{event}})
	if err != nil || res.GetStarted() != 1 {
		t.Fatal(res, err)
	}
	comes(t, id, "needs_attention")
	return id
}

func comes(t *testing.T, saga, status string) {
	t.Helper()
	eventually(t, fmt.Sprintf("saga %s is %s", saga, status), func() bool {
		return call(t, "GET", "/api/v1/sagas/"+saga, nil).body["status"] == status
	})
}

// Each verb over each protocol: what it does, and when it is refused.
func TestOperators(t *testing.T) {
	alice, bob := funded(t, "100.00"), open(t, "USER")
	for _, by := range operators(t) {
		t.Run(by.name, func(t *testing.T) {
			says := func(saga, verb, want, refusal string) {
				t.Helper()
				if status, reason := by.say(t, saga, verb, "The reason why."); status != want || reason != refusal {
					t.Errorf("%s: got %q %s, want %q %s", verb, status, reason, want, refusal)
				}
			}
			late := orphan(t, alice, bob, "USD") // past its pivot
			says(late, "compensate", "", "SAGA_PIVOT_DONE")
			says(late, "retry", "in_progress", "")
			comes(t, late, "needs_attention")
			says(late, "resume", "in_progress", "")
			comes(t, late, "needs_attention")
			says(late, "resolve", "completed", "")
			for _, verb := range []string{"retry", "skip", "compensate", "resume", "resolve"} {
				says(late, verb, "", "SAGA_ENDED")
				says(uuid.NewString(), verb, "", "SAGA_NOT_FOUND")
				if status, reason := by.say(t, late, verb, ""); status != "" || reason != "INVALID_ARGUMENT" {
					t.Errorf("%s without a reason: %q %s", verb, status, reason)
				}
			}
			says(orphan(t, alice, bob, "USD"), "skip", "completed", "")

			early := orphan(t, alice, bob, "XXX") // at its first step, whose register is open
			says(early, "skip", "", "SAGA_STEP_NOT_DONE")
			says(early, "resolve", "", "SAGA_STEP_NOT_DONE")
			says(early, "compensate", "compensating", "")
			comes(t, early, "needs_attention") // nobody is there to be told of it
			says(early, "resume", "", "SAGA_STEP_CLOSED")
			says(early, "skip", "compensated", "")

			told := must(t, http.StatusOK, "GET", "/api/v1/sagas/"+early+"/timeline", nil)
			var verbs []any
			for _, e := range told["entries"].([]any) {
				if e := e.(object); e["type"] == "operator" {
					verbs = append(verbs, fmt.Sprint(e["verb"], " ", e["reason"]))
				}
			}
			if got := fmt.Sprint(verbs); got != "[compensate The reason why. skip The reason why.]" {
				t.Errorf("the timeline says %s", got)
			}
			if steps := told["steps"].([]any); len(steps) != 3 || steps[1].(object)["status"] != "cancelled" || told["status"] != "compensated" {
				t.Errorf("the steps are %v", steps)
			}
		})
	}
	counted := must(t, http.StatusOK, "GET", "/api/v1/sagas/counts?type=transfer&accountId="+alice, nil)["counts"].([]any)
	got := map[string]any{}
	for _, c := range counted {
		got[fmt.Sprint(c.(object)["status"])] = c.(object)["sagas"]
	}
	if len(counted) != 2 || got["completed"] != float64(4) || got["compensated"] != float64(2) {
		t.Errorf("counted %v", counted)
	}
	listed := call(t, "GET", "/api/v1/sagas?errorReason=SAGA_STOPPED&accountId="+alice+"&createdBefore="+time.Now().Add(time.Hour).UTC().Format(time.RFC3339), nil)
	if n := strings.Count(string(listed.raw), `"sagaId"`); listed.status != http.StatusOK || n != 2 {
		t.Errorf("listed %s", listed.raw)
	}
	must(t, http.StatusBadRequest, "GET", "/api/v1/sagas/counts?status=odd", nil)
	must(t, http.StatusNotFound, "GET", "/api/v1/sagas/"+uuid.NewString()+"/timeline", nil)
}
