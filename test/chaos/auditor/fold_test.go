package auditor

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// fold is an audit whose events a test makes up.
type fold struct {
	*audit
	requests []Request
}

// add appends an event to an aggregate; its data is JSON without the braces.
func (f *fold) add(kind, id, eventType, fields string) {
	s := stream{kind, id}
	f.versions[s]++
	e := event{AggregateType: kind, AggregateID: id, Version: f.versions[s], Type: eventType, Data: json.RawMessage("{" + fields + "}")}
	d, err := e.data()
	if err != nil {
		panic(err)
	}
	map[string]func(event, data){"Account": f.accountEvent, "Transaction": f.transactionEvent, "Saga": f.sagaEvent}[kind](e, d)
}

func (f *fold) open(id, kind, limits string) {
	f.add("Account", id, "AccountCreated", fmt.Sprintf(`"accountType":%q,"currency":"USD"%s`, kind, limits))
	f.requests = append(f.requests, Request{Op: "open", Key: "open " + id, Type: kind, Currency: "USD", ID: id, Answer: Accepted})
}

// post moves money on an account, by a step of a saga, as the account's events have it so far; more are fields besides.
func (f *fold) post(account, saga, step, changeType, amount, more string) {
	d := data{}
	if err := json.Unmarshal(fmt.Appendf(nil, `{"changeAmount":%q}`, amount), &d); err != nil {
		panic(err)
	}
	change := d.Change
	if changeType == "DEBIT" {
		change = change.Neg()
	}
	a := f.accounts[account]
	f.add("Account", account, "BalanceChanged", fmt.Sprintf(`"sagaId":%q,"step":%q,"changeType":%q,"changeAmount":%q,"transitChange":%q,"previousBalance":%q,"newBalance":%q,"currency":"USD","accountType":%q%s`,
		saga, step, changeType, amount, change.Neg(), a.balance, a.balance.Add(change), a.kind, more))
}

// hold reserves an amount, or releases it: of the hold and saga of this id, so that held is what is held after it.
func (f *fold) hold(account, saga, hold, eventType, amount, held string) {
	f.add("Account", account, eventType, fmt.Sprintf(`"sagaId":%q,"step":%q,"holdId":%q,"amount":%q,"balance":%q,"heldBalance":%q,"currency":"USD"`,
		saga, eventType, hold, amount, f.accounts[account].balance, held))
}

// ask requests a transaction; more are fields besides.
func (f *fold) ask(id, kind, source, destination, amount, more string) {
	f.add("Transaction", id, strings.ToUpper(kind[:1])+kind[1:]+"Requested",
		fmt.Sprintf(`"idempotencyKey":"key %s","sourceAccountId":%q,"destinationAccountId":%q,"amount":%q,"currency":"USD"%s`, id, source, destination, amount, more))
	f.requests = append(f.requests, Request{
		Op: kind, Key: "key " + id, Source: source, Destination: destination, Amount: amount, Currency: "USD", ID: id, Answer: Accepted, Status: "pending", Attempts: 1,
	})
}

// end ends a transaction and its saga: Completed, Failed or Compensated.
func (f *fold) end(id, how string) {
	kind := f.txs[id].kind
	what := how
	if kind == "hold" && how == "Completed" {
		what = "Placed"
	}
	f.add("Transaction", id, strings.ToUpper(kind[:1])+kind[1:]+what, "")
	f.add("Saga", id, "Saga"+how, fmt.Sprintf(`"sagaType":%q`, kind))
}

// transfer is a whole transfer, which completes.
func (f *fold) transfer(id, source, destination, amount string) {
	f.ask(id, "transfer", source, destination, amount, "")
	f.post(source, id, "debit", "DEBIT", amount, "")
	f.post(destination, id, "credit", "CREDIT", amount, "")
	f.end(id, "Completed")
}

// placed is a whole hold of Ann's.
func (f *fold) placed(id, amount string) {
	f.ask(id, "hold", "ann", "", amount, "")
	f.hold("ann", id, id, "FundsHeld", amount, amount)
	f.end(id, "Completed")
}

// reserve adds an event about a part of a hold or a payment.
func (f *fold) reserve(on, eventType, id, amount string) {
	kind := f.txs[on].kind
	f.add("Transaction", on, strings.ToUpper(kind[:1])+kind[1:]+eventType, fmt.Sprintf(`"transactionId":%q,"amount":%q`, id, amount))
}

// capture is a whole capture of a hold of Ann's, which completes; left is what is held after it, how what comes of its reservation.
func (f *fold) capture(id, hold, amount, left, how string) {
	f.ask(id, "payment", "ann", "bob", amount, `,"holdId":"`+hold+`"`)
	f.reserve(hold, "CaptureReserved", id, amount)
	f.post("ann", id, "debit", "DEBIT", amount, `,"holdId":"`+hold+`","heldChange":"-`+amount+`","heldBalance":"`+left+`"`)
	f.post("bob", id, "credit", "CREDIT", amount, "")
	f.end(id, "Completed")
	if how != "" {
		f.reserve(hold, how, id, amount)
	}
}

// release is a whole release of a hold of Ann's.
func (f *fold) release(hold, amount, cause string) {
	f.add("Transaction", hold, "HoldReleaseStarted", "")
	f.add("Transaction", "release", "ReleaseRequested", fmt.Sprintf(`"sourceAccountId":"ann","amount":%q,"currency":"USD","holdId":%q,"cause":%q`, amount, hold, cause))
	f.hold("ann", "release", hold, "FundsReleased", amount, "0")
	f.end("release", "Completed")
	f.add("Transaction", hold, "HoldReleased", fmt.Sprintf(`"cause":%q`, cause))
	f.requests = append(f.requests, Request{Op: "void", Key: "void " + hold, On: hold, ID: hold, Answer: Accepted})
}

// refunded is a payment of 5 by Ann to Bob and a refund of it.
func (f *fold) refunded(amount string) {
	f.ask("p", "payment", "ann", "bob", "5", "")
	f.post("ann", "p", "debit", "DEBIT", "5", "")
	f.post("bob", "p", "credit", "CREDIT", "5", "")
	f.end("p", "Completed")
	f.ask("r", "refund", "bob", "ann", amount, `,"paymentId":"p"`)
	f.reserve("p", "RefundReserved", "r", amount)
	f.post("bob", "r", "debit", "DEBIT", amount, "")
	f.post("ann", "r", "credit", "CREDIT", amount, "")
	f.end("r", "Completed")
	f.reserve("p", "Refunded", "r", amount)
}

// newFold has a bank, Ann with 100, and Bob, who may have at most 50. Its requests are three to open them, and Ann's first money.
func newFold() *fold {
	f := &fold{audit: newAudit(Auditor{})}
	f.open("bank", "EXTERNAL", "")
	f.open("ann", "USER", `,"minBalance":"0"`)
	f.open("bob", "USER", `,"minBalance":"0","maxBalance":"50"`)
	f.transfer("first", "bank", "ann", "100")
	return f
}

// foldCase is what happens besides, and a piece of the violation that it is; empty = it is none.
type foldCase struct {
	do   func(f *fold)
	want string
}

var moneyAndOutcomes = map[string]foldCase{
	"a transfer":             {func(f *fold) { f.transfer("t", "ann", "bob", "50") }, ""},
	"a transfer of too much": {func(f *fold) { f.transfer("t", "ann", "bank", "100.01") }, "takes more than was available: -0.01 are left, 0 of them held, the minimum is 0"},
	"a transfer to one who is full": {func(f *fold) { f.transfer("t", "ann", "bob", "50.01") },
		"brings the balance to 50.01, above the maximum of 50"},
	"a transfer of what is held": {func(f *fold) {
		f.placed("h", "60")
		f.transfer("t", "ann", "bank", "41")
	}, "takes more than was available: 59 are left, 60 of them held, the minimum is 0"},
	"a hold of too much": {func(f *fold) { f.placed("h", "101") }, "holds more than was available: 101 of 100 are held, the minimum is 0"},
	"an account that is suspended": {func(f *fold) {
		f.add("Account", "bob", "AccountStatusChanged", `"previousStatus":"active","newStatus":"suspended"`)
		f.transfer("t", "ann", "bob", "1")
	}, `on an account that is "suspended"`},
	"a rollback on one": {func(f *fold) {
		f.ask("t", "transfer", "ann", "bob", "1", "")
		f.post("ann", "t", "debit", "DEBIT", "1", "")
		f.add("Account", "ann", "AccountStatusChanged", `"previousStatus":"active","newStatus":"suspended"`)
		f.post("ann", "t", "debit_rollback", "CREDIT", "1", "")
		f.end("t", "Compensated")
	}, ""},
	"an account closed with money": {func(f *fold) {
		f.add("Account", "ann", "AccountStatusChanged", `"previousStatus":"active","newStatus":"closed"`)
	},
		"closes the account with 100 on it and 0 holds"},
	"another status before": {func(f *fold) {
		f.add("Account", "ann", "AccountStatusChanged", `"previousStatus":"suspended","newStatus":"active"`)
	},
		"the status before is suspended, want active"},
	"an account twice":     {func(f *fold) { f.open("ann", "USER", `,"minBalance":"0"`) }, "the account was there already"},
	"a posting of nothing": {func(f *fold) { f.post("ann", "first", "again", "CREDIT", "0", "") }, "CREDIT of 0 is no posting"},
	"a posting without transit": {func(f *fold) {
		f.add("Account", "ann", "BalanceChanged", `"sagaId":"first","changeType":"CREDIT","changeAmount":"1","previousBalance":"100","newBalance":"101","currency":"USD","accountType":"USER"`)
	}, "the balance changes by 1, money in transit by 0"},
	"a posting in another currency": {func(f *fold) {
		f.add("Account", "ann", "BalanceChanged", `"sagaId":"first","changeType":"CREDIT","changeAmount":"1","transitChange":"-1","previousBalance":"100","newBalance":"101","currency":"EUR","accountType":"USER"`)
	}, "is of a USER account in EUR, this one is USER in USD"},
	"a step twice": {func(f *fold) { f.post("ann", "first", "credit", "CREDIT", "1", "") }, "step credit of first was decided before"},
	"a debit only": {func(f *fold) {
		f.ask("t", "transfer", "ann", "bob", "1", "")
		f.post("ann", "t", "debit", "DEBIT", "1", "")
		f.end("t", "Completed")
	}, "USD: 1 are in transit, and nothing is under way"},
	"a credit of another account": {func(f *fold) {
		f.ask("t", "transfer", "ann", "bob", "1", "")
		f.post("ann", "t", "debit", "DEBIT", "1", "")
		f.post("bank", "t", "credit", "CREDIT", "1", "")
		f.end("t", "Completed")
	}, "it moved [{ann -1 0} {bank 1 0}], want [{ann -1 0} {bob 1 0}]"},
	"money without a transaction": {func(f *fold) {
		f.post("ann", "t", "debit", "DEBIT", "1", "")
		f.post("bob", "t", "credit", "CREDIT", "1", "")
	}, "saga t: moved money on 2 accounts, and there is no such transaction"},
	"a saga without a transaction": {func(f *fold) { f.add("Saga", "t", "SagaFailed", `"sagaType":"transfer"`) }, "saga t: there is no such transaction"},
	"a transaction without a saga": {func(f *fold) {
		f.ask("t", "transfer", "ann", "bob", "1", "")
		f.add("Transaction", "t", "TransferFailed", "")
	}, "transaction t: is failed, and has no saga"},
	"a saga that ends twice":        {func(f *fold) { f.add("Saga", "first", "SagaCompleted", `"sagaType":"transfer"`) }, "the saga has ended before"},
	"a transaction that ends twice": {func(f *fold) { f.add("Transaction", "first", "TransferCompleted", "") }, "the transaction was completed already"},
	"a transaction that is asked for twice": {func(f *fold) { f.add("Transaction", "first", "TransferRequested", "") },
		"the transaction was there already"},
	"an end of another kind": {func(f *fold) {
		f.ask("t", "transfer", "ann", "bob", "1", "")
		f.add("Transaction", "t", "PaymentFailed", "")
	}, `on a transaction that is a "transfer"`},
	"unknown events":                     {func(f *fold) { f.add("Account", "ann", "AccountPainted", "") }, "is of a type that the auditor does not know"},
	"an unknown event of a transaction":  {func(f *fold) { f.add("Transaction", "first", "TransferPainted", "") }, "is of a type that the auditor does not know"},
	"an unknown event of a saga":         {func(f *fold) { f.add("Saga", "first", "SagaPainted", `"sagaType":"transfer"`) }, "is of a type that the auditor does not know"},
	"a transaction in another currency":  {func(f *fold) { f.transfer("t", "ann", "bob", "1"); f.txs["t"].currency = "EUR" }, "is in EUR, and moved USD"},
	"an answer with another transaction": {func(f *fold) { f.transfer("t", "ann", "bob", "1"); f.requests[3].ID = "t" }, "was accepted as t, which is a transfer with key key t"},
	"a request from another account":     {func(f *fold) { f.requests[3].Source = "bob" }, "transfer key first: asked for "},
	"a request to another account":       {func(f *fold) { f.requests[3].Destination = "bob" }, "transfer key first: asked for "},
	"a request in another currency":      {func(f *fold) { f.requests[3].Currency = "EUR" }, "transfer key first: asked for "},
	"a request on something else":        {func(f *fold) { f.requests[3].On = "p" }, "was on p, got "},
	"a key twice": {func(f *fold) {
		f.transfer("t", "ann", "bob", "1")
		f.txs["t"].key = "key first"
	}, "key key first: is of two transactions"},
	"an account of two keys": {func(f *fold) {
		r := f.requests[0]
		r.Key = "another"
		f.requests = append(f.requests, r)
	}, "account bank: was opened by two keys: open bank and another"},
	"a key of two accounts": {func(f *fold) {
		f.open("eve", "USER", "")
		f.requests[len(f.requests)-1].Key = "open bank"
	}, "open open bank: opened two accounts: bank and eve"},
	"an account of another kind": {func(f *fold) { f.requests[0].Type = "USER" }, "open open bank: was accepted as account bank"},
	"an account nobody opened":   {func(f *fold) { f.requests = f.requests[1:] }, "account bank: nobody opened it"},
}

var holdsAndRefunds = map[string]foldCase{
	"a hold, captured": {func(f *fold) {
		f.placed("h", "10")
		f.capture("c", "h", "4", "6", "Captured")
		f.capture("d", "h", "6", "0", "Captured")
	}, ""},
	"a hold, released": {func(f *fold) {
		f.placed("h", "10")
		f.release("h", "10", "void")
	}, ""},
	"a capture of too much": {func(f *fold) {
		f.placed("h", "10")
		f.capture("c", "h", "11", "-1", "Captured")
	}, "leaves -1 of hold h"},
	"a reservation of too much": {func(f *fold) {
		f.placed("h", "10")
		f.capture("c", "h", "11", "-1", "Captured")
	}, "11 are reserved and 0 used of 10"},
	"a capture that does not end at its hold": {func(f *fold) {
		f.placed("h", "10")
		f.capture("c", "h", "4", "6", "")
	}, "has reservations of transactions that have ended: [c]"},
	"a capture that is cancelled, and completes": {func(f *fold) {
		f.placed("h", "10")
		f.capture("c", "h", "4", "6", "CaptureCancelled")
	}, "0 of it are used, its refunds and captures took 4"},
	"a capture that is reserved twice": {func(f *fold) {
		f.placed("h", "10")
		f.reserve("h", "CaptureReserved", "c", "4")
		f.capture("c", "h", "4", "6", "Captured")
	}, "c reserves twice"},
	"a capture of another amount": {func(f *fold) {
		f.placed("h", "10")
		f.reserve("h", "CaptureReserved", "c", "4")
		f.reserve("h", "Captured", "c", "5")
	}, "4 of c were reserved, not 5"},
	"a refund":             {func(f *fold) { f.refunded("1") }, ""},
	"a refund of too much": {func(f *fold) { f.refunded("6") }, "6 are reserved and 0 used of 5"},
	"a refund of nothing": {func(f *fold) {
		f.ask("r", "refund", "bank", "ann", "1", `,"paymentId":"p"`)
		f.add("Transaction", "r", "RefundFailed", "")
	}, "is on p, which is not there"},
	"an account that tells of other holds": {func(f *fold) {
		f.ask("h", "hold", "ann", "", "10", "")
		f.hold("ann", "h", "h", "FundsHeld", "10", "11")
	}, "tells of 11 held, the events come to 10"},
	"an account that tells of another balance": {func(f *fold) {
		f.ask("h", "hold", "ann", "", "10", "")
		f.add("Account", "ann", "FundsHeld", `"sagaId":"h","step":"hold","holdId":"h","amount":"10","balance":"99","heldBalance":"10","currency":"USD"`)
	}, "tells of a balance of 99, the events before come to 100"},
	"a release of what is not held": {func(f *fold) { f.hold("ann", "first", "h", "FundsReleased", "1", "-1") }, "(FundsReleased): -1 are held"},
	"a hold that stays": {func(f *fold) {
		f.placed("h", "10")
		f.add("Transaction", "h", "HoldReleased", `"cause":"expiry"`)
	}, "account ann: holds map[h:10], its open holds come to map[]"},
	"a hold on another hold": {func(f *fold) {
		f.ask("h", "hold", "ann", "", "10", "")
		f.hold("ann", "h", "other", "FundsHeld", "10", "10")
		f.end("h", "Completed")
	}, "changed hold other"},
	"a void that was accepted, and did nothing": {func(f *fold) {
		f.placed("h", "10")
		f.requests = append(f.requests, Request{Op: "void", Key: "v", On: "h", ID: "h", Answer: Accepted})
	}, "was accepted, and the hold h is active"},
	"a void of nothing": {func(f *fold) {
		f.requests = append(f.requests, Request{Op: "void", Key: "v", On: "h", ID: "h", Answer: Accepted})
	}, "there is no hold h"},
}

// A history breaks every rule of money and outcomes that the auditor knows, one after the other, and it says so.
func TestFold(t *testing.T) {
	for _, cases := range []map[string]foldCase{moneyAndOutcomes, holdsAndRefunds} {
		for name, tc := range cases {
			t.Run(name, func(t *testing.T) {
				f := newFold()
				tc.do(f)
				f.books()
				f.ends()
				f.answers(f.requests)
				found := func(v Violation) bool { return strings.Contains(v.String(), tc.want) }
				if tc.want == "" && f.report.Count > 0 || tc.want != "" && !slices.ContainsFunc(f.report.Violations, found) {
					t.Errorf("found %v, want %q", f.report.Violations, tc.want)
				}
			})
		}
	}
}
