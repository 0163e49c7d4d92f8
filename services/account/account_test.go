package account_test

import (
	"testing"

	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/estest"
	"example.com/billing/services/account"
	"example.com/billing/services/edge"
)

// An account of 2 digits, what may have happened to it, and the saga of every posting here.
const saga = "11111111-1111-4111-8111-111111111111"

var d = decimal.RequireFromString

func ptr(s string) *decimal.Decimal {
	x := d(s)
	return &x
}

func amt(s string) account.Amount { return account.Amount(d(s)) }

func amtPtr(s string) *account.Amount {
	a := amt(s)
	return &a
}

// created is a USER account in USD; change alters it.
func created(change ...func(*account.Created)) account.Created {
	f := account.Created{
		OwnerID: "u-1", OwnerType: "customer", AccountType: account.User, Currency: "USD", Scale: 2, MinBalance: amtPtr("0.00"), RequestHash: "h1",
	}
	for _, c := range change {
		c(&f)
	}
	return f
}

func ofType(t account.Type) func(*account.Created) {
	return func(f *account.Created) { f.AccountType, f.MinBalance = t, nil }
}

func from(s string) func(*account.Created) {
	return func(f *account.Created) { f.MinBalance = amtPtr(s) }
}

func upTo(s string) func(*account.Created) {
	return func(f *account.Created) { f.MaxBalance = amtPtr(s) }
}

// moved is a posting on a USER account in USD.
func moved(step string, dir account.Direction, before, by, after string) account.BalanceChanged {
	transit := by
	if dir == account.Credit {
		transit = "-" + by
	}
	return account.BalanceChanged{
		PreviousBalance: amt(before), NewBalance: amt(after), ChangeAmount: amt(by), ChangeType: dir, Reason: "transfer", Currency: "USD",
		AccountType: account.User, TransitChange: amt(transit), SagaID: saga, Step: step, HeldBalance: amt("0.00"),
	}
}

func credited(s string) account.BalanceChanged {
	return moved("fund", account.Credit, "0.00", s, s)
}

func status(before, after account.Status) account.StatusChanged {
	return account.StatusChanged{PreviousStatus: before, NewStatus: after, Reason: "asked"}
}

func post(dir account.Direction, amount string, change ...func(*account.Post)) account.Post {
	p := account.Post{SagaID: saga, Step: "step", Direction: dir, Amount: d(amount), Currency: "USD", Reason: "transfer"}
	for _, c := range change {
		c(&p)
	}
	return p
}

func TestOpen(t *testing.T) {
	open := account.Open{OwnerID: "u-1", OwnerType: "customer", Type: account.User, Currency: "USD", Scale: 2, RequestHash: "h1"}
	with := func(change func(*account.Open)) account.Open {
		o := open
		change(&o)
		return o
	}
	for _, tc := range []struct {
		name string
		when account.Open
		then account.Created
	}{
		{"USER: the lower limit is 0", open, created()},
		{"USER with an overdraft", with(func(o *account.Open) { o.MinBalance = ptr("-50") }), created(from("-50.00"))},
		{"USER with an upper limit", with(func(o *account.Open) { o.MaxBalance = ptr("9.5") }), created(upTo("9.50"))},
		{"EXTERNAL: no limits", with(func(o *account.Open) { o.Type = account.External }), created(ofType(account.External))},
		{"SYSTEM: no limits", with(func(o *account.Open) { o.Type = account.System }), created(ofType(account.System))},
		{"SYSTEM: limits if given", with(func(o *account.Open) { o.Type, o.MinBalance = account.System, ptr("1") }), created(ofType(account.System), from("1.00"))},
		{"no digits", with(func(o *account.Open) { o.Scale, o.MaxBalance = 0, ptr("7") }), created(from("0"), upTo("7"), func(f *account.Created) { f.Scale = 0 })},
		{"metadata", with(func(o *account.Open) { o.Metadata = map[string]any{"vip": true} }), created(func(f *account.Created) { f.Metadata = map[string]any{"vip": true} })},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := estest.Given(t, account.Decider()).When(tc.when).Then(tc.then).State()
			if !a.Exists() || a.Status != account.Active || !a.Balance.IsZero() || a.Version != 1 || a.CreatedAt.IsZero() {
				t.Errorf("opened as %+v", a)
			}
		})
	}
	t.Run("same content again: quiet", func(t *testing.T) {
		estest.Given(t, account.Decider(), created(), credited("5.00")).When(open).ThenNothing()
	})
	t.Run("other content: refused", func(t *testing.T) {
		estest.Given(t, account.Decider(), created()).When(with(func(o *account.Open) { o.RequestHash = "h2" })).ThenRefused("IDEMPOTENCY_CONFLICT")
	})
	t.Run("a register written before does not open it", func(t *testing.T) {
		a := estest.Given(t, account.Decider(), account.PostingCancelled{SagaID: saga, Step: "step"}).When(open).Then(created()).State()
		if a.Version != 2 {
			t.Errorf("version %d", a.Version)
		}
	})
}

func TestChangeStatus(t *testing.T) {
	to := func(s account.Status) account.ChangeStatus { return account.ChangeStatus{Status: s, Reason: "asked"} }
	version := func(c account.ChangeStatus, n int64) account.ChangeStatus {
		c.ExpectedVersion = &n
		return c
	}
	active := []es.Fact{created()}
	suspended := []es.Fact{created(), status(account.Active, account.Suspended)}
	closing := []es.Fact{created(), status(account.Active, account.Closing)}
	closed := []es.Fact{created(), status(account.Active, account.Closing), status(account.Closing, account.Closed)}
	keyed := func(s account.Status) account.ChangeStatus {
		return account.ChangeStatus{Status: s, Reason: "asked", Keyed: true}
	}
	holding := []es.Fact{created(), credited("5.00")}
	for _, tc := range []struct {
		name    string
		given   []es.Fact
		when    account.ChangeStatus
		then    es.Fact // nil = quiet
		refused string
	}{
		{"active, active", active, to(account.Active), nil, ""},
		{"active, suspended", active, to(account.Suspended), status(account.Active, account.Suspended), ""},
		{"active, closed", active, to(account.Closed), status(account.Active, account.Closing), ""},
		{"closing, closed", closing, to(account.Closed), nil, ""},
		{"closing, closed, with a key", closing, keyed(account.Closed), status(account.Closing, account.Closing), ""},
		{"closing, active", closing, to(account.Active), status(account.Closing, account.Active), ""},
		{"closing, suspended", closing, to(account.Suspended), status(account.Closing, account.Suspended), ""},
		{"a hold open, closed", []es.Fact{created(from("-9.00")), held(hold1, "5.00", "0.00", "5.00")}, to(account.Closed), nil, "HOLDS_OPEN"},
		{"suspended, active", suspended, to(account.Active), status(account.Suspended, account.Active), ""},
		{"suspended, suspended", suspended, to(account.Suspended), nil, ""},
		{"suspended, closed", suspended, to(account.Closed), status(account.Suspended, account.Closing), ""},
		{"closed, active", closed, to(account.Active), nil, "STATUS_NOT_ALLOWED"},
		{"closed, suspended", closed, to(account.Suspended), nil, "STATUS_NOT_ALLOWED"},
		{"closed, closed", closed, to(account.Closed), nil, ""},
		{"closed, closed, with a key", closed, keyed(account.Closed), status(account.Closed, account.Closed), ""},
		{"money on it, closed", holding, to(account.Closed), nil, "BALANCE_NOT_ZERO"},
		{"money on it, suspended", holding, to(account.Suspended), status(account.Active, account.Suspended), ""},
		{"debts, closed", []es.Fact{created(from("-9.00")), moved("x", account.Debit, "0.00", "5.00", "-5.00")}, to(account.Closed), nil, "BALANCE_NOT_ZERO"},
		{"the version expected", active, version(to(account.Suspended), 1), status(account.Active, account.Suspended), ""},
		{"another version expected", active, version(to(account.Suspended), 2), nil, "VERSION_CONFLICT"},
		{"an older version expected", holding, version(to(account.Suspended), 1), nil, "VERSION_CONFLICT"},
		{"no account", nil, to(account.Suspended), nil, "ACCOUNT_NOT_FOUND"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			then := estest.Given(t, account.Decider(), tc.given...).When(tc.when)
			switch {
			case tc.refused != "":
				then.ThenRefused(tc.refused)
				knownReason(t, tc.refused)
			case tc.then == nil:
				then.ThenNothing()
			default:
				want := tc.when.Status
				if changed, ok := tc.then.(account.StatusChanged); ok && changed.NewStatus == account.Closing {
					want = account.Closing
				}
				if got := then.Then(tc.then).State().Status; got != want {
					t.Errorf("status %s", got)
				}
			}
		})
	}
}

func TestPostMovesMoney(t *testing.T) {
	for _, tc := range []struct {
		name  string
		given []es.Fact
		when  account.Post
		then  account.BalanceChanged
	}{
		{"credit", []es.Fact{created()}, post(account.Credit, "5"), moved("step", account.Credit, "0.00", "5.00", "5.00")},
		{"debit", []es.Fact{created(), credited("100.00")}, post(account.Debit, "50.00"), moved("step", account.Debit, "100.00", "50.00", "50.00")},
		{"debit of all", []es.Fact{created(), credited("100.00")}, post(account.Debit, "100"), moved("step", account.Debit, "100.00", "100.00", "0.00")},
		{"the smallest amount", []es.Fact{created()}, post(account.Credit, "0.01"), moved("step", account.Credit, "0.00", "0.01", "0.01")},
		{"18 digits before the point", []es.Fact{created()}, post(account.Credit, "999999999999999999.99"), moved("step", account.Credit, "0.00", "999999999999999999.99", "999999999999999999.99")},
		{"overdraft to its end", []es.Fact{created(from("-10.00"))}, post(account.Debit, "10"), moved("step", account.Debit, "0.00", "10.00", "-10.00")},
		{"credit to the maximum", []es.Fact{created(upTo("10.00")), credited("9.99")}, post(account.Credit, "0.01"), moved("step", account.Credit, "9.99", "0.01", "10.00")},
		{"credit that stays below the minimum", []es.Fact{created(from("5.00"))}, post(account.Credit, "1"), moved("step", account.Credit, "0.00", "1.00", "1.00")},
		{"debit that stays above the maximum", []es.Fact{created(upTo("5.00")), credited("9.00")}, post(account.Debit, "1"), moved("step", account.Debit, "9.00", "1.00", "8.00")},
		{"re-activated", []es.Fact{created(), status(account.Active, account.Suspended), status(account.Suspended, account.Active)}, post(account.Credit, "1"), moved("step", account.Credit, "0.00", "1.00", "1.00")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			estest.Given(t, account.Decider(), tc.given...).When(tc.when).Then(tc.then)
		})
	}
	for _, kind := range []account.Type{account.External, account.System} {
		t.Run(string(kind)+" goes below zero and up without end", func(t *testing.T) {
			s := estest.Given(t, account.Decider(), created(ofType(kind)))
			if got := s.When(post(account.Debit, "999999999999999999")).State().Balance; !got.Equal(d("-999999999999999999")) {
				t.Errorf("balance %s", got)
			}
			s.When(post(account.Credit, "999999999999999999", other("back")))
			if got := s.When(post(account.Credit, "999999999999999999", other("more"))).State().Balance; !got.Equal(d("999999999999999999")) {
				t.Errorf("balance %s", got)
			}
		})
	}
}

func other(step string) func(*account.Post) { return func(p *account.Post) { p.Step = step } }

func TestPostIsRefusedDurably(t *testing.T) {
	eur := func(p *account.Post) { p.Currency = "EUR" }
	overdraft := []es.Fact{created(from("-10.00"))}
	for _, tc := range []struct {
		name   string
		given  []es.Fact
		when   account.Post
		asked  string // amount in the register
		reason string
	}{
		{"more than it holds", []es.Fact{created(), credited("100.00")}, post(account.Debit, "100.01"), "100.01", "INSUFFICIENT_FUNDS"},
		{"a debit of nothing held", []es.Fact{created()}, post(account.Debit, "0.01"), "0.01", "INSUFFICIENT_FUNDS"},
		{"past the overdraft", overdraft, post(account.Debit, "10.01"), "10.01", "MIN_BALANCE"},
		{"below a minimum above zero", []es.Fact{created(from("5.00")), credited("6.00")}, post(account.Debit, "2"), "2.00", "MIN_BALANCE"},
		{"SYSTEM below its limit", []es.Fact{created(ofType(account.System), from("0.00"))}, post(account.Debit, "1"), "1.00", "INSUFFICIENT_FUNDS"},
		{"over the maximum", []es.Fact{created(upTo("10.00")), credited("9.00")}, post(account.Credit, "1.01"), "1.01", "MAX_BALANCE"},
		{"debit, suspended", []es.Fact{created(), credited("9.00"), status(account.Active, account.Suspended)}, post(account.Debit, "1"), "1.00", "ACCOUNT_SUSPENDED"},
		{"credit, suspended", []es.Fact{created(), status(account.Active, account.Suspended)}, post(account.Credit, "1"), "1.00", "ACCOUNT_SUSPENDED"},
		{"debit, closed", []es.Fact{created(), status(account.Active, account.Closed)}, post(account.Debit, "1"), "1.00", "ACCOUNT_CLOSED"},
		{"credit, closed", []es.Fact{created(), status(account.Active, account.Closed)}, post(account.Credit, "1"), "1.00", "ACCOUNT_CLOSED"},
		{"another currency", []es.Fact{created(), credited("9.00")}, post(account.Debit, "1", eur), "1.00", "CURRENCY_MISMATCH"},
		{"no account", nil, post(account.Credit, "1.00"), "1.00", "ACCOUNT_NOT_FOUND"},
		{"more digits than the currency", []es.Fact{created()}, post(account.Credit, "1.001"), "1.001", "INVALID_ARGUMENT"},
		{"zero", []es.Fact{created()}, post(account.Credit, "0"), "0.00", "INVALID_ARGUMENT"},
		{"below zero", []es.Fact{created()}, post(account.Credit, "-1"), "-1.00", "INVALID_ARGUMENT"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			knownReason(t, tc.reason)
			before := estest.Given(t, account.Decider(), tc.given...)
			then := before.When(tc.when)
			// The sentence for people is free; everything else of the register is not.
			a := then.State()
			_, facts := decide(t, tc.given, tc.when)
			f, ok := facts[0].(account.PostingRefused)
			if !ok || f.ErrorMessage == "" {
				t.Fatalf("register %+v", facts[0])
			}
			then.Then(account.PostingRefused{
				ChangeAmount: amt(tc.asked), ChangeType: tc.when.Direction, Currency: tc.when.Currency, SagaID: saga, Step: "step",
				ErrorReason: tc.reason, ErrorMessage: f.ErrorMessage,
			})
			if a.Version != int64(len(tc.given)+1) {
				t.Errorf("version %d", a.Version)
			}
			r, ok := account.ReadRegister(f)
			if !ok || r.Outcome != account.Refused || r.Reason != tc.reason || r.Message != f.ErrorMessage || !r.Amount.Equal(tc.when.Amount) {
				t.Errorf("register reads as %+v", r)
			}
		})
	}
}

// decide returns the state after the history, and the facts a command leads to.
func decide(t *testing.T, given []es.Fact, c account.Command) (account.Account, []es.Fact) {
	t.Helper()
	dec := account.Decider()
	a := dec.Initial()
	for i, f := range given {
		a = dec.Evolve(a, f, es.Occurred{Version: int64(i + 1)})
	}
	facts, err := dec.Decide(a, c)
	if err != nil {
		t.Fatal(err)
	}
	return a, facts
}

func TestCancelWritesATombstone(t *testing.T) {
	tombstone := account.PostingCancelled{SagaID: saga, Step: "step"}
	for name, given := range map[string][]es.Fact{
		"active": {created()}, "suspended": {created(), status(account.Active, account.Suspended)},
		"closed": {created(), status(account.Active, account.Closed)}, "no account": nil,
	} {
		t.Run(name, func(t *testing.T) {
			before, _ := decide(t, given, account.Cancel{})
			after := estest.Given(t, account.Decider(), given...).When(account.Cancel{SagaID: saga, Step: "step"}).Then(tombstone).State()
			if !after.Balance.Equal(before.Balance) || after.Status != before.Status {
				t.Errorf("%+v became %+v", before, after)
			}
		})
	}
	if r, ok := account.ReadRegister(tombstone); !ok || r.Outcome != account.Cancelled {
		t.Errorf("register reads as %+v", r)
	}
}

// The money has nowhere else to go.
func TestRollbackIsNeverRefused(t *testing.T) {
	undo := func(dir account.Direction, amount string) account.Rollback {
		return account.Rollback{SagaID: saga, Step: "step", Direction: dir, Amount: d(amount), Reason: "transfer"}
	}
	for _, tc := range []struct {
		name  string
		given []es.Fact
		when  account.Rollback
		then  account.BalanceChanged
	}{
		{"of a debit", []es.Fact{created(), credited("5.00")}, undo(account.Debit, "3.00"), moved("step", account.Credit, "5.00", "3.00", "8.00")},
		{"of a credit", []es.Fact{created(), credited("5.00")}, undo(account.Credit, "3.00"), moved("step", account.Debit, "5.00", "3.00", "2.00")},
		{"over the maximum", []es.Fact{created(upTo("5.00")), credited("5.00")}, undo(account.Debit, "3.00"), moved("step", account.Credit, "5.00", "3.00", "8.00")},
		{"below the minimum", []es.Fact{created()}, undo(account.Credit, "3.00"), moved("step", account.Debit, "0.00", "3.00", "-3.00")},
		{"suspended", []es.Fact{created(), status(account.Active, account.Suspended)}, undo(account.Debit, "3.00"), moved("step", account.Credit, "0.00", "3.00", "3.00")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before, _ := decide(t, tc.given, tc.when)
			if after := estest.Given(t, account.Decider(), tc.given...).When(tc.when).Then(tc.then).State(); after.Status != before.Status {
				t.Errorf("status %s became %s", before.Status, after.Status)
			}
		})
	}
}

// An account that was closed while its money was in transit gets it back, and is no longer closed: the money must be able to
// leave again.
func TestRollbackOpensAClosedAccount(t *testing.T) {
	rolledBack := account.StatusChanged{PreviousStatus: account.Closed, NewStatus: account.Suspended, Reason: "money came back by step"}
	s := estest.Given(t, account.Decider(), created(), status(account.Active, account.Closed))
	s.When(account.Rollback{SagaID: saga, Step: "step", Direction: account.Debit, Amount: d("3.00"), Reason: "transfer"}).
		Then(moved("step", account.Credit, "0.00", "3.00", "3.00"), rolledBack)
	s.When(account.ChangeStatus{Status: account.Closed, Reason: "again"}).ThenRefused("BALANCE_NOT_ZERO")
	s.When(account.ChangeStatus{Status: account.Active, Reason: "pay out"}).
		Then(account.StatusChanged{PreviousStatus: account.Suspended, NewStatus: account.Active, Reason: "pay out"})
}

func TestReadRegister(t *testing.T) {
	r, ok := account.ReadRegister(moved("step", account.Debit, "100.00", "50.00", "50.00"))
	if !ok || r.Outcome != account.Done || r.NewBalance != "50.00" || r.Direction != account.Debit || !r.Amount.Equal(d("50")) || r.Currency != "USD" {
		t.Errorf("done reads as %+v", r)
	}
	for _, f := range []es.Fact{created(), status(account.Active, account.Closed)} {
		if r, ok := account.ReadRegister(f); ok {
			t.Errorf("%s reads as the register %+v", f.EventType(), r)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, e := range []es.Event{
		{Type: "Vanished", Data: []byte(`{}`)}, {Type: "BalanceChanged", Data: []byte(`{"newBalance":"ten"}`)}, {Type: "AccountCreated", Data: []byte(`[]`)},
	} {
		if f, err := account.Decode(e); err == nil {
			t.Errorf("%s %s decodes to %+v", e.Type, e.Data, f)
		}
	}
}

func TestSnapshotOfAnotherSchemaIsThrownAway(t *testing.T) {
	for _, b := range []string{`{"schema":0,"balance":"5"}`, `{"schema":99,"balance":"5"}`, `{}`, `not JSON`} {
		if a, err := account.Decider().Snapshots.Restore([]byte(b)); err == nil {
			t.Errorf("%s restored to %+v", b, a)
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
