// Package demo shows the system at work, step by step over REST, and checks every answer.
package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/google/uuid"
)

// Run moves money over the REST API at base and writes what it does to w: each step with the curl that does the same. It
// returns an error at the first answer that is not as it should be.
func Run(ctx context.Context, base string, w io.Writer) error {
	d := &demo{ctx: ctx, base: base, w: w, id: uuid.NewString()[:8]}
	d.play()
	return d.err
}

// demo remembers the first error; after it, every step does nothing.
type demo struct {
	ctx  context.Context
	base string
	w    io.Writer
	id   string // of this run, so that its idempotency keys are its own
	step int
	last []byte // the latest answer, as it came
	err  error
}

type object = map[string]any

func (d *demo) play() {
	d.title("Open accounts: the outside world, Alice, Bob, and Carol, who may hold at most 10.00")
	bank := d.account("bank", "EXTERNAL", "")
	alice := d.account("alice", "USER", "")
	bob := d.account("bob", "USER", "")
	carol := d.account("carol", "USER", "10.00")

	d.title("Top up Alice and Bob from the outside world, 100.00 each")
	d.expect(d.move("topup", bank, alice, "100.00"), "status", "completed")
	d.expect(d.move("topup", bank, bob, "100.00"), "status", "completed")

	d.title("Transfer 50.00 from Alice to Bob")
	t := d.move("transfer", alice, bob, "50.00")
	d.expect(t, "status", "completed")
	d.say("the saga that did it:")
	saga := d.saga(t)
	d.expect(saga, "status", "completed")
	d.balance("Alice", alice, "50.00")
	d.balance("Bob", bob, "150.00")

	d.title("Transfer 1000.00 from Alice to Bob: refused, Alice does not have it; nothing moved")
	t = d.move("transfer", alice, bob, "1000.00")
	d.expect(t, "status", "failed")
	d.expect(t, "errorReason", "INSUFFICIENT_FUNDS")
	d.expect(d.saga(t), "status", "failed")
	d.balance("Alice", alice, "50.00")

	d.title("Transfer 20.00 from Alice to Carol: Alice is debited, Carol's account refuses the credit, Alice gets it back")
	t = d.move("transfer", alice, carol, "20.00")
	d.expect(t, "status", "compensated")
	d.expect(t, "errorReason", "MAX_BALANCE")
	d.expect(d.saga(t), "status", "compensated")
	d.balance("Alice", alice, "50.00")
	d.balance("Carol", carol, "0.00")

	d.title("Withdraw 30.00 of Bob's to the outside world")
	d.expect(d.move("withdraw", bob, bank, "30.00"), "status", "completed")
	d.balance("Bob", bob, "120.00")

	d.title("Send the first transfer again with its key: the same answer, and no money moves")
	again := d.post("/api/v1/transactions/transfer?wait=5s", d.body("transfer", alice, bob, "50.00"))
	d.expect(again, "status", "completed")
	d.balance("Alice", alice, "50.00")

	d.title("Check the books: all balances and what is in transit sum to zero")
	d.books()
}

func (d *demo) account(owner, kind, maxBalance string) string {
	body := object{"ownerId": owner, "ownerType": "person", "accountType": kind, "currency": "USD"}
	if maxBalance != "" {
		body["maxBalance"] = maxBalance
	}
	a := d.post("/api/v1/accounts", body)
	id, _ := a["accountId"].(string)
	d.say("%s is account %s", owner, id)
	return id
}

func (d *demo) body(kind, source, destination, amount string) object {
	return object{
		"idempotencyKey":  fmt.Sprintf("demo-%s-%s-%.4s-%.4s-%s", d.id, kind, source, destination, amount),
		"sourceAccountId": source, "destinationAccountId": destination, "amount": amount, "currency": "USD",
	}
}

func (d *demo) move(kind, source, destination, amount string) object {
	t := d.post("/api/v1/transactions/"+kind+"?wait=30s", d.body(kind, source, destination, amount))
	if d.err == nil {
		d.say("transaction %v is %v%s", t["transactionId"], t["status"], because(t))
	}
	return t
}

func because(t object) string {
	if t["errorReason"] == nil {
		return ""
	}
	return fmt.Sprintf(": %v (%v)", t["errorReason"], t["errorMessage"])
}

func (d *demo) saga(t object) object {
	s := d.get(fmt.Sprintf("/api/v1/sagas/%v", t["transactionId"]))
	if d.err == nil {
		var pretty bytes.Buffer
		if d.err = json.Indent(&pretty, d.last, "   ", "  "); d.err == nil {
			d.say("%s", pretty.String())
		}
	}
	return s
}

func (d *demo) balance(name, account, want string) {
	b := d.get("/api/v1/accounts/" + account + "/balance")
	if d.err == nil {
		d.say("%s has %v %v", name, b["balance"], b["currency"])
	}
	d.expect(b, "balance", want)
}

func (d *demo) books() {
	b := d.get("/api/v1/books")
	if d.err != nil {
		return
	}
	currencies, _ := b["currencies"].([]any)
	if len(currencies) == 0 {
		d.err = errors.New("the books are empty")
	}
	for _, x := range currencies {
		c, _ := x.(object)
		d.say("%v: user %v + external %v + system %v + in transit %v = %v", c["currency"], c["user"], c["external"], c["system"], c["inTransit"], c["difference"])
		if s, _ := c["difference"].(string); strings.Trim(s, "0.") != "" || s == "" {
			d.err = fmt.Errorf("the books of %v do not balance: %v", c["currency"], s)
		}
	}
	if d.err == nil {
		d.say("books balance")
	}
}

func (d *demo) expect(o object, key, want string) {
	if d.err == nil && o[key] != want {
		d.err = fmt.Errorf("%s is %v, want %s, in %v", key, o[key], want, o)
	}
}

func (d *demo) title(s string) {
	if d.err == nil {
		d.step++
		fmt.Fprintf(d.w, "\n%d. %s\n", d.step, s)
	}
}

func (d *demo) say(format string, args ...any) {
	if d.err == nil {
		fmt.Fprintf(d.w, "   "+format+"\n", args...)
	}
}

func (d *demo) get(path string) object {
	if d.err == nil {
		fmt.Fprintf(d.w, "   $ curl -s '%s%s'\n", d.base, path)
	}
	return d.do(http.MethodGet, path, nil)
}

func (d *demo) post(path string, body object) object {
	b, err := json.Marshal(body)
	if err != nil {
		d.err = err
		return nil
	}
	if d.err == nil {
		fmt.Fprintf(d.w, "   $ curl -s -X POST '%s%s' -H 'Content-Type: application/json' -d '%s'\n", d.base, path, b)
	}
	return d.do(http.MethodPost, path, b)
}

func (d *demo) do(method, path string, body []byte) object {
	if d.err != nil {
		return nil
	}
	req, err := http.NewRequestWithContext(d.ctx, method, d.base+path, bytes.NewReader(body))
	if err != nil {
		d.err = err
		return nil
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		d.err = err
		return nil
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	d.last = b
	var out object
	if err = errors.Join(err, json.Unmarshal(b, &out)); err != nil || res.StatusCode >= 300 {
		d.err = fmt.Errorf("%s %s: %s: %s (%w)", method, path, res.Status, b, err)
	}
	return out
}
