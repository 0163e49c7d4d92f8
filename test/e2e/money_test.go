package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

func list(o object, key string) []object {
	var out []object
	for _, x := range o[key].([]any) {
		out = append(out, x.(object))
	}
	return out
}

// What happened to an account can be read back: its history with transaction, actor and cause, its statement, and its balance at
// any version and time.
func TestThePastOfAnAccount(t *testing.T) {
	account, other := funded(t, "100.00"), open(t, "USER")
	transfer := order(account, other, "30.00")
	tx := must(t, http.StatusOK, "POST", "/api/v1/transactions/transfer?wait=30s", transfer, "X-Actor", "ann", "X-Correlation-ID", "test-past")
	hold(t, account, other, "20.00")
	path := "/api/v1/accounts/" + account

	events := list(must(t, http.StatusOK, "GET", path+"/history", nil), "events")
	if len(events) != 4 || events[0]["eventType"] != "FundsHeld" || events[3]["eventType"] != "AccountCreated" {
		t.Fatalf("history %v", events)
	}
	e := events[1]
	if e["eventType"] != "BalanceChanged" || e["transactionId"] != tx["transactionId"] || e["step"] != "debit_source" || e["actor"] != "ann" ||
		e["correlationId"] != "test-past" || e["causedBy"] == nil || e["version"] != 3.0 || e["data"].(object)["newBalance"] != "70.00" {
		t.Errorf("the transfer in the history: %v", e)
	}
	for version, want := range map[int]string{1: "0.00 0.00", 2: "100.00 0.00", 3: "70.00 0.00", 4: "70.00 20.00"} {
		b := must(t, http.StatusOK, "GET", fmt.Sprintf("%s/balance?version=%d", path, version), nil)
		if got := fmt.Sprint(b["balance"], " ", b["heldBalance"]); got != want {
			t.Errorf("at version %d: %s, want %s", version, got, want)
		}
		at := url.QueryEscape(events[4-version]["recordedAt"].(string))
		b = must(t, http.StatusOK, "GET", path+"/balance?at="+at, nil)
		if got := fmt.Sprint(b["balance"], " ", b["heldBalance"]); got != want || b["version"] != float64(version) {
			t.Errorf("at %s: %s at version %v, want %s", at, got, b["version"], want)
		}
	}
	s := must(t, http.StatusOK, "GET", path+"/statement?pageSize=1", nil)
	if s["openingBalance"] != "0.00" || s["closingBalance"] != "70.00" || s["totalCredits"] != "100.00" || s["totalDebits"] != "30.00" || len(list(s, "lines")) != 1 {
		t.Errorf("statement %v", s)
	}
	second := must(t, http.StatusOK, "GET", path+"/statement?pageSize=1&pageToken="+s["nextPageToken"].(string), nil)
	if l := list(second, "lines"); len(l) != 1 || l[0]["direction"] != "DEBIT" || l[0]["balance"] != "70.00" || l[0]["transactionId"] != tx["transactionId"] || second["nextPageToken"] != "" {
		t.Errorf("second page %v", second)
	}
}

// One call with good and bad items: each gets its own answer.
func TestBatchOverREST(t *testing.T) {
	a, b := funded(t, "100.00"), open(t, "USER")
	item := func(change object) object {
		o := order(a, b, "1.00")
		o["type"] = "transfer"
		for k, v := range change {
			o[k] = v
		}
		return o
	}
	items := []object{item(nil), item(object{"amount": 1}), item(object{"colour": "red"}), item(object{"destinationAccountId": uuid.NewString()}), item(nil), item(object{"amount": "-1"})}
	results := list(must(t, http.StatusOK, "POST", "/api/v1/transactions/batch", object{"transactions": items}), "results")
	for i, want := range []string{"", "INVALID_ARGUMENT amount", "INVALID_ARGUMENT colour", "ACCOUNT_NOT_FOUND", "", "INVALID_ARGUMENT amount"} {
		got := ""
		if e, ok := results[i]["error"].(object); ok {
			got = e["reason"].(string)
			if fields := list(e, "errors"); len(fields) > 0 {
				got += " " + fields[0]["field"].(string)
			}
		}
		if got != want || (got == "") != (results[i]["transaction"] != nil) {
			t.Errorf("item %d: %v, want %s", i, results[i], want)
		}
	}
	eventually(t, "both transfers done", func() bool { return balance(t, b) == "2.00" })
}

// A thousand transactions in one call.
func TestBatchOfAThousand(t *testing.T) {
	bank, account := open(t, "EXTERNAL"), open(t, "USER")
	var items []object
	for range 1000 {
		o := order(bank, account, "0.01")
		o["type"] = "topup"
		items = append(items, o)
	}
	for round, replayed := range []bool{false, true} {
		for i, r := range list(must(t, http.StatusOK, "POST", "/api/v1/transactions/batch", object{"transactions": items}), "results") {
			if r["transaction"] == nil || r["replayed"] != replayed {
				t.Fatalf("round %d, item %d: %v", round, i, r)
			}
		}
	}
	eventually(t, "all top-ups done", func() bool { return balance(t, account) == "10.00" })
}

// A hold expires by itself, at its time.
func TestAHoldExpires(t *testing.T) {
	account := funded(t, "100.00")
	h := must(t, http.StatusOK, "POST", "/api/v1/holds?wait=30s", object{
		"idempotencyKey": uuid.NewString(), "accountId": account, "amount": "60.00", "currency": "USD", "expiresAt": time.Now().Add(3 * time.Second),
	})
	if h["status"] != "active" {
		t.Fatal(h)
	}
	wantMoney(t, account, "100.00", "60.00")
	path := "/api/v1/holds/" + h["holdId"].(string)
	eventually(t, "the hold expired", func() bool { return must(t, http.StatusOK, "GET", path, nil)["status"] == "expired" })
	wantMoney(t, account, "100.00", "0.00")
	eventually(t, "the list shows it", func() bool {
		return len(list(must(t, http.StatusOK, "GET", "/api/v1/holds?status=expired&accountId="+account, nil), "holds")) == 1
	})
}

// Read models are rebuilt while they are used, and show the same afterwards.
func TestRebuildOverREST(t *testing.T) {
	owner := uuid.NewString()
	account := open(t, "USER", "ownerId", owner)
	topup := move(t, "topup", open(t, "EXTERNAL"), account, "100.00")["transactionId"].(string)
	payment := pay(t, account, open(t, "USER"), "10.00")
	// caughtUp has a list wait until it shows what these show.
	caughtUp := func(paths ...string) string {
		var tokens []string
		for _, path := range paths {
			tokens = append(tokens, call(t, "GET", "/api/v1/"+path, nil).header.Get("X-Consistency-Token"))
		}
		return "&consistencyToken=" + url.QueryEscape(strings.Join(tokens, ","))
	}
	for name, path := range map[string]string{
		"accounts":     "/api/v1/accounts?ownerId=" + owner + caughtUp("accounts/"+account),
		"transactions": "/api/v1/transactions?accountId=" + account + caughtUp("transactions/"+topup, "transactions/"+payment),
	} {
		a := call(t, "GET", path, nil)
		if n := len(list(a.body, name)); a.status != http.StatusOK || n == 0 {
			t.Fatalf("%s: %d %s", name, a.status, a.raw)
		}
		before := string(a.raw)
		r := must(t, http.StatusOK, "POST", "/api/v1/readmodels/"+name+"/rebuild?wait=30s", nil)
		if r["status"] != "switched" || r["repairedRows"] != 0.0 || r["events"].(float64) < 3 || len(r["checksum"].(string)) != 64 {
			t.Errorf("%s: %v", name, r)
		}
		if again := must(t, http.StatusOK, "GET", "/api/v1/readmodels/"+name+"/rebuild", nil); again["checksum"] != r["checksum"] || again["status"] != "switched" {
			t.Errorf("%s: %v", name, again)
		}
		if after := string(call(t, "GET", path, nil).raw); after != before {
			t.Errorf("%s shows\n%s\nbefore\n%s", name, after, before)
		}
	}
}
