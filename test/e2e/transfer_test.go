package e2e

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
)

// The saga object of a transfer is the seed's example, key for key and value for value but for id and times.
func TestTransferGivesTheSeedsSaga(t *testing.T) {
	source, destination := funded(t, "100.00"), funded(t, "100.00")
	done := move(t, "transfer", source, destination, "50.00")
	got := must(t, http.StatusOK, "GET", "/api/v1/sagas/"+done["transactionId"].(string), nil)

	b, err := os.ReadFile("testdata/seed_saga.json")
	if err != nil {
		t.Fatal(err)
	}
	var want object
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if got["sagaId"] != done["transactionId"] {
		t.Errorf("saga id %v, transaction id %v", got["sagaId"], done["transactionId"])
	}
	for _, key := range []string{"createdAt", "updatedAt"} {
		if _, err := time.Parse(time.RFC3339, got[key].(string)); err != nil {
			t.Error(err)
		}
		want[key] = got[key]
	}
	want["sagaId"] = got["sagaId"]
	if !reflect.DeepEqual(got, want) {
		t.Errorf("saga\n got %v\nwant %v", got, want)
	}
	wantBalance(t, source, "50.00")
	wantBalance(t, destination, "150.00")
	wantBooks(t)
}

// From the POST's answer on the saga can be read.
func TestSagaCanBeReadAtOnce(t *testing.T) {
	source, destination := funded(t, "100.00"), open(t, "USER")
	for range 20 {
		a := call(t, "POST", "/api/v1/transactions/transfer", order(source, destination, "1.00"))
		if a.status != http.StatusAccepted || a.body["status"] != "pending" {
			t.Fatalf("%d %s", a.status, a.raw)
		}
		id := a.body["transactionId"].(string)
		if want := "/api/v1/transactions/" + id; a.header.Get("Location") != want {
			t.Errorf("Location %q, want %q", a.header.Get("Location"), want)
		}
		s := must(t, http.StatusOK, "GET", "/api/v1/sagas/"+id, nil)
		if s["status"] == "in_progress" && s["currentStep"] == 0.0 && !reflect.DeepEqual(s["results"], object{}) {
			t.Errorf("results before the first step: %v", s)
		}
	}
	eventually(t, "all transfers done", func() bool { return balance(t, destination) == "20.00" })
}

// A wait may be as short as it likes, in any of Go's units.
func TestWaitUnits(t *testing.T) {
	source, destination := funded(t, "10.00"), open(t, "USER")
	for _, wait := range []string{"0s", "5us", "5%C2%B5s", "5%CE%BCs", "10ms", "1.5s", "30s"} {
		a := call(t, "POST", "/api/v1/transactions/transfer?wait="+wait, order(source, destination, "1.00"))
		if a.status != http.StatusOK && a.status != http.StatusAccepted {
			t.Errorf("wait=%s: %d %s", wait, a.status, a.raw)
		}
	}
	eventually(t, "all transfers done", func() bool { return balance(t, destination) == "7.00" })
}

// JSON that nests too deep is refused over gRPC too: no client could decode an answer with it.
func TestDeepMetadata(t *testing.T) {
	deep := structpb.NewNullValue()
	for range 4998 {
		deep = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{deep}})
	}
	_, err := transactionv1.NewTransactionServiceClient(dial(t, now.transaction)).Transfer(t.Context(), &transactionv1.TransferRequest{
		IdempotencyKey: uuid.NewString(), SourceAccountId: funded(t, "1.00"), DestinationAccountId: open(t, "USER"), Amount: "1.00", Currency: "USD",
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"a": deep}},
	})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("got %v", err)
	}
	must(t, http.StatusOK, "GET", "/api/v1/transactions?pageSize=5", nil)
}

func TestTopupAndWithdrawal(t *testing.T) {
	bank, user := open(t, "EXTERNAL"), open(t, "USER")
	for _, step := range []struct{ kind, source, destination, amount, bank, user, saga string }{
		{"topup", bank, user, "80.00", "-80.00", "80.00", "topup"},
		{"withdraw", user, bank, "30.50", "-49.50", "49.50", "withdrawal"},
	} {
		done := move(t, step.kind, step.source, step.destination, step.amount)
		if done["status"] != "completed" || done["type"] != step.saga {
			t.Errorf("%s: %v", step.kind, done)
		}
		s := must(t, http.StatusOK, "GET", "/api/v1/sagas/"+done["transactionId"].(string), nil)
		if s["sagaType"] != step.saga || s["status"] != "completed" {
			t.Errorf("%s: saga %v", step.kind, s)
		}
		wantBalance(t, bank, step.bank)
		wantBalance(t, user, step.user)
	}
	wantBooks(t)
}

func TestRefusedBySaga(t *testing.T) {
	poor, rich, full := funded(t, "10.00"), funded(t, "100.00"), open(t, "USER", "maxBalance", "5.00")
	overdraft := open(t, "USER", "minBalance", "-20.00")
	for _, tc := range []struct {
		name, source, destination, amount, status, reason string
		undone                                            bool
	}{
		{"funds", poor, rich, "10.01", "failed", "INSUFFICIENT_FUNDS", false},
		{"minimum", overdraft, rich, "20.01", "failed", "MIN_BALANCE", false},
		{"maximum", rich, full, "5.01", "compensated", "MAX_BALANCE", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before, after := balance(t, tc.source), balance(t, tc.destination)
			done := move(t, "transfer", tc.source, tc.destination, tc.amount)
			if done["status"] != tc.status || done["errorReason"] != tc.reason || done["errorMessage"] == "" {
				t.Errorf("transaction %v", done)
			}
			s := must(t, http.StatusOK, "GET", "/api/v1/sagas/"+done["transactionId"].(string), nil)
			if s["status"] != tc.status || s["errorReason"] != tc.reason {
				t.Errorf("saga %v", s)
			}
			actions, _ := s["compensationActions"].([]any)
			if tc.undone != (len(actions) == 1) {
				t.Errorf("compensationActions %v", s["compensationActions"])
			}
			if tc.undone {
				a := actions[0].(object)
				if a["action"] != "credit_source_rollback" || !reflect.DeepEqual(a["result"], object{"sourceNewBalance": before}) || a["timestamp"] == nil {
					t.Errorf("compensation %v", a)
				}
			}
			wantBalance(t, tc.source, before)
			wantBalance(t, tc.destination, after)
		})
	}
	if done := move(t, "transfer", overdraft, rich, "20.00"); done["status"] != "completed" {
		t.Errorf("within the overdraft: %v", done)
	}
	wantBooks(t)
}

// A status that changes between the acceptance and the credit is the saga's to find.
func TestStatusChangedMeanwhile(t *testing.T) {
	source, destination := funded(t, "100.00"), open(t, "USER")
	var ids []string
	for i := range 40 {
		ids = append(ids, must(t, http.StatusAccepted, "POST", "/api/v1/transactions/transfer", order(source, destination, "1.00"))["transactionId"].(string))
		if i == 20 {
			must(t, http.StatusOK, "PATCH", "/api/v1/accounts/"+destination+"/status", object{"status": "suspended", "reason": "test"})
			break
		}
	}
	var completed, undone int
	for _, id := range ids {
		eventually(t, "transfer ended", func() bool {
			return must(t, http.StatusOK, "GET", "/api/v1/transactions/"+id, nil)["status"] != "pending"
		})
		switch tx := must(t, http.StatusOK, "GET", "/api/v1/transactions/"+id, nil); tx["status"] {
		case "completed":
			completed++
		case "compensated":
			undone++
			if tx["errorReason"] != "ACCOUNT_SUSPENDED" {
				t.Errorf("reason %v", tx["errorReason"])
			}
		default:
			t.Errorf("transaction %v", tx)
		}
	}
	t.Logf("%d completed, %d compensated", completed, undone)
	if completed+undone != len(ids) {
		t.Errorf("%d of %d have an end", completed+undone, len(ids))
	}
	wantBooks(t)
}

func TestIdempotency(t *testing.T) {
	source, destination := funded(t, "100.00"), open(t, "USER")
	body := order(source, destination, "10.00")
	first := must(t, http.StatusOK, "POST", "/api/v1/transactions/transfer?wait=30s", body)
	again := call(t, "POST", "/api/v1/transactions/transfer", body)
	if again.status != http.StatusOK || again.header.Get("Idempotency-Replayed") != "true" || !reflect.DeepEqual(again.body, first) {
		t.Errorf("repeat: %d %s", again.status, again.raw)
	}
	// The stored answer, whatever the accounts say now.
	must(t, http.StatusOK, "PATCH", "/api/v1/accounts/"+source+"/status", object{"status": "suspended", "reason": "test"})
	if a := call(t, "POST", "/api/v1/transactions/transfer", body); a.status != http.StatusOK {
		t.Errorf("repeat on a suspended account: %d %s", a.status, a.raw)
	}
	// The key in the header is the same key.
	key := body["idempotencyKey"].(string)
	delete(body, "idempotencyKey")
	if a := call(t, "POST", "/api/v1/transactions/transfer", body, "Idempotency-Key", key); a.status != http.StatusOK || a.body["transactionId"] != first["transactionId"] {
		t.Errorf("repeat by header: %d %s", a.status, a.raw)
	}
	wantBalance(t, destination, "10.00")

	open := object{"ownerId": "o-1", "ownerType": "person", "accountType": "USER", "currency": "USD", "idempotencyKey": uuid.NewString()}
	a := must(t, http.StatusCreated, "POST", "/api/v1/accounts", open)
	b := call(t, "POST", "/api/v1/accounts", open)
	if b.body["accountId"] != a["accountId"] || b.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("an account opened twice: %s", b.raw)
	}
}

func together(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

func TestSagaList(t *testing.T) {
	source, destination := funded(t, "10.00"), open(t, "USER")
	for range 3 {
		move(t, "transfer", source, destination, "1.00")
	}
	seen := map[string]bool{}
	token, pages := "", 0
	for pages == 0 || token != "" && pages < 3 {
		a := call(t, "GET", "/api/v1/sagas?status=completed&type=transfer&pageSize=2&pageToken="+token, nil)
		var sagas []object
		if err := json.Unmarshal(a.raw, &sagas); err != nil || a.status != http.StatusOK || !bytes.HasPrefix(a.raw, []byte("[")) {
			t.Fatalf("%d %v %s", a.status, err, a.raw)
		}
		for _, s := range sagas {
			if s["status"] != "completed" || s["sagaType"] != "transfer" || seen[s["sagaId"].(string)] {
				t.Errorf("saga %v", s)
			}
			seen[s["sagaId"].(string)] = true
		}
		token = a.header.Get("X-Next-Page-Token")
		pages++
	}
	if len(seen) < 3 {
		t.Errorf("%d sagas in %d pages", len(seen), pages)
	}
}

func TestReadModels(t *testing.T) {
	owner := uuid.NewString()
	var accounts []string
	for range 3 {
		accounts = append(accounts, open(t, "USER", "ownerId", owner))
	}
	bank := open(t, "EXTERNAL")
	move(t, "topup", bank, accounts[0], "30.00")
	move(t, "transfer", accounts[0], accounts[1], "10.00")
	last := move(t, "transfer", accounts[0], accounts[2], "5.00")

	eventually(t, "the account list shows the balances", func() bool {
		list := must(t, http.StatusOK, "GET", "/api/v1/accounts?ownerType=person&ownerId="+owner, nil)["accounts"].([]any)
		return len(list) == 3 && list[0].(object)["accountId"] == accounts[2] && list[0].(object)["balance"] == "5.00" && list[2].(object)["balance"] == "15.00"
	})
	eventually(t, "the transaction list shows the ends", func() bool {
		list := must(t, http.StatusOK, "GET", "/api/v1/transactions?accountId="+accounts[0], nil)["transactions"].([]any)
		return len(list) == 3 && list[0].(object)["transactionId"] == last["transactionId"] && list[0].(object)["status"] == "completed"
	})
	page := must(t, http.StatusOK, "GET", "/api/v1/transactions?pageSize=2&accountId="+accounts[0], nil)
	next := must(t, http.StatusOK, "GET", "/api/v1/transactions?pageSize=2&accountId="+accounts[0]+"&pageToken="+page["nextPageToken"].(string), nil)
	if len(page["transactions"].([]any)) != 2 || len(next["transactions"].([]any)) != 1 || next["nextPageToken"] != "" {
		t.Errorf("pages %v, %v", page, next)
	}
}

func TestOutboxStats(t *testing.T) {
	funded(t, "1.00")
	for _, service := range []string{"account", "transaction", "saga"} {
		eventually(t, service+"'s outbox is empty", func() bool {
			st := must(t, http.StatusOK, "GET", "/api/v1/outbox/"+service+"/stats", nil)
			return st["service"] == service && st["pending"] == 0.0 && st["failed"] == 0.0 && st["delivered"].(float64) > 0
		})
	}
}
