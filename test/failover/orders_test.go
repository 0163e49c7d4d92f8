package failover

import (
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/google/uuid"
)

// orders are the requests that were acknowledged.
type orders struct {
	mu    sync.Mutex
	acked []acked
}

type acked struct{ key, id, token string }

func (o *orders) note(a acked) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.acked = append(o.acked, a)
}

// open opens an account.
func (s *stack) open(kind string) string {
	s.t.Helper()
	body := object{"ownerId": "owner", "ownerType": "person", "accountType": kind, "currency": "USD", "idempotencyKey": uuid.NewString()}
	return s.must(0, http.StatusCreated, "POST", "/api/v1/accounts", body)["accountId"].(string)
}

func order(from, to, amount string) object {
	return object{
		"idempotencyKey": uuid.NewString(), "sourceAccountId": from, "destinationAccountId": to, "amount": amount, "currency": "USD",
	}
}

// ask sends an order once. Accepted means that the system owns it from then on.
func (s *stack) ask(i int, kind string, o object, wait time.Duration) (a answer, accepted bool) {
	a, err := s.call(i, "POST", fmt.Sprintf("/api/v1/transactions/%s?wait=%s", kind, wait), o)
	if err != nil || a.status != http.StatusOK && a.status != http.StatusAccepted {
		return a, false
	}
	id, _ := a.body["transactionId"].(string)
	s.note(acked{key: o["idempotencyKey"].(string), id: id, token: a.header.Get("X-Consistency-Token")})
	return a, true
}

// complete sends an order again and again until it has completed, and returns its id.
func (s *stack) complete(i int, kind string, o object) string {
	s.t.Helper()
	var a answer
	done := s.within(recoverMax, func() bool {
		var accepted bool
		a, accepted = s.ask(i, kind, o, 10*time.Second)
		return accepted && a.body["status"] == "completed"
	})
	if !done {
		s.t.Fatalf("%s %v through set %d is not completed in %s: %d %v", kind, o, i, recoverMax, a.status, a.body)
	}
	return a.body["transactionId"].(string)
}

// ended waits for a transaction's end, and returns it.
func (s *stack) ended(id string) object {
	s.t.Helper()
	var tx object
	s.eventually("an end of transaction "+id, recoverMax, func() bool {
		tx = s.must(0, http.StatusOK, "GET", "/api/v1/transactions/"+id, nil)
		return tx["status"] != "pending"
	})
	return tx
}

func (s *stack) balance(i int, account string) string {
	s.t.Helper()
	return s.must(i, http.StatusOK, "GET", "/api/v1/accounts/"+account+"/balance", nil)["balance"].(string)
}

// works says that money moves and lists flow through both sets.
func (s *stack) works(from, to string) {
	s.t.Helper()
	for i := range s.sets {
		id := s.complete(i, "transfer", order(from, to, "0.01"))
		s.eventually(fmt.Sprintf("set %d lists transaction %s", i, id), recoverMax, func() bool { return s.lists(i, from, id) })
	}
}

// lists reports whether a set's list of an account's newest transactions has one.
func (s *stack) lists(i int, account, id string) bool {
	a, err := s.call(i, "GET", "/api/v1/transactions?pageSize=50&accountId="+account, nil)
	if err != nil || a.status != http.StatusOK {
		return false
	}
	found, _ := a.body["transactions"].([]any)
	for _, x := range found {
		if x.(object)["transactionId"] == id {
			return true
		}
	}
	return false
}

// listed is the answer of a list that was asked with the token of a change.
func (s *stack) listed(i int, account, token string) (answer, error) {
	return s.call(i, "GET", "/api/v1/transactions?pageSize=5&accountId="+account+"&consistencyToken="+url.QueryEscape(token), nil)
}

// cast is who takes part: a bank, and two users with money.
type cast struct{ bank, one, other string }

func (s *stack) cast() cast {
	s.t.Helper()
	c := cast{bank: s.open("EXTERNAL"), one: s.open("USER"), other: s.open("USER")}
	for i, a := range []string{c.one, c.other} {
		s.complete(i, "topup", order(c.bank, a, "100.00"))
	}
	return c
}

// load sends transfers of 0.01 through both sets, each again until it is accepted, until stop is called.
func (s *stack) load(c cast) (stop func()) {
	ended := make(chan struct{})
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for {
				o := order(c.one, c.other, "0.01")
				for accepted := false; !accepted; {
					select {
					case <-ended:
						return
					case <-time.After(100 * time.Millisecond): // a moderate load
					}
					_, accepted = s.ask(i%2, "transfer", o, 0)
				}
			}
		})
	}
	return sync.OnceFunc(func() { close(ended); all.Wait() })
}
