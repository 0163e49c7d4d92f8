package e2e

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"example.com/billing/deploy/local/system"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/edge"
)

// shown are the ids of a list, newest first.
func shown(t testing.TB, path, name, id string) (ids []string) {
	t.Helper()
	for _, o := range list(must(t, http.StatusOK, "GET", path, nil), name) {
		ids = append(ids, o[id].(string))
	}
	return ids
}

// Every filter of the transactions, alone and together.
func TestTransactionFilters(t *testing.T) {
	customer, merchant := open(t, "USER"), open(t, "USER")
	account := "accountId=" + customer
	topup := move(t, "topup", open(t, "EXTERNAL"), customer, "100.00")["transactionId"].(string)
	payment := pay(t, customer, merchant, "40.00")
	ask := func(path string, body object) object {
		body["idempotencyKey"] = uuid.NewString()
		return must(t, http.StatusOK, "POST", "/api/v1/"+path+"?wait=30s", body)
	}
	refund := ask("transactions/refund", object{"paymentId": payment, "amount": "15.00"})["transactionId"].(string)
	refused := move(t, "transfer", customer, merchant, "999.00")["transactionId"].(string)
	held := hold(t, customer, merchant, "30.00")
	capture := ask("holds/"+held+"/capture", object{"amount": "20.00"})["transactionId"].(string)
	a := call(t, "POST", "/api/v1/holds/"+held+"/void?wait=30s", object{})
	if a.body["status"] != "voided" || a.header.Get("Idempotency-Replayed") != "" {
		t.Fatalf("void: %s", a.raw)
	}
	if again := call(t, "POST", "/api/v1/holds/"+held+"/void", nil); again.body["status"] != "voided" || again.header.Get("Idempotency-Replayed") != "true" {
		t.Fatalf("void again: %s", again.raw)
	}
	var release string
	eventually(t, "the lists have caught up", func() bool {
		ids := shown(t, "/api/v1/transactions?type=release&status=completed&"+account, "transactions", "transactionId")
		if len(ids) == 1 {
			release = ids[0]
		}
		return len(ids) == 1 && len(shown(t, "/api/v1/transactions?status=completed&"+account, "transactions", "transactionId")) == 6 &&
			len(shown(t, "/api/v1/transactions?status=failed&"+account, "transactions", "transactionId")) == 1 &&
			len(shown(t, "/api/v1/holds?status=voided&"+account, "holds", "holdId")) == 1
	})
	at := must(t, http.StatusOK, "GET", "/api/v1/transactions/"+refund, nil)["createdAt"].(string)
	for filter, want := range map[string][]string{
		"":                                     {release, capture, held, refused, refund, payment, topup},
		"&type=topup":                          {topup},
		"&type=transfer":                       {refused},
		"&type=payment":                        {capture, payment},
		"&type=refund":                         {refund},
		"&type=hold":                           {held},
		"&type=withdrawal":                     nil,
		"&status=failed":                       {refused},
		"&status=completed&type=payment":       {capture, payment},
		"&status=compensated":                  nil,
		"&status=pending":                      nil,
		"&currency=EUR":                        nil,
		"&currency=USD&type=refund":            {refund},
		"&minAmount=40&maxAmount=100.00":       {payment, topup},
		"&maxAmount=15":                        {release, refund},
		"&minAmount=100.01":                    {refused},
		"&paymentId=" + payment:                {refund},
		"&createdFrom=" + url.QueryEscape(at):  {release, capture, held, refused, refund},
		"&createdTo=" + url.QueryEscape(at):    {payment, topup},
		"&stuck=true":                          nil,
		"&createdTo=2020-01-01T00:00:00Z":      nil,
		"&pageSize=2&type=payment&minAmount=1": {capture, payment},
	} {
		if got := shown(t, "/api/v1/transactions?"+account+filter, "transactions", "transactionId"); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("with %s: %v, want %v", filter, got, want)
		}
	}
	for filter, want := range map[string][]string{"": {held}, "&status=voided": {held}, "&status=active": nil} {
		if got := shown(t, "/api/v1/holds?"+account+filter, "holds", "holdId"); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("holds with %s: %v, want %v", filter, got, want)
		}
	}
	// The postings of all that in the statement, and why each is there.
	s := must(t, http.StatusOK, "GET", "/api/v1/accounts/"+customer+"/statement", nil)
	var lines []string
	for _, l := range list(s, "lines") {
		lines = append(lines, fmt.Sprint(l["reason"], " ", l["step"], " ", l["direction"], " ", l["amount"], " ", l["balance"], " ", l["transactionId"]))
	}
	if want := []string{
		"topup credit_destination CREDIT 100.00 100.00 " + topup, "payment debit_customer DEBIT 40.00 60.00 " + payment,
		"refund credit_customer CREDIT 15.00 75.00 " + refund, "payment debit_customer DEBIT 20.00 55.00 " + capture,
	}; fmt.Sprint(lines) != fmt.Sprint(want) || s["closingBalance"] != "55.00" || s["totalDebits"] != "60.00" || s["totalCredits"] != "115.00" {
		t.Errorf("the statement is %v\nwith %v", s, lines)
	}
}

// A hold's own token is good for the list of holds.
func TestConsistencyTokenOfHolds(t *testing.T) {
	account := funded(t, "100.00")
	for range 25 {
		a := call(t, "POST", "/api/v1/holds?wait=30s", object{"idempotencyKey": uuid.NewString(), "accountId": account, "amount": "1.00", "currency": "USD"})
		token := url.QueryEscape(a.header.Get("X-Consistency-Token"))
		ids := shown(t, "/api/v1/holds?pageSize=1&status=active&accountId="+account+"&consistencyToken="+token, "holds", "holdId")
		if token == "" || len(ids) != 1 || ids[0] != a.body["holdId"] {
			t.Fatalf("token %q, %s, listed %v", token, a.raw, ids)
		}
	}
}

// A transaction whose saga cannot go on is found among the stuck ones. This one's first step finds its register taken by
// something else, which only a defect could do: that needs a person.
func TestStuck(t *testing.T) {
	source, destination := funded(t, "100.00"), open(t, "USER")
	o := order(source, destination, "10.00")
	var secret []byte
	query(t, system.TransactionDatabase, `SELECT secret FROM es_log`, &secret)
	id := edge.DeriveID(secret, "Transaction", "default", o["idempotencyKey"].(string))
	taken := posting(id, step{kind: accountv1.PostingKind_POSTING_KIND_HOLD, name: "debit_source", account: source, amount: "3.00"})
	taken.HoldId = id
	if res := post(t, taken); res.GetOutcome() != done {
		t.Fatal(res)
	}
	if tx := must(t, http.StatusAccepted, "POST", "/api/v1/transactions/transfer", o); tx["transactionId"] != id {
		t.Fatalf("%v, want %s of secret %s", tx, id, hex.EncodeToString(secret[:4]))
	}
	eventually(t, "the saga needs attention", func() bool {
		return must(t, http.StatusOK, "GET", "/api/v1/sagas/"+id, nil)["status"] == "needs_attention"
	})
	if s := must(t, http.StatusOK, "GET", "/api/v1/sagas/"+id, nil); s["errorReason"] != "IDEMPOTENCY_CONFLICT" || s["currentStep"] != 0.0 {
		t.Errorf("saga %v", s)
	}
	path := "/api/v1/transactions?stuck=true&type=transfer&accountId="
	if ids := shown(t, path+source, "transactions", "transactionId"); ids != nil {
		t.Errorf("stuck after a moment: %v", ids)
	}
	age(t, id) // it would take half a minute
	for _, account := range []string{source, destination} {
		if ids := shown(t, path+account, "transactions", "transactionId"); fmt.Sprint(ids) != fmt.Sprint([]string{id}) {
			t.Errorf("stuck: %v, want %s", ids, id)
		}
	}
	// An account with a transaction under way closes when it has ended.
	if a := must(t, http.StatusOK, "PATCH", "/api/v1/accounts/"+destination+"/status", object{"status": "closed", "reason": "r"}); a["status"] != "closing" {
		t.Errorf("the destination is %v", a["status"])
	}
	checkClosing(t, source, destination)
	// A person ends it: what was reserved is given back, and the transaction fails.
	release := posting(id, step{kind: accountv1.PostingKind_POSTING_KIND_RELEASE, name: "release_hold", account: source})
	release.HoldId = id
	if res := post(t, release); res.GetOutcome() != done {
		t.Fatal(res)
	}
	fail(t, id)
	if ids := shown(t, path+source, "transactions", "transactionId"); ids != nil {
		t.Errorf("stuck after its end: %v", ids)
	}
	eventually(t, "the destination is closed", func() bool {
		return must(t, http.StatusOK, "GET", "/api/v1/accounts/"+destination, nil)["status"] == "closed"
	})
	wantMoney(t, source, "100.00", "0.00")
}

// age makes a pending transaction older than it is.
func age(t testing.TB, id string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), now.dsn(system.TransactionDatabase))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if tag, err := conn.Exec(t.Context(), `UPDATE transaction_pending SET created_at = created_at - interval '31 s' WHERE id = $1`, id); err != nil || tag.RowsAffected() != 1 {
		t.Fatalf("%v %v", tag, err)
	}
}

// checkClosing: an account that is closing takes no new transaction.
func checkClosing(t *testing.T, source, closing string) {
	t.Helper()
	for path, body := range map[string]object{
		"transactions/transfer": order(source, closing, "1.00"),
		"transactions/payment":  {"idempotencyKey": uuid.NewString(), "customerAccountId": source, "merchantAccountId": closing, "amount": "1.00", "currency": "USD"},
		"holds":                 {"idempotencyKey": uuid.NewString(), "accountId": closing, "amount": "1.00", "currency": "USD"},
	} {
		checkProblem(t, call(t, "POST", "/api/v1/"+path, body, "X-Correlation-ID", "test-ACCOUNT_CLOSING"), http.StatusUnprocessableEntity, "ACCOUNT_CLOSING", "")
	}
}

// fail ends a transaction as its saga would.
func fail(t testing.TB, id string) {
	t.Helper()
	res, err := transactionv1.NewSettlementServiceClient(dial(t, now.transaction)).Settle(t.Context(), &transactionv1.SettleRequest{
		Settlements: []*transactionv1.Settlement{{
			TransactionId: id, Step: "fail_transaction", Kind: transactionv1.SettlementKind_SETTLEMENT_KIND_FAIL, ErrorReason: "INTERNAL",
			ErrorMessage: "Ended by a person.", CorrelationId: "test", TenantId: "default", Actor: "test",
		}},
	})
	if err != nil || res.GetResults()[0].GetStatus() != "failed" {
		t.Fatalf("%v %v", res, err)
	}
}
