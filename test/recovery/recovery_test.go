// Package recovery tests that `make up` loses nothing when it is stopped or killed in the middle of its work.
package recovery

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shopspring/decimal"

	"example.com/billing/test/drive"
)

const (
	transfers = 1000
	accounts  = 20
	stopMax   = 15 * time.Second
)

var watchEvents = flag.Int("watch-events", 1000, "events that the watcher of one account sees")

// SIGTERM, then kill -9, to `make up` in the middle of 1,000 transfers: every transfer reaches an end, none happens twice,
// and the books balance.
func TestStopAndKillLoseNothing(t *testing.T) {
	dir, err := os.MkdirTemp("", "billing-recovery-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &system{t: t, dir: dir, http: drive.FreeAddr(), env: []string{
		"BILLING_DATA_DIR=" + dir, "BILLING_ACCOUNT_ADDR=" + drive.FreeAddr(), "BILLING_TRANSACTION_ADDR=" + drive.FreeAddr(), "BILLING_SAGA_ADDR=" + drive.FreeAddr(),
	}}
	s.start()
	t.Cleanup(s.stop)

	bank := s.open("EXTERNAL")
	var users []string
	for i := range accounts {
		users = append(users, s.open("USER"))
		if tx := s.must("POST", "/api/v1/transactions/topup?wait=30s", order(fmt.Sprint("topup-", i), bank, users[i], "100.00")); tx["status"] != "completed" {
			t.Fatalf("top-up: %v", tx)
		}
	}
	var (
		ids      [transfers]string
		accepted atomic.Int64
		wg       sync.WaitGroup
		work     = make(chan int)
	)
	for range 16 {
		wg.Go(func() {
			for i := range work {
				// The caller's part of the contract: no answer means asking again with the same key.
				ids[i] = s.transfer(i, users)
				accepted.Add(1)
			}
		})
	}
	reached := func(n int64) {
		for accepted.Load() < n {
			time.Sleep(time.Millisecond) // between two looks
		}
	}
	go func() {
		for i := range transfers {
			work <- i
		}
		close(work)
	}()
	popular := s.open("USER")
	watched := s.watch(popular)
	wg.Go(func() {
		for sent := 0; sent < *watchEvents; sent += batchItems {
			reached(int64(sent * transfers / *watchEvents)) // over the whole time
			s.batch(sent, min(batchItems, *watchEvents-sent), bank, popular)
		}
	})
	reached(transfers / 3)
	s.terminate()
	s.start()
	reached(transfers * 2 / 3)
	s.kill()
	s.start()
	wg.Wait()
	s.auditWatch(popular, watched)
	s.audit(ids[:], users)
}

const batchItems = 100

// batch asks for n top-ups of 0.01 in one call until all are accepted.
func (s *system) batch(first, n int, bank, account string) {
	var items []map[string]any
	for i := range n {
		o := order(fmt.Sprint("popular-", first+i), bank, account, "0.01")
		o["type"] = "topup"
		items = append(items, o)
	}
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); {
		status, o, err := s.call("POST", "/api/v1/transactions/batch", map[string]any{"transactions": items})
		if err == nil && status == http.StatusOK {
			refused := 0
			for _, x := range o["results"].([]any) {
				if x.(map[string]any)["transaction"] == nil {
					refused++
				}
			}
			if refused == 0 {
				return
			}
		}
		time.Sleep(20 * time.Millisecond) // the system is on its way
	}
	s.t.Errorf("top-ups from %d on were never all accepted", first)
}

// watch follows an account's events from the first, over every restart of the system and cut off at random besides, and sends
// their versions.
func (s *system) watch(account string) <-chan int {
	versions := make(chan int, 2**watchEvents+1)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s.t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		for last := 0; ctx.Err() == nil; {
			cut, end := context.WithTimeout(ctx, time.Duration(rand.IntN(400))*time.Millisecond)
			last = s.follow(cut, account, last, versions)
			end()
			select {
			case <-time.After(20 * time.Millisecond): // the system is on its way
			case <-ctx.Done():
			}
		}
	}()
	return versions
}

// follow reads one stream of server-sent events behind an id, as long as it lasts, and returns the last id.
func (s *system) follow(ctx context.Context, account string, last int, versions chan<- int) int {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.http+"/api/v1/accounts/"+account+"/watch", nil)
	if err != nil {
		s.t.Error(err)
		return last
	}
	if last > 0 {
		req.Header.Set("Last-Event-ID", strconv.Itoa(last))
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return last
	}
	defer res.Body.Close()
	_ = drive.Events(res, func(e drive.Event) bool { // the stream breaks whenever the system does
		id, err := strconv.Atoi(e.ID)
		if err != nil {
			s.t.Error(err)
			return true
		}
		select {
		case versions <- id:
			last = id
			return false
		case <-ctx.Done(): // nobody takes them any more
			return true
		}
	})
	return last
}

// auditWatch: the watcher saw every event of the account once and in order.
func (s *system) auditWatch(account string, versions <-chan int) {
	want := 1 + *watchEvents
	for next := 1; next <= want; next++ {
		select {
		case got := <-versions:
			if got != next {
				s.t.Fatalf("the watcher saw event %d where %d is next", got, next)
			}
		case <-time.After(20 * time.Second):
			s.t.Fatalf("the watcher did not see event %d of %d", next, want)
		}
	}
	if len(versions) > 0 {
		s.t.Errorf("the watcher saw %d events more than there are", len(versions))
	}
	if a := s.must("GET", "/api/v1/accounts/"+account, nil); a["version"] != float64(want) || a["balance"] != fmt.Sprintf("%d.%02d", *watchEvents/100, *watchEvents%100) {
		s.t.Errorf("the account is %v", a)
	}
	s.t.Logf("a watcher saw %d events of an account, each once and in order", want)
}

// transfer asks for transfer i until it is accepted, and returns its id.
func (s *system) transfer(i int, users []string) string {
	body := order(fmt.Sprint("transfer-", i), users[i%accounts], users[(i*7+1)%accounts], fmt.Sprintf("%d.%02d", i%13, i%100))
	if i%accounts == (i*7+1)%accounts {
		body["destinationAccountId"] = users[(i+1)%accounts]
	}
	if body["amount"] == "0.00" {
		body["amount"] = "0.01"
	}
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); {
		status, tx, err := s.call("POST", "/api/v1/transactions/transfer", body)
		switch {
		case err == nil && (status == http.StatusAccepted || status == http.StatusOK):
			return tx["transactionId"].(string)
		case err == nil && status < 500 && status != http.StatusTooManyRequests:
			s.t.Errorf("transfer %d: %d %v", i, status, tx)
			return ""
		}
		time.Sleep(20 * time.Millisecond) // the system is on its way
	}
	s.t.Errorf("transfer %d was never accepted", i)
	return ""
}

// audit: every transfer has one end, the balances are what the completed ones make them, the books balance.
func (s *system) audit(ids, users []string) {
	t := s.t
	want := map[string]decimal.Decimal{}
	for _, u := range users {
		want[u] = decimal.New(100, 0)
	}
	ends, distinct := map[any]int{}, map[string]bool{}
	for i, id := range ids {
		tx := s.ended(id)
		ends[tx["status"]]++
		distinct[id] = true
		if tx["idempotencyKey"] != fmt.Sprint("transfer-", i) {
			t.Errorf("transaction %s has key %v", id, tx["idempotencyKey"])
		}
		if saga := s.must("GET", "/api/v1/sagas/"+id, nil); saga["status"] != tx["status"] {
			t.Errorf("transaction %s is %v, its saga %v", id, tx["status"], saga["status"])
		}
		if tx["status"] == "completed" {
			amount := decimal.RequireFromString(tx["amount"].(string))
			from, to := tx["sourceAccountId"].(string), tx["destinationAccountId"].(string)
			want[from], want[to] = want[from].Sub(amount), want[to].Add(amount)
		}
	}
	t.Logf("of %d transfers: %v", len(ids), ends)
	if len(distinct) != transfers || ends["completed"]+ends["failed"] != transfers || ends["completed"] < transfers/2 {
		t.Errorf("%d transactions, ends %v", len(distinct), ends)
	}
	for _, u := range users {
		if got := s.must("GET", "/api/v1/accounts/"+u+"/balance", nil)["balance"]; got != want[u].StringFixed(2) {
			t.Errorf("account %s has %v, want %s", u, got, want[u].StringFixed(2))
		}
	}
	total := decimal.New(100*accounts, 0).Add(decimal.New(int64(*watchEvents), -2))
	books := s.must("GET", "/api/v1/books", nil)["currencies"].([]any)[0].(map[string]any)
	if books["difference"] != "0.00" || books["inTransit"] != "0.00" || books["user"] != total.StringFixed(2) {
		t.Errorf("books %v", books)
	}
	t.Logf("books %v", books)
}

func (s *system) ended(id string) map[string]any {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if tx := s.must("GET", "/api/v1/transactions/"+id, nil); tx["status"] != "pending" {
			return tx
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
	s.t.Fatalf("transaction %s is still pending", id)
	return nil
}

// system is `make up`.
type system struct {
	t    *testing.T
	dir  string
	http string
	env  []string
	make *exec.Cmd
	done chan error
}

func (s *system) start() {
	begun := time.Now()
	s.make = exec.Command("make", "--no-print-directory", "up")
	s.make.Dir = root(s.t)
	s.make.Env = append(append(os.Environ(), s.env...), "BILLING_HTTP_ADDR="+s.http)
	log, err := os.OpenFile(filepath.Join(s.dir, "up.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	s.make.Stdout, s.make.Stderr = log, log
	if err := s.make.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan error) { done <- cmd.Wait() }(s.make, s.done)
	for end := time.Now().Add(90 * time.Second); time.Now().Before(end); {
		if status, _, err := s.call("GET", "/readyz", nil); err == nil && status == http.StatusOK {
			s.t.Logf("ready after %s", time.Since(begun).Round(10*time.Millisecond))
			return
		}
		select {
		case err := <-s.done:
			b, _ := os.ReadFile(log.Name())
			s.t.Fatalf("make up ended: %v\n%s", err, b)
		case <-time.After(20 * time.Millisecond):
		}
	}
	b, _ := os.ReadFile(log.Name())
	s.t.Fatalf("make up is not ready\n%s", b)
}

func (s *system) terminate() {
	begun := time.Now()
	if err := s.make.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	select {
	case <-s.done:
		s.t.Logf("SIGTERM: ended after %s", time.Since(begun).Round(10*time.Millisecond))
	case <-time.After(stopMax):
		s.t.Fatalf("make up still runs %s after SIGTERM", stopMax)
	}
}

func (s *system) kill() {
	if err := s.make.Process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	<-s.done
	s.t.Log("killed by kill -9")
}

func (s *system) stop() {
	_ = s.make.Process.Signal(syscall.SIGTERM)
	<-s.done
}

func (s *system) open(kind string) string {
	return s.must("POST", "/api/v1/accounts", map[string]any{"ownerId": "o", "ownerType": "person", "accountType": kind, "currency": "USD"})["accountId"].(string)
}

func order(key, source, destination, amount string) map[string]any {
	return map[string]any{"idempotencyKey": key, "sourceAccountId": source, "destinationAccountId": destination, "amount": amount, "currency": "USD"}
}

func (s *system) must(method, path string, body any) map[string]any {
	s.t.Helper()
	status, o, err := s.call(method, path, body)
	if err != nil || status >= 300 {
		s.t.Fatalf("%s %s: %d %v %v", method, path, status, o, err)
	}
	return o
}

func (s *system) call(method, path string, body any) (int, map[string]any, error) {
	return drive.Call(s.t.Context(), &http.Client{Timeout: 40 * time.Second}, method, "http://"+s.http+path, body)
}

// root is the folder of the Makefile.
func root(t *testing.T) string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
