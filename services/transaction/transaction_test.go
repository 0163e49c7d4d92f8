package transaction_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/estest"
	"example.com/billing/services/edge"
	"example.com/billing/services/transaction"
)

// The two accounts and the saga of every transaction here.
const (
	src  = "11111111-1111-4111-8111-111111111111"
	dst  = "22222222-2222-4222-8222-222222222222"
	saga = "33333333-3333-4333-8333-333333333333"
)

func types() []transaction.Type {
	return []transaction.Type{transaction.Topup, transaction.Withdrawal, transaction.Transfer, transaction.Payment}
}

func side(accountType string, change ...func(*transaction.Side)) transaction.Side {
	s := transaction.Side{Found: true, AccountType: accountType, Currency: "USD", Status: "active"}
	for _, c := range change {
		c(&s)
	}
	return s
}

func missing(s *transaction.Side)   { *s = transaction.Side{} }
func inEUR(s *transaction.Side)     { s.Currency = "EUR" }
func suspended(s *transaction.Side) { s.Status = "suspended" }
func closing(s *transaction.Side)   { s.Status = "closing" }
func closed(s *transaction.Side)    { s.Status = "closed" }

// Which account types may stand on which side of which transaction: all of them, tried.
func TestCheckAccountTypes(t *testing.T) {
	allowed := map[string]bool{
		"topup EXTERNAL→USER": true, "withdrawal USER→EXTERNAL": true,
		"payment USER→USER": true, "payment USER→SYSTEM": true, "refund USER→USER": true, "refund SYSTEM→USER": true,
		"hold USER→USER": true, "hold USER→SYSTEM": true,
		"transfer USER→USER": true, "transfer USER→SYSTEM": true, "transfer SYSTEM→USER": true, "transfer SYSTEM→SYSTEM": true,
	}
	all := []string{"USER", "EXTERNAL", "SYSTEM"}
	for _, kind := range append(types(), transaction.Refund, transaction.Hold) {
		for _, from := range all {
			for _, to := range all {
				name := string(kind) + " " + from + "→" + to
				r := transaction.Check(kind, "USD", side(from), side(to), src, dst)
				if allowed[name] != (r == nil) {
					t.Errorf("%s: got %v", name, r)
				}
				if r != nil && r.Reason != "ACCOUNT_TYPE_NOT_ALLOWED" {
					t.Errorf("%s: got %v", name, r)
				}
			}
		}
	}
}

func TestCheck(t *testing.T) {
	user := side("USER")
	for _, tc := range []struct {
		name                string
		source, destination transaction.Side
		reason, names       string // names: the side that the sentence names
	}{
		{"no source", side("USER", missing), user, "ACCOUNT_NOT_FOUND", "source"},
		{"no destination", user, side("USER", missing), "ACCOUNT_NOT_FOUND", "destination"},
		{"source in another currency", side("USER", inEUR), user, "CURRENCY_MISMATCH", "source"},
		{"destination in another currency", user, side("USER", inEUR), "CURRENCY_MISMATCH", "destination"},
		{"source suspended", side("USER", suspended), user, "ACCOUNT_SUSPENDED", "source"},
		{"destination suspended", user, side("USER", suspended), "ACCOUNT_SUSPENDED", "destination"},
		{"source closing", side("USER", closing), user, "ACCOUNT_CLOSING", "source"},
		{"source closed", side("USER", closed), user, "ACCOUNT_CLOSED", "source"},
		{"destination closed", user, side("USER", closed), "ACCOUNT_CLOSED", "destination"},
		{"source first", side("USER", closed), side("USER", missing), "ACCOUNT_CLOSED", "source"},
		{"type before currency", side("EXTERNAL", inEUR, closed), user, "ACCOUNT_TYPE_NOT_ALLOWED", "source"},
		{"currency before status", side("USER", inEUR, closed), user, "CURRENCY_MISMATCH", "source"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := transaction.Check(transaction.Transfer, "USD", tc.source, tc.destination, src, dst)
			if r == nil || r.Reason != tc.reason || !strings.Contains(r.Message, "The "+tc.names+" account") {
				t.Errorf("got %v", r)
			}
			knownReason(t, tc.reason)
		})
	}
	if r := transaction.Check(transaction.Transfer, "USD", user, user, src, dst); r != nil {
		t.Errorf("two good accounts: %v", r)
	}
	if r := transaction.Check(transaction.Hold, "USD", user, side("USER", missing), src, ""); r != nil {
		t.Errorf("a hold that names no destination: %v", r)
	}
	if r := transaction.Check(transaction.Transfer, "USD", side("USER", missing), side("USER", missing), src, src); r == nil || r.Reason != "SAME_ACCOUNT" {
		t.Errorf("one account on both sides: %v", r)
	}
	knownReason(t, "SAME_ACCOUNT")
	knownReason(t, "ACCOUNT_TYPE_NOT_ALLOWED")
}

func ref(s string) *string { return &s }

func request(change ...func(*transaction.Request)) transaction.Request {
	r := transaction.Request{
		Type: transaction.Transfer, SourceID: src, DestinationID: dst, Amount: decimal.RequireFromString("50"), Scale: 2, Currency: "USD",
		Reference: ref("rent"), Metadata: map[string]any{"month": "May"}, IdempotencyKey: "k-1",
	}
	for _, c := range change {
		c(&r)
	}
	return r
}

func requested(kind transaction.Type) transaction.Requested {
	return transaction.Requested{
		Type: kind, SourceID: src, DestinationID: dst, Amount: "50.00", Currency: "USD", Reference: ref("rent"),
		Metadata: map[string]any{"month": "May"}, IdempotencyKey: "k-1",
	}
}

func ended(kind transaction.Type, s transaction.Status) transaction.Ended {
	e := transaction.Ended{Type: kind, Status: s, SagaID: saga}
	if s != transaction.Completed {
		e.ErrorReason, e.ErrorMessage = "INSUFFICIENT_FUNDS", "The account holds 0.00 USD, less than 50.00."
	}
	return e
}

func TestRequest(t *testing.T) {
	for _, kind := range types() {
		t.Run(string(kind), func(t *testing.T) {
			got := estest.Given(t, transaction.Decider()).When(request(func(r *transaction.Request) { r.Type = kind })).Then(requested(kind)).State()
			if got.Status != transaction.Pending || got.Type != kind || got.Scale != 2 || got.Version != 1 || got.Ended() || !got.Exists() {
				t.Errorf("state %+v", got)
			}
		})
	}
	t.Run("without reference and metadata", func(t *testing.T) {
		f := requested(transaction.Transfer)
		f.Reference, f.Metadata = nil, nil
		estest.Given(t, transaction.Decider()).When(request(func(r *transaction.Request) { r.Reference, r.Metadata = nil, nil })).Then(f)
	})
	t.Run("no digits", func(t *testing.T) {
		f := requested(transaction.Transfer)
		f.Amount, f.Currency = "50", "JPY"
		got := estest.Given(t, transaction.Decider()).When(request(func(r *transaction.Request) { r.Scale, r.Currency = 0, "JPY" })).Then(f).State()
		if got.Scale != 0 {
			t.Errorf("scale %d", got.Scale)
		}
	})
}

func TestRequestAgain(t *testing.T) {
	pending := []es.Fact{requested(transaction.Transfer)}
	completed := []es.Fact{pending[0], ended(transaction.Transfer, transaction.Completed)}
	for name, given := range map[string][]es.Fact{"pending": pending, "completed": completed} {
		t.Run(name+": quiet", func(t *testing.T) {
			estest.Given(t, transaction.Decider(), given...).When(request()).ThenNothing()
		})
		t.Run(name+": quiet, whatever the accounts say now", func(t *testing.T) {
			for _, err := range []error{es.Refuse("ACCOUNT_CLOSED", "closed"), errors.New("no answer")} {
				estest.Given(t, transaction.Decider(), given...).When(request(func(r *transaction.Request) { r.Checked = err })).ThenNothing()
			}
		})
	}
	t.Run("the same amount written otherwise: quiet", func(t *testing.T) {
		estest.Given(t, transaction.Decider(), pending...).When(request(func(r *transaction.Request) { r.Amount = decimal.RequireFromString("50.00") })).ThenNothing()
	})
	t.Run("no metadata and empty metadata: quiet", func(t *testing.T) {
		f := requested(transaction.Transfer)
		f.Metadata = nil
		estest.Given(t, transaction.Decider(), f).When(request(func(r *transaction.Request) { r.Metadata = map[string]any{} })).ThenNothing()
	})
	for names, change := range map[string]func(*transaction.Request){
		"type":                 func(r *transaction.Request) { r.Type = transaction.Topup },
		"sourceAccountId":      func(r *transaction.Request) { r.SourceID = saga },
		"destinationAccountId": func(r *transaction.Request) { r.DestinationID = saga },
		"amount":               func(r *transaction.Request) { r.Amount = decimal.RequireFromString("50.01") },
		"currency":             func(r *transaction.Request) { r.Currency = "EUR" },
		"reference":            func(r *transaction.Request) { r.Reference = ref("food") },
		"metadata":             func(r *transaction.Request) { r.Metadata = map[string]any{"month": "June"} },
		"amount, reference, metadata": func(r *transaction.Request) {
			r.Amount, r.Reference, r.Metadata = decimal.RequireFromString("1"), nil, nil
		},
	} {
		t.Run("another "+names+": refused", func(t *testing.T) {
			estest.Given(t, transaction.Decider(), completed...).When(request(change)).ThenRefused("IDEMPOTENCY_CONFLICT")
			_, err := transaction.Decider().Decide(stateAfter(t, completed), request(change))
			if !strings.HasSuffix(err.Error(), " differs in "+names+".") {
				t.Errorf("got %v", err)
			}
		})
	}
	knownReason(t, "IDEMPOTENCY_CONFLICT")
}

func stateAfter(t *testing.T, given []es.Fact) transaction.Transaction {
	t.Helper()
	dec := transaction.Decider()
	state := dec.Initial()
	for i, f := range given {
		state = dec.Evolve(state, f, es.Occurred{Version: int64(i + 1)})
	}
	return state
}

// What the accounts do not allow, or do not tell, leaves no trace.
func TestRequestThatIsNotAccepted(t *testing.T) {
	estest.Given(t, transaction.Decider()).When(request(func(r *transaction.Request) { r.Checked = es.Refuse("ACCOUNT_CLOSED", "closed") })).ThenRefused("ACCOUNT_CLOSED")
	gone := errors.New("no answer")
	facts, err := transaction.Decider().Decide(transaction.Transaction{}, request(func(r *transaction.Request) { r.Checked = gone }))
	if !errors.Is(err, gone) || es.RefusalOf(err) != nil || facts != nil {
		t.Errorf("got %v, %v", facts, err)
	}
}

func TestSettle(t *testing.T) {
	ends := []transaction.Status{transaction.Completed, transaction.Failed, transaction.Compensated}
	settle := func(s transaction.Status) transaction.Settle {
		c := transaction.Settle{Status: s, SagaID: saga}
		if s != transaction.Completed {
			c.ErrorReason, c.ErrorMessage = "INSUFFICIENT_FUNDS", "The account holds 0.00 USD, less than 50.00."
		}
		return c
	}
	for _, kind := range types() {
		for _, end := range ends {
			t.Run(string(kind)+" "+string(end), func(t *testing.T) {
				got := estest.Given(t, transaction.Decider(), requested(kind)).When(settle(end)).Then(ended(kind, end)).State()
				if got.Status != end || !got.Ended() || got.Version != 2 || got.ErrorReason != settle(end).ErrorReason {
					t.Errorf("state %+v", got)
				}
				for _, other := range ends {
					s := estest.Given(t, transaction.Decider(), requested(kind), ended(kind, end))
					if other == end {
						s.When(settle(other)).ThenNothing()
					} else {
						s.When(settle(other)).ThenRefused("TRANSACTION_ENDED")
					}
				}
			})
		}
	}
	for _, end := range ends {
		estest.Given(t, transaction.Decider()).When(settle(end)).ThenRefused("TRANSACTION_NOT_FOUND")
	}
	for _, wrong := range []transaction.Status{"", "cancelled"} {
		if facts, err := transaction.Decider().Decide(stateAfter(t, []es.Fact{requested(transaction.Transfer)}), settle(wrong)); err == nil || facts != nil {
			t.Errorf("settled as %q: %v", wrong, facts)
		}
	}
	knownReason(t, "TRANSACTION_ENDED")
	knownReason(t, "TRANSACTION_NOT_FOUND")
}

func TestRequestedTypes(t *testing.T) {
	if got := strings.Join(transaction.RequestedTypes(), " "); got != "TopupRequested WithdrawalRequested TransferRequested PaymentRequested RefundRequested HoldRequested ReleaseRequested" {
		t.Errorf("got %s", got)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, e := range []es.Event{
		{Type: "Vanished", Data: []byte(`{}`)}, {Type: "Transfer", Data: []byte(`{}`)}, {Type: "TransferCancelled", Data: []byte(`{}`)},
		{Type: "TransferRequested", Data: []byte(`{"amount":"fifty"}`)}, {Type: "TransferRequested", Data: []byte(`{}`)}, {Type: "TransferFailed", Data: []byte(`[]`)},
	} {
		if f, err := transaction.Decode(e); err == nil {
			t.Errorf("%s %s decodes to %+v", e.Type, e.Data, f)
		}
	}
}

func TestSnapshotOfAnotherSchemaIsThrownAway(t *testing.T) {
	for _, b := range []string{`{"schema":0,"amount":"5"}`, `{"schema":99,"amount":"5"}`, `{}`, `not JSON`} {
		if got, err := transaction.Decider().Snapshots.Restore([]byte(b)); err == nil {
			t.Errorf("%s restored to %+v", b, got)
		}
	}
}

// knownReason fails unless callers can be told the reason.
func knownReason(t *testing.T, reason string) {
	t.Helper()
	c, err := edge.Catalog()
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := c.Lookup(reason); !ok {
		t.Errorf("%s is not in the catalogue of reasons", reason)
	}
}
