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
	d.title("Open accounts: the outside world, Alice, Bob, a shop, and Carol, who may hold at most 10.00")
	bank := d.account("bank", "EXTERNAL", "")
	alice := d.account("alice", "USER", "")
	bob := d.account("bob", "USER", "")
	shop := d.account("shop", "USER", "")
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

	d.payments(bob, shop)
	d.holds(bob, shop)

	d.title("Check the books: all balances and what is in transit sum to zero")
	d.books()
	d.title("Prove it: fold every event anew, and compare balances, holds, sums and lists with what the events say")
	d.reconcile()
}

// payments: Bob pays the shop, and gets a part of it back.
func (d *demo) payments(bob, shop string) {
	d.title("Bob pays the shop 40.00, and the shop refunds 15.00 of it")
	p := d.ask("/api/v1/transactions/payment?wait=30s", object{
		"idempotencyKey": "demo-" + d.id + "-payment", "customerAccountId": bob, "merchantAccountId": shop, "amount": "40.00", "currency": "USD", "reference": "order 1",
	})
	d.expect(p, "status", "completed")
	refund := func(key, amount string) object {
		return object{"idempotencyKey": "demo-" + d.id + "-" + key, "paymentId": p["transactionId"], "amount": amount, "reason": "came late"}
	}
	d.expect(d.ask("/api/v1/transactions/refund?wait=30s", refund("refund", "15.00")), "status", "completed")
	d.balance("Bob", bob, "95.00")
	d.balance("The shop", shop, "25.00")

	d.title("A refund of 30.00 more is refused: 25.00 are left of the payment")
	d.refused("/api/v1/transactions/refund?wait=30s", refund("refund-2", "30.00"), "REFUND_EXCEEDS_PAYMENT")
}

// holds: the shop reserves an amount on Bob's account, takes a part of it, and lets the rest go.
func (d *demo) holds(bob, shop string) {
	d.title("Hold 60.00 on Bob's account for the shop: his balance stays, what is available shrinks")
	h := d.post("/api/v1/holds?wait=30s", object{
		"idempotencyKey": "demo-" + d.id + "-hold", "accountId": bob, "destinationAccountId": shop, "amount": "60.00", "currency": "USD",
	})
	d.expect(h, "status", "active")
	d.say("hold %v is %v", h["holdId"], h["status"])
	d.available("Bob", bob, "95.00", "35.00")

	d.title("Capture 45.00 of the hold, and void the rest")
	hold := fmt.Sprintf("/api/v1/holds/%v", h["holdId"])
	d.expect(d.ask(hold+"/capture?wait=30s", object{"idempotencyKey": "demo-" + d.id + "-capture", "amount": "45.00"}), "status", "completed")
	v := d.post(hold+"/void?wait=30s", object{"reason": "shipped in part"})
	d.expect(v, "status", "voided")
	d.expect(v, "capturedAmount", "45.00")
	d.say("the hold is %v: %v of %v were captured", v["status"], v["capturedAmount"], v["amount"])
	d.available("Bob", bob, "50.00", "50.00")
	d.balance("The shop", shop, "70.00")
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
	return d.ask("/api/v1/transactions/"+kind+"?wait=30s", d.body(kind, source, destination, amount))
}

// ask asks for a transaction and says how it ended.
func (d *demo) ask(path string, body object) object {
	t := d.post(path, body)
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

// available shows what of a balance a hold leaves.
func (d *demo) available(name, account, balance, want string) {
	b := d.get("/api/v1/accounts/" + account + "/balance")
	if d.err == nil {
		d.say("%s has %v %v, of which %v are held and %v available", name, b["balance"], b["currency"], b["heldBalance"], b["availableBalance"])
	}
	d.expect(b, "balance", balance)
	d.expect(b, "availableBalance", want)
}

func (d *demo) reconcile() {
	r := d.post("/api/v1/books/reconcile?wait=30s", object{})
	if d.err == nil {
		d.say("%v accounts, %v events: %v", r["accounts"], r["events"], r["status"])
	}
	d.expect(r, "status", "clean")
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

// refused posts what has to be refused for this reason.
func (d *demo) refused(path string, body object, reason string) {
	if d.err != nil {
		return
	}
	problem := d.post(path, body)
	if d.err == nil {
		d.err = fmt.Errorf("%s was not refused: %v", path, problem)
		return
	}
	var refusal *refusalError
	if errors.As(d.err, &refusal) && refusal.body["reason"] == reason {
		d.err = nil
		d.say("%d: %v (%v)", refusal.status, refusal.body["reason"], refusal.body["detail"])
	}
}

// refusalError is an answer that is a problem document.
type refusalError struct {
	status int
	body   object
	text   string
}

func (e *refusalError) Error() string { return e.text }

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
	if err = errors.Join(err, json.Unmarshal(b, &out)); err != nil {
		d.err = fmt.Errorf("%s %s: %s: %s (%w)", method, path, res.Status, b, err)
	} else if res.StatusCode >= 300 {
		d.err = &refusalError{status: res.StatusCode, body: out, text: fmt.Sprintf("%s %s: %s: %s", method, path, res.Status, b)}
	}
	return out
}
