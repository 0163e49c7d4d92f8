package e2e

import (
	"net/http"
	"testing"

	"github.com/google/uuid"
)

func TestLimits(t *testing.T) {
	account, other := funded(t, "10.00"), open(t, "USER")
	path := "/api/v1/accounts/" + account + "/limits"
	body := object{"minBalance": "-20.00", "maxBalance": "50.00", "reason": "good customer", "idempotencyKey": uuid.NewString()}
	a := must(t, http.StatusOK, "PATCH", path, body)
	if a["minBalance"] != "-20.00" || a["maxBalance"] != "50.00" {
		t.Errorf("limits %v", a)
	}
	if done := move(t, "transfer", account, other, "30.00"); done["status"] != "completed" {
		t.Errorf("into the overdraft: %v", done)
	}
	wantBalance(t, account, "-20.00")
	if done := move(t, "transfer", account, other, "0.01"); done["errorReason"] != "MIN_BALANCE" {
		t.Errorf("beyond it: %v", done)
	}
	// A repeat is answered as the first was and changes nothing; the key is taken.
	must(t, http.StatusOK, "PATCH", path, object{"minBalance": "0.00", "reason": "no longer"})
	if again := call(t, "PATCH", path, body); again.status != http.StatusOK || again.header.Get("Idempotency-Replayed") != "true" || again.body["minBalance"] != "0.00" {
		t.Errorf("repeat: %d %s", again.status, again.raw)
	}
	body["minBalance"] = "-30.00"
	must(t, http.StatusConflict, "PATCH", path, body)
	if a := must(t, http.StatusOK, "PATCH", path, object{"maxBalance": "", "reason": "no maximum"}); a["maxBalance"] != nil || a["minBalance"] != "0.00" {
		t.Errorf("without a maximum: %v", a)
	}
}

func TestCurrencies(t *testing.T) {
	scales := map[string]float64{}
	for _, x := range must(t, http.StatusOK, "GET", "/api/v1/currencies", nil)["currencies"].([]any) {
		c := x.(object)
		scales[c["code"].(string)] = c["scale"].(float64)
		if c["kind"] == "" {
			t.Errorf("currency %v", c)
		}
	}
	for code, scale := range map[string]float64{"USD": 2, "EUR": 2, "GBP": 2, "JPY": 0, "BTC": 8, "ETH": 18, "POINTS": 0} {
		if got, ok := scales[code]; !ok || got != scale {
			t.Errorf("%s has scale %v", code, got)
		}
	}
	// Amounts at a scale of their own, end to end.
	for code, amount := range map[string]string{"JPY": "7", "ETH": "0.000000000000000001", "BTC": "1.00000001"} {
		bank, user := open(t, "EXTERNAL", "currency", code), open(t, "USER", "currency", code)
		o := order(bank, user, amount)
		o["currency"] = code
		must(t, http.StatusOK, "POST", "/api/v1/transactions/topup?wait=30s", o)
		wantBalance(t, user, amount)
		wantBalance(t, bank, "-"+amount)
	}
	wantBooks(t)
}

func TestAccountFilters(t *testing.T) {
	owner := uuid.NewString()
	dollars, euros := open(t, "USER", "ownerId", owner), open(t, "USER", "ownerId", owner, "currency", "EUR")
	system, suspended := open(t, "SYSTEM", "ownerId", owner), open(t, "USER", "ownerId", owner)
	must(t, http.StatusOK, "PATCH", "/api/v1/accounts/"+suspended+"/status", object{"status": "suspended", "reason": "test"})
	for query, want := range map[string][]string{
		"":                                   {suspended, system, euros, dollars},
		"&accountType=SYSTEM":                {system},
		"&currency=EUR":                      {euros},
		"&status=suspended":                  {suspended},
		"&accountType=USER&status=active":    {euros, dollars},
		"&accountType=EXTERNAL&currency=USD": nil,
	} {
		eventually(t, "the list with "+query, func() bool {
			list := must(t, http.StatusOK, "GET", "/api/v1/accounts?ownerId="+owner+query, nil)["accounts"].([]any)
			if len(list) != len(want) {
				return false
			}
			for i, x := range list {
				if x.(object)["accountId"] != want[i] {
					return false
				}
			}
			return true
		})
	}
}
