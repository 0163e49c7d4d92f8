package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/shopspring/decimal"

	"example.com/billing/deploy/local/system"
)

var raceRounds = flag.Int("race-rounds", 1, "times each race is run in each round")

const racers = 64

// atOnce sends requests from goroutines that start together, and counts the answers by what they came to: a transaction's
// status, or the reason of a refusal.
func atOnce(t *testing.T, send func(i int) answer) (ends map[string]int, answers []answer) {
	t.Helper()
	answers = make([]answer, racers)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range racers {
		wg.Go(func() {
			<-start
			answers[i] = send(i)
		})
	}
	close(start)
	wg.Wait()
	ends = map[string]int{}
	for _, a := range answers {
		ends[endOf(a)]++
	}
	return ends, answers
}

func endOf(a answer) string {
	end, _ := a.body["status"].(string)
	if reason, ok := a.body["reason"].(string); ok {
		return reason
	}
	if reason, ok := a.body["errorReason"].(string); ok {
		end += " " + reason
	}
	return end
}

func wantEnds(t *testing.T, got, want map[string]int) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the answers were %v, want %v", got, want)
	}
}

func race(t *testing.T, name string, f func(t *testing.T)) {
	for i := range *raceRounds {
		t.Run(fmt.Sprint(name, " ", i+1), f)
	}
}

func wantMoney(t *testing.T, account, balance, held string) {
	t.Helper()
	if b := must(t, http.StatusOK, "GET", "/api/v1/accounts/"+account+"/balance", nil); b["balance"] != balance || b["heldBalance"] != held {
		t.Errorf("account %s has %v, %v held; want %s, %s", account, b["balance"], b["heldBalance"], balance, held)
	}
}

func pay(t testing.TB, customer, merchant, amount string) string {
	t.Helper()
	p := must(t, http.StatusOK, "POST", "/api/v1/transactions/payment?wait=30s", object{
		"idempotencyKey": uuid.NewString(), "customerAccountId": customer, "merchantAccountId": merchant, "amount": amount, "currency": "USD",
	})
	if p["status"] != "completed" {
		t.Fatalf("payment: %v", p)
	}
	return p["transactionId"].(string)
}

func hold(t testing.TB, account, destination, amount string) string {
	t.Helper()
	h := must(t, http.StatusOK, "POST", "/api/v1/holds?wait=30s", object{
		"idempotencyKey": uuid.NewString(), "accountId": account, "destinationAccountId": destination, "amount": amount, "currency": "USD",
	})
	if h["status"] != "active" {
		t.Fatalf("hold: %v", h)
	}
	return h["holdId"].(string)
}

func TestRaces(t *testing.T) {
	race(t, "refunds of a payment", func(t *testing.T) {
		customer, merchant := funded(t, "100.00"), open(t, "USER")
		payment := pay(t, customer, merchant, "100.00")
		ends, _ := atOnce(t, func(int) answer {
			return call(t, "POST", "/api/v1/transactions/refund?wait=30s", object{"idempotencyKey": uuid.NewString(), "paymentId": payment, "amount": "10.00"})
		})
		wantEnds(t, ends, map[string]int{"completed": 10, "REFUND_EXCEEDS_PAYMENT": racers - 10})
		wantMoney(t, customer, "100.00", "0.00")
		wantMoney(t, merchant, "0.00", "0.00")
		if p := must(t, http.StatusOK, "GET", "/api/v1/transactions/"+payment, nil); p["refundedAmount"] != "100.00" || p["refundingAmount"] != "0.00" {
			t.Errorf("the payment is %v", p)
		}
	})
	race(t, "transfers of the whole balance", func(t *testing.T) {
		from, to := funded(t, "100.00"), open(t, "USER")
		ends, _ := atOnce(t, func(int) answer {
			return call(t, "POST", "/api/v1/transactions/transfer?wait=30s", order(from, to, "100.00"))
		})
		wantEnds(t, ends, map[string]int{"completed": 1, "failed INSUFFICIENT_FUNDS": racers - 1})
		wantMoney(t, from, "0.00", "0.00")
		wantMoney(t, to, "100.00", "0.00")
	})
	race(t, "one key", func(t *testing.T) {
		from, to := funded(t, "100.00"), open(t, "USER")
		o := order(from, to, "1.00")
		ends, answers := atOnce(t, func(int) answer { return call(t, "POST", "/api/v1/transactions/transfer?wait=30s", o) })
		wantEnds(t, ends, map[string]int{"completed": racers})
		ids, replayed := map[any]bool{}, 0
		for _, a := range answers {
			ids[a.body["transactionId"]] = true
			if a.header.Get("Idempotency-Replayed") == "true" {
				replayed++
			}
		}
		if len(ids) != 1 || replayed != racers-1 {
			t.Errorf("%d transactions, %d answers marked as replayed", len(ids), replayed)
		}
		wantMoney(t, from, "99.00", "0.00")
		wantMoney(t, to, "1.00", "0.00")
	})
	race(t, "captures of a hold", func(t *testing.T) {
		customer, merchant := funded(t, "100.00"), open(t, "USER")
		held := hold(t, customer, merchant, "100.00")
		ends, _ := atOnce(t, func(int) answer {
			return call(t, "POST", "/api/v1/holds/"+held+"/capture?wait=30s", object{"idempotencyKey": uuid.NewString(), "amount": "10.00"})
		})
		// The last ones may find the hold captured already.
		if refused := ends["CAPTURE_EXCEEDS_HOLD"] + ends["HOLD_NOT_ACTIVE"]; ends["completed"] != 10 || refused != racers-10 {
			t.Errorf("the answers were %v", ends)
		}
		wantMoney(t, customer, "0.00", "0.00")
		wantMoney(t, merchant, "100.00", "0.00")
	})
	race(t, "captures, voids and the expiry of a hold", raceOnAHold)
	race(t, "captures until a hold expires", raceAgainstTime)
	race(t, "closing while transfers run", raceToClose)
}

// Whatever wins, what was captured is paid, the rest is free, and nothing stays held.
func raceOnAHold(t *testing.T) {
	customer, merchant := funded(t, "100.00"), open(t, "USER")
	held := hold(t, customer, merchant, "60.00")
	each := []int{1, 5}[rand.IntN(2)] // all of them take the whole hold, or leave some of it
	ends, answers := atOnce(t, func(i int) answer {
		switch {
		case i == racers/2:
			expire(t, held)
			return answer{}
		case i%4 == 0:
			must(t, http.StatusOK, "GET", "/api/v1/holds/"+held, nil) // a void has less to ask than a capture: it would always be first
			return call(t, "POST", "/api/v1/holds/"+held+"/void?wait=30s", nil)
		}
		return call(t, "POST", "/api/v1/holds/"+held+"/capture?wait=30s", object{"idempotencyKey": uuid.NewString(), "amount": fmt.Sprintf("%d.00", each)})
	})
	captured := 0
	for i, a := range answers {
		if i%4 != 0 && a.body["status"] == "completed" {
			captured += each
		}
	}
	for end := range ends {
		if !slices.Contains([]string{"", "completed", "voided", "HOLD_NOT_ACTIVE", "CAPTURE_EXCEEDS_HOLD", "CAPTURE_UNDER_WAY"}, end) {
			t.Errorf("the answers were %v", ends)
		}
	}
	if ends[""] != 1 { // the expiry, which asks for nothing
		t.Errorf("%d answers say nothing: %v", ends[""]-1, ends)
	}
	var h object
	eventually(t, "the hold ended", func() bool {
		h = must(t, http.StatusOK, "GET", "/api/v1/holds/"+held, nil)
		return h["status"] != "active" && h["status"] != "releasing"
	})
	if (h["status"] == "captured") != (captured == 60) || (h["status"] == "voided") != (ends["voided"] > 0) ||
		h["capturedAmount"] != fmt.Sprintf("%d.00", captured) || h["remainingAmount"] != "0.00" || h["capturingAmount"] != "0.00" {
		t.Errorf("%d.00 were captured, the hold is %v; answers %v", captured, h, ends)
	}
	wantMoney(t, customer, fmt.Sprintf("%d.00", 100-captured), "0.00")
	wantMoney(t, merchant, fmt.Sprintf("%d.00", captured), "0.00")
	t.Logf("%v after %v", h["status"], ends)
}

// A hold that is captured again and again until its time is over: what was captured is paid, the rest is free.
func raceAgainstTime(t *testing.T) {
	customer, merchant := funded(t, "100.00"), open(t, "USER")
	h := must(t, http.StatusOK, "POST", "/api/v1/holds?wait=30s", object{
		"idempotencyKey": uuid.NewString(), "accountId": customer, "destinationAccountId": merchant, "amount": "90.00", "currency": "USD",
		"expiresAt": time.Now().Add(3 * time.Second),
	})
	held := h["holdId"].(string)
	var captured atomic.Int64 // cents
	together(racers/8, func(int) {
		for {
			a := call(t, "POST", "/api/v1/holds/"+held+"/capture?wait=30s", object{"idempotencyKey": uuid.NewString(), "amount": "0.01"})
			if a.status == http.StatusUnprocessableEntity && a.body["reason"] == "HOLD_NOT_ACTIVE" {
				return
			}
			if a.status != http.StatusOK || a.body["status"] != "completed" {
				t.Errorf("capture: %d %s", a.status, a.raw)
				return
			}
			captured.Add(1)
		}
	})
	eventually(t, "the hold expired", func() bool {
		h = must(t, http.StatusOK, "GET", "/api/v1/holds/"+held, nil)
		return h["status"] == "expired"
	})
	n := captured.Load()
	if h["capturedAmount"] != decimal.New(n, -2).StringFixed(2) || h["remainingAmount"] != "0.00" {
		t.Errorf("%d cents were captured, the hold is %v", n, h)
	}
	wantMoney(t, customer, decimal.New(10000-n, -2).StringFixed(2), "0.00")
	wantMoney(t, merchant, decimal.New(n, -2).StringFixed(2), "0.00")
	t.Logf("%d captures before it expired", n)
}

// expire moves a hold's time to the past, where the service looks for it. One that has ended stays as it is.
func expire(t testing.TB, hold string) {
	t.Helper()
	query(t, system.TransactionDatabase,
		`WITH moved AS (UPDATE hold_open SET expires_at = clock_timestamp() WHERE id = '`+hold+`' RETURNING 1) SELECT count(*) FROM moved`, new(int))
}

// An account that is told to close while money comes and goes ends closed and empty, or open: never closed with money.
func raceToClose(t *testing.T) {
	from, account, full := funded(t, "100.00"), funded(t, "3.00"), open(t, "USER", "maxBalance", "0.00")
	var (
		mu        sync.Mutex
		ends      = map[string]int{}
		comesBack = rand.IntN(2) == 0
	)
	together(racers/2, func(i int) {
		for range 4 {
			var a answer
			switch kind := i % 8; {
			case kind == 0, kind == 4:
				a = call(t, "PATCH", "/api/v1/accounts/"+account+"/status", object{"status": "closed", "reason": "asked"})
			case kind == 1:
				a = call(t, "POST", "/api/v1/transactions/transfer?wait=30s", order(from, account, "1.00"))
			case kind < 6, !comesBack:
				a = call(t, "POST", "/api/v1/transactions/transfer?wait=30s", order(account, from, "1.00"))
			default: // debited, refused by the other, and given back, whatever the account is by then
				a = call(t, "POST", "/api/v1/transactions/transfer?wait=30s", order(account, full, "1.00"))
			}
			if a.status != http.StatusOK && a.status != http.StatusUnprocessableEntity || a.body["status"] == "pending" {
				t.Errorf("%d %s", a.status, a.raw)
			}
			mu.Lock()
			ends[endOf(a)]++
			mu.Unlock()
		}
	})
	var a object
	eventually(t, "the closing ended", func() bool {
		a = must(t, http.StatusOK, "GET", "/api/v1/accounts/"+account, nil)
		return a["status"] != "closing"
	})
	if a["status"] == "closed" && a["balance"] != "0.00" || a["heldBalance"] != "0.00" {
		t.Errorf("the account is %v", a)
	}
	sum := decimal.Zero
	for _, id := range []string{from, account, full} {
		sum = sum.Add(decimal.RequireFromString(balance(t, id)))
	}
	if !sum.Equal(decimal.New(103, 0)) {
		t.Errorf("103.00 became %s", sum)
	}
	t.Logf("%v with %v after %v", a["status"], a["balance"], ends)
	report := must(t, http.StatusOK, "POST", "/api/v1/books/reconcile", object{"accountId": account})
	if report["status"] != "clean" {
		t.Errorf("reconciled: %v", report)
	}
}
