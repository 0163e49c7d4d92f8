package e2e

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"example.com/billing/deploy/local/system"
)

var loadFor = flag.Duration("load-for", 4*time.Second, "how long the load of all operations runs in each round")

// load sends all operations at random to a few accounts until done is closed, and returns how many were answered.
func load(t *testing.T, done <-chan struct{}) int64 {
	var users []string
	bank := open(t, "EXTERNAL")
	for range 6 {
		users = append(users, funded(t, "100.00"))
	}
	full := open(t, "USER", "maxBalance", "1.00")
	var (
		n        atomic.Int64
		wg       sync.WaitGroup
		mu       sync.Mutex
		payments = []string{pay(t, users[0], users[1], "5.00")}
	)
	var accepted atomic.Int64
	call := func(t *testing.T, method, path string, body any) answer {
		a := call(t, method, path, body) // the package's
		switch a.status {
		case http.StatusOK, http.StatusAccepted:
			accepted.Add(1)
		case http.StatusUnprocessableEntity: // a rule said no
		default:
			t.Errorf("%s %s: %d %s", method, path, a.status, a.raw)
		}
		return a
	}
	user := func() string { return users[rand.IntN(len(users))] }
	amount := func() string { return fmt.Sprintf("%d.%02d", rand.IntN(9), 1+rand.IntN(99)) }
	act := func() {
		switch rand.IntN(8) {
		case 0:
			call(t, "POST", "/api/v1/transactions/topup", order(bank, user(), amount()))
		case 1:
			call(t, "POST", "/api/v1/transactions/withdraw", order(user(), bank, amount()))
		case 2:
			call(t, "POST", "/api/v1/transactions/transfer", order(user(), user(), amount()))
		case 3:
			call(t, "POST", "/api/v1/transactions/transfer", order(user(), full, amount())) // mostly comes back
		case 4:
			p := call(t, "POST", "/api/v1/transactions/payment", object{
				"idempotencyKey": uuid.NewString(), "customerAccountId": user(), "merchantAccountId": user(), "amount": amount(), "currency": "USD",
			})
			if id, ok := p.body["transactionId"].(string); ok {
				mu.Lock()
				payments = append(payments, id)
				mu.Unlock()
			}
		case 5:
			mu.Lock()
			payment := payments[rand.IntN(len(payments))]
			mu.Unlock()
			call(t, "POST", "/api/v1/transactions/refund", object{"idempotencyKey": uuid.NewString(), "paymentId": payment, "amount": "0.50"})
		case 6:
			h := call(t, "POST", "/api/v1/holds?wait=5s", object{"idempotencyKey": uuid.NewString(), "accountId": user(), "amount": amount(), "currency": "USD"})
			if id, ok := h.body["holdId"].(string); ok && h.body["status"] == "active" {
				call(t, "POST", "/api/v1/holds/"+id+"/capture", object{"idempotencyKey": uuid.NewString(), "amount": "0.01", "destinationAccountId": user()})
				call(t, "POST", "/api/v1/holds/"+id+"/void?wait=5s", nil)
			}
		case 7:
			var items []object
			for range 20 {
				o := order(user(), user(), amount())
				o["type"] = "transfer"
				items = append(items, o)
			}
			call(t, "POST", "/api/v1/transactions/batch", object{"transactions": items})
		}
		n.Add(1)
	}
	for range 8 {
		wg.Go(func() {
			for over, acts := false, 0; !over || acts < 8; acts++ { // so that a slow machine does some too
				select {
				case <-done:
					over = true
				default:
				}
				act()
			}
		})
	}
	wg.Wait()
	if accepted.Load() < n.Load()/2 {
		t.Errorf("%d of %d operations were accepted", accepted.Load(), n.Load())
	}
	return n.Load()
}

// While everything is done at once the books balance in every answer; afterwards every event agrees with all that was made of it.
func TestBooksUnderLoad(t *testing.T) {
	done := make(chan struct{})
	time.AfterFunc(*loadFor, func() { close(done) })
	var polls int
	var polling sync.WaitGroup
	polling.Go(func() {
		for over := false; !over || polls < 10; polls++ {
			select {
			case <-done:
				over = true
			default:
			}
			for _, x := range must(t, http.StatusOK, "GET", "/api/v1/books", nil)["currencies"].([]any) {
				if c := x.(object); strings.Trim(c["difference"].(string), "0.") != "" {
					t.Errorf("the books: %v", c)
				}
			}
		}
	})
	n := load(t, done)
	polling.Wait()
	settled(t)
	report := must(t, http.StatusOK, "POST", "/api/v1/books/reconcile?wait=30s", nil)
	if report["status"] != "clean" {
		t.Errorf("reconciled: %v", report)
	}
	if shown := must(t, http.StatusOK, "GET", "/api/v1/books/reconcile", nil); shown["status"] != report["status"] || shown["events"] != report["events"] {
		t.Errorf("GET shows %v of %v", shown, report)
	}
	t.Logf("%d operations, the books looked at %d times; reconciled %v accounts and %v events: %v", n, polls, report["accounts"], report["events"], report["status"])
}

// settled waits until no transaction is under way.
func settled(t *testing.T) {
	t.Helper()
	eventually(t, "every transaction ended", func() bool {
		var pending int64
		query(t, system.TransactionDatabase, "SELECT count(*) FROM transaction_pending", &pending)
		return pending == 0
	})
}

// The proof can fail: one posting altered or deleted behind the system's back is found, and the account is named.
func TestReconcileNamesWhatWasTamperedWith(t *testing.T) {
	account, other := funded(t, "100.00"), open(t, "USER")
	move(t, "transfer", account, other, "40.00")
	settled(t)
	conn, err := pgx.Connect(t.Context(), now.dsn(system.AccountDatabase))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for name, tc := range map[string]struct{ tamper, kind string }{
		"altered": {`UPDATE es_event SET payload = convert_to(replace(convert_from(payload, 'UTF8'), '"changeAmount":"40.00"', '"changeAmount":"41.00"'), 'UTF8')
			WHERE stream_id = $1 AND version = 3`, "arithmetic"},
		"deleted": {`DELETE FROM es_event WHERE stream_id = $1 AND version = 3`, "sequence"},
	} {
		t.Run(name, func(t *testing.T) {
			exec := func(sql string, args ...any) {
				t.Helper()
				if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
					t.Fatal(err)
				}
			}
			exec(`CREATE TEMPORARY TABLE kept AS SELECT * FROM es_event WHERE stream_id = $1 AND version = 3`, account)
			restore := sync.OnceFunc(func() {
				exec(`DELETE FROM es_event WHERE stream_id = $1 AND version = 3`, account)
				exec(`INSERT INTO es_event SELECT * FROM kept`)
				exec(`DROP TABLE kept`)
			})
			defer restore() // whatever fails, the other tests find the books as they were
			exec(tc.tamper, account)
			found := must(t, http.StatusOK, "POST", "/api/v1/books/reconcile?wait=30s", nil)
			restore()
			if found["status"] != "differences" || !names(found, tc.kind, account) {
				t.Errorf("reconciled: %v", found)
			}
			if again := must(t, http.StatusOK, "POST", "/api/v1/books/reconcile?wait=30s", nil); again["status"] != "clean" {
				t.Errorf("put back, reconciled: %v", again)
			}
		})
	}
}

func names(report object, kind, account string) bool {
	for _, x := range report["findings"].([]any) {
		if f := x.(object); f["kind"] == kind && f["accountId"] == account {
			return true
		}
	}
	return false
}
