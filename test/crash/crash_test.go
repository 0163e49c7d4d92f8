// Package crash kills each service at every durable edge between "command accepted" and "saga finished", and holds the
// transfer that was under way against how it has to end.
package crash

import (
	"flag"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
)

var crashAll = flag.Bool("crash-all", false, "kill at every pass of every point, and wait for leases and sessions once for each")

// kill -9 at each of the points: the transfer ends right each time.
func TestKilledAtEveryPoint(t *testing.T) {
	s := newStack(t)
	cases := shortDose()
	if *crashAll {
		cases = longDose()
	}
	s.openAccounts(cases)
	lines, over := map[string][]string{}, map[string]bool{}
	kills := 0
	for _, c := range cases {
		if t.Failed() {
			break // what comes now would be of a system that is broken already
		}
		if over[c.way()] {
			continue
		}
		took, killed := s.carryOut(c)
		if killed {
			kills++
			lines[c.point.key()] = append(lines[c.point.key()], c.line(took))
			if c.hit == passesMax {
				t.Errorf("a transfer that %s passes %s of the %s service %d times, perhaps more: there is no kill at those", c.outcome.name, c.point.name, c.point.service, c.hit)
			}
			if *crashAll { // long enough to be watched
				t.Log(strings.TrimSpace(c.line(took)))
			}
			continue
		}
		over[c.way()] = true
	}
	var table strings.Builder
	for _, p := range points {
		table.WriteString(strings.Join(lines[p.key()], ""))
	}
	t.Logf("%d kills; from the restart to the end of the saga:\n%s", kills, table.String())
}

func (p point) key() string { return p.service + " " + p.name }

// way is a point with an outcome.
func (c crashCase) way() string { return c.point.key() + " " + c.outcome.name }

// lastWords are what a process says when it kills itself there.
func (c crashCase) lastWords() string {
	return fmt.Sprintf("failpoint %s: kill at hit %d\n", c.point.name, c.hit)
}

// line is the case's in the table.
func (c crashCase) line(took time.Duration) string {
	note := ""
	switch {
	case c.waits.session:
		note = ", leases and sessions waited for"
	case c.waits.leases:
		note = ", leases waited for"
	}
	return fmt.Sprintf("%-11s %-25s %-14s pass %d %6d ms%s\n", c.point.service, c.point.name, c.outcome.name, c.hit, took.Milliseconds(), note)
}

// openAccounts gives every case two accounts of its own.
func (s *stack) openAccounts(cases []crashCase) {
	s.t.Helper()
	open := func(kind, limit string) (string, error) {
		body := object{"ownerId": "o", "ownerType": "person", "accountType": kind, "currency": "USD"}
		if limit != "" {
			body["maxBalance"] = limit
		}
		status, o, err := s.call("POST", "/api/v1/accounts", body)
		if err != nil || status != http.StatusCreated {
			return "", fmt.Errorf("open an account: %d %v %w", status, o, err)
		}
		return o["accountId"].(string), nil
	}
	bank, err := open("EXTERNAL", "")
	if err != nil {
		s.t.Fatal(err)
	}
	at := make([]*crashCase, len(cases))
	for i := range cases {
		at[i] = &cases[i]
	}
	err = each(at, func(c *crashCase) (err error) {
		if c.source, err = open("USER", ""); err != nil {
			return err
		}
		if c.destination, err = open("USER", c.outcome.max); err != nil {
			return err
		}
		status, o, err := s.call("POST", "/api/v1/transactions/topup?wait=30s", order("fund "+c.source, bank, c.source, c.outcome.funded))
		if err != nil || o["status"] != "completed" {
			return fmt.Errorf("fund an account: %d %v %w", status, o, err)
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

func order(key, source, destination, amount string) object {
	return object{"idempotencyKey": key, "sourceAccountId": source, "destinationAccountId": destination, "amount": amount, "currency": "USD"}
}

// carryOut kills the service in the middle of a transfer and starts it again. It returns how long after that the saga ended, or
// that the point was not passed that often.
func (s *stack) carryOut(c crashCase) (took time.Duration, killed bool) {
	s.t.Helper()
	s.eventually("the outboxes are empty", s.published)
	if c.point.consumes {
		s.eventually("the sagas' consumer has committed everything", s.consumed)
	}
	service := s.services[c.point.service]
	before := strings.Count(service.said(), c.lastWords())
	service.arm(fmt.Sprintf("%s=kill,nth:%d", c.point.name, c.hit))
	accepted := make(chan string, 1)
	go func() { accepted <- s.transfer(c) }()
	id, killed := s.untilKilled(service, accepted, c)
	service.arm("")
	began := time.Now()
	if killed {
		if n := strings.Count(service.said(), c.lastWords()) - before; n != 1 {
			s.t.Fatalf("%s was killed, but said %d times %q: it was not the failpoint", service.path, n, c.lastWords())
		}
		if !c.waits.leases {
			s.endLeases(c.point.service)
		}
		if !c.waits.session {
			s.leaveGroup(c.point.service)
		}
		began = time.Now()
		service.start()
	}
	if id == "" {
		id = <-accepted
	}
	if id == "" {
		return 0, killed
	}
	s.eventually("the saga ends", func() bool { return s.ended(id) })
	took = time.Since(began)
	s.verify(c, id)
	return took, killed
}

// accountsShown: the accounts' read model shows all that is committed.
func (s *stack) accountsShown() bool {
	s.t.Helper()
	var behind int
	s.one(accounts, &behind, "SELECT count(*) FROM es_head h LEFT JOIN account_view v ON v.id::text = h.stream_id WHERE v.version IS DISTINCT FROM h.version")
	return behind == 0
}

// untilKilled waits until the process ends, or, unless it must, until everything else has. (What a test sees last of a transfer, such
// as a read model's row, is there just before the process passes the point behind it.)
func (s *stack) untilKilled(service *process, accepted <-chan string, c crashCase) (id string, killed bool) {
	s.t.Helper()
	must := c.hit <= c.point.hit(c.outcome.name)
	what := fmt.Sprintf("the kill of a transfer that %s at pass %d of %s of the %s service", c.outcome.name, c.hit, c.point.name, c.point.service)
	s.eventually(what, func() bool {
		select {
		case id = <-accepted:
		default:
		}
		return service.dead() || !must && id != "" && s.ended(id) && s.published() && s.shown("transactions", fmt.Sprintf("Transaction.%s.2", id)) && s.accountsShown()
	})
	if service.dead() && !service.killed() {
		s.t.Fatalf("%s was not killed: %s", service.path, service.cmd.ProcessState)
	}
	return id, service.dead()
}

// transfer asks until there is an answer, always with the same key, and returns the transaction's id.
func (s *stack) transfer(c crashCase) string {
	body := order("transfer "+c.source, c.source, c.destination, c.outcome.amount)
	for end := time.Now().Add(lateMax); time.Now().Before(end); {
		status, o, err := s.call("POST", "/api/v1/transactions/transfer", body)
		switch {
		case err == nil && status < 300:
			return o["transactionId"].(string)
		case err == nil && status < 500 && status != http.StatusTooManyRequests:
			s.t.Errorf("transfer: %d %v", status, o)
			return ""
		}
		time.Sleep(20 * time.Millisecond) // the service is on its way
	}
	s.t.Error("the transfer was never accepted")
	return ""
}

func (s *stack) ended(id string) bool {
	status, saga, err := s.call("GET", "/api/v1/sagas/"+id, nil)
	return err == nil && status == http.StatusOK && slices.Contains([]any{"completed", "failed", "compensated"}, saga["status"])
}

// shown reports whether a list shows these versions.
func (s *stack) shown(list, token string) bool {
	status, _, err := s.call("GET", "/api/v1/"+list+"?pageSize=1&consistencyToken="+token, nil)
	return err == nil && status == http.StatusOK
}

// verify: the transfer has the end that it has to have, once, and left nothing behind.
func (s *stack) verify(c crashCase, id string) {
	s.t.Helper()
	name, o := fmt.Sprintf("%s, killed at pass %d of %s of the %s service", c.outcome.name, c.hit, c.point.name, c.point.service), c.outcome
	tx, saga := s.get("/api/v1/transactions/"+id), s.get("/api/v1/sagas/"+id)
	if tx["status"] != o.status || saga["status"] != o.status {
		s.t.Errorf("%s: the transaction is %v, its saga %v, want %s", name, tx["status"], saga["status"], o.status)
	}
	for account, want := range map[string]holding{c.source: o.source, c.destination: o.destination} {
		if a := s.get("/api/v1/accounts/" + account); a["balance"] != want.balance || a["version"] != want.version {
			s.t.Errorf("%s: the account is %v, want %v", name, a, want)
		}
	}
	s.verifyRegisters(name, c, id)
	for _, x := range s.get("/api/v1/books")["currencies"].([]any) {
		if books := x.(object); books["difference"] != "0.00" || books["inTransit"] != "0.00" {
			s.t.Errorf("%s: books %v", name, books)
		}
	}
	for service, want := range map[string]int{transactions: 2, sagas: 1} { // requested and ended; ended
		var n int
		if err := s.pools[service].QueryRow(s.t.Context(), "SELECT count(*) FROM es_event WHERE stream_id = $1", id).Scan(&n); err != nil || n != want {
			s.t.Errorf("%s: %d events of the %s (%v), want %d", name, n, service, err, want)
		}
	}
	if again := s.transfer(c); again != id {
		s.t.Errorf("%s: asked again, it is %s, not %s", name, again, id)
	}
	s.eventually("the lists show it", func() bool {
		return s.shown("transactions", fmt.Sprintf("Transaction.%s.2", id)) &&
			s.shown("accounts", fmt.Sprintf("Account.%s.%v,Account.%s.%v", c.source, o.source.version, c.destination, o.destination.version))
	})
}

// verifyRegisters asks the account service itself what was done.
func (s *stack) verifyRegisters(name string, c crashCase, id string) {
	s.t.Helper()
	keys := []*accountv1.RegisterKey{
		{SagaId: id, Step: "debit_source", AccountId: c.source},
		{SagaId: id, Step: "credit_destination", AccountId: c.destination},
		{SagaId: id, Step: "credit_source_rollback", AccountId: c.source, UndoStep: "debit_source"},
	}
	res, err := accountv1.NewPostingServiceClient(s.account).ReadRegisters(s.t.Context(), &accountv1.ReadRegistersRequest{Registers: keys})
	if err != nil {
		s.t.Fatal(err)
	}
	for i, want := range [][]string{c.outcome.debit, c.outcome.credit, c.outcome.undo} {
		got := strings.TrimPrefix(res.GetRegisters()[i].GetState().String(), "REGISTER_STATE_")
		if !slices.Contains(want, got) {
			s.t.Errorf("%s: the register of %s is %s, want %v", name, keys[i].GetStep(), got, want)
		}
	}
}
