package auditor

import (
	"context"
	"encoding/json"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/shopspring/decimal"
)

// account is what the events of an account come to.
type account struct {
	id, kind, currency, status, before string
	ownerID, ownerType                 string
	balance, held                      decimal.Decimal
	holds                              map[string]decimal.Decimal // what is left of each open one
	least, most                        *decimal.Decimal
	transit                            decimal.Decimal // what its postings did to money in transit
	version                            int64
}

// move is what one event did to money: a posting, or a change of what is held.
type move struct {
	account      string
	change, held decimal.Decimal
	currency     string
	hold, step   string
}

// accountEvent folds one event of an account and checks it against what was before.
func (x *audit) accountEvent(e event, d data) {
	a := x.accounts[e.AggregateID]
	if a == nil {
		a = &account{id: e.AggregateID, holds: map[string]decimal.Decimal{}}
		x.accounts[e.AggregateID] = a
	}
	a.version = e.Version
	if d.Step != "" { // every event of a step is its register: written once, in one account
		key := d.SagaID + " " + d.Step
		if other, taken := x.registers[key]; taken {
			x.wrong("register", e.what(), "step %s of %s was decided before, by %s", d.Step, d.SagaID, other)
		}
		x.registers[key] = e.what()
		x.checked("steps", 1)
	}
	switch e.Type {
	case "AccountCreated":
		if a.kind != "" {
			x.wrong("money", e.what(), "the account was there already")
		}
		a.kind, a.currency, a.status, a.ownerID, a.ownerType = d.AccountType, d.Currency, "active", d.OwnerID, d.OwnerType
		a.least, a.most = d.MinBalance, d.MaxBalance
	case "AccountStatusChanged":
		expect(x, "money", e.what(), "the status before", d.PreviousStatus, a.status)
		if d.NewStatus == "closed" && (!a.balance.IsZero() || len(a.holds) > 0) {
			x.wrong("money", e.what(), "closes the account with %s on it and %d holds", a.balance, len(a.holds))
		}
		if a.status = d.NewStatus; a.status != "closing" {
			a.before = ""
		} else if d.PreviousStatus != "closing" {
			a.before = d.PreviousStatus
		}
	case "AccountLimitsChanged":
		a.least, a.most = d.MinBalance, d.MaxBalance
	case "BalanceChanged":
		x.posting(a, e, d)
	case "FundsHeld":
		x.hold(a, e, d, d.Amount)
		x.firstLeg(a, e)
		if a.least != nil && a.balance.Sub(a.held).LessThan(*a.least) {
			x.wrong("money", e.what(), "holds more than was available: %s of %s are held, the minimum is %s", a.held, a.balance, a.least)
		}
	case "FundsReleased":
		x.hold(a, e, d, d.Amount.Neg())
	case "PostingRefused", "PostingCancelled": // they change nothing
	default:
		x.wrong("money", e.what(), "is of a type that the auditor does not know")
	}
	if a.held.IsNegative() {
		x.wrong("money", e.what(), "%s are held", a.held)
	}
	x.snapshot(a, e)
}

// posting is money that moves.
func (x *audit) posting(a *account, e event, d data) {
	change := d.Change
	if d.ChangeType == "DEBIT" {
		change = change.Neg()
	}
	switch {
	case !d.Change.IsPositive() || d.ChangeType != "DEBIT" && d.ChangeType != "CREDIT":
		x.wrong("money", e.what(), "%s of %s is no posting", d.ChangeType, d.Change)
	case !d.Previous.Equal(a.balance):
		x.wrong("money", e.what(), "starts from %s, the events before come to %s", d.Previous, a.balance)
	case !d.New.Equal(d.Previous.Add(change)):
		x.wrong("money", e.what(), "%s and %s of %s are not %s", d.Previous, d.ChangeType, d.Change, d.New)
	case !d.TransitChange.Equal(change.Neg()):
		x.wrong("money", e.what(), "the balance changes by %s, money in transit by %s", change, d.TransitChange)
	case d.Currency != a.currency || d.AccountType != a.kind:
		x.wrong("money", e.what(), "is of a %s account in %s, this one is %s in %s", d.AccountType, d.Currency, a.kind, a.currency)
	}
	// Not what the event says the balance is, but what it did to it.
	a.balance, a.transit = a.balance.Add(change), a.transit.Add(d.TransitChange)
	m := move{account: a.id, change: change, currency: d.Currency, step: d.Step}
	if d.HeldChange != nil {
		m.hold, m.held = d.HoldID, *d.HeldChange
		x.reserve(a, e, d.HoldID, *d.HeldChange)
	}
	x.told(a, e, d)
	x.moves[d.SagaID] = append(x.moves[d.SagaID], m)
	if d.rollback() {
		return // never refused
	}
	x.firstLeg(a, e)
	if change.IsNegative() && d.HoldID == "" && a.least != nil && a.balance.Sub(a.held).LessThan(*a.least) {
		x.wrong("money", e.what(), "takes more than was available: %s are left, %s of them held, the minimum is %s", a.balance, a.held, a.least)
	}
	if change.IsPositive() && a.most != nil && a.balance.GreaterThan(*a.most) {
		x.wrong("money", e.what(), "brings the balance to %s, above the maximum of %s", a.balance, a.most)
	}
}

// firstLeg: only an active account takes part.
func (x *audit) firstLeg(a *account, e event) {
	if a.status != "active" {
		x.wrong("money", e.what(), "on an account that is %q", a.status)
	}
}

// hold is an amount that is held, or given back.
func (x *audit) hold(a *account, e event, d data, change decimal.Decimal) {
	if !d.Balance.Equal(a.balance) {
		x.wrong("money", e.what(), "tells of a balance of %s, the events before come to %s", d.Balance, a.balance)
	}
	x.reserve(a, e, d.HoldID, change)
	x.told(a, e, d)
	x.moves[d.SagaID] = append(x.moves[d.SagaID], move{account: a.id, held: change, currency: d.Currency, hold: d.HoldID, step: d.Step})
}

// reserve changes what a hold reserves.
func (x *audit) reserve(a *account, e event, hold string, change decimal.Decimal) {
	left := a.holds[hold].Add(change)
	if left.IsNegative() {
		x.wrong("money", e.what(), "leaves %s of hold %s", left, hold)
	}
	if a.holds[hold] = left; left.IsZero() {
		delete(a.holds, hold)
	}
	a.held = a.held.Add(change)
}

// told: the event says what is held after it; nothing says zero.
func (x *audit) told(a *account, e event, d data) {
	told := decimal.Zero
	if d.HeldBalance != nil {
		told = *d.HeldBalance
	}
	if !told.Equal(a.held) {
		x.wrong("money", e.what(), "tells of %s held, the events come to %s", told, a.held)
	}
}

// accountState is the JSON of an account in account_view and in snapshots.
type accountState struct {
	OwnerID    string                     `json:"ownerId"`
	OwnerType  string                     `json:"ownerType"`
	Type       string                     `json:"accountType"`
	Currency   string                     `json:"currency"`
	Balance    decimal.Decimal            `json:"balance"`
	Held       decimal.Decimal            `json:"held"`
	Holds      map[string]decimal.Decimal `json:"holds"`
	MinBalance *decimal.Decimal           `json:"minBalance"`
	MaxBalance *decimal.Decimal           `json:"maxBalance"`
	Status     string                     `json:"status"`
	Before     string                     `json:"before"`
	Version    int64                      `json:"version"`
}

// differs names what of an encoded state differs from the account.
func (a *account) differs(encoded []byte) string {
	var s accountState
	if err := json.Unmarshal(encoded, &s); err != nil {
		return err.Error()
	}
	switch {
	case s.Version != a.version:
		return "the version"
	case !s.Balance.Equal(a.balance):
		return "the balance " + s.Balance.String() + ", want " + a.balance.String()
	case !s.Held.Equal(a.held) || !maps.EqualFunc(s.Holds, a.holds, decimal.Decimal.Equal):
		return "what is held"
	case s.Status != a.status || s.Before != a.before:
		return "the status " + s.Status + ", want " + a.status
	case !same(s.MinBalance, a.least) || !same(s.MaxBalance, a.most):
		return "a limit"
	case s.OwnerID != a.ownerID || s.OwnerType != a.ownerType || s.Type != a.kind || s.Currency != a.currency:
		return "what it was opened with"
	}
	return ""
}

// snapshot compares the account with the snapshot of this version, if one is kept.
func (x *audit) snapshot(a *account, e event) {
	encoded, kept := x.kept[e.stream()][e.Version]
	if !kept {
		return
	}
	x.checked("snapshots of accounts", 1)
	if what := a.differs(encoded); what != "" {
		x.wrong("snapshot", e.what(), "%s differs in %s", encoded, what)
	}
}

// accountTables compares account_view, account_closing and book_total with the events.
func (x *audit) accountTables(ctx context.Context, tx pgx.Tx) error {
	type shown struct {
		version                                             int64
		ownerID, ownerType, kind, currency, status, encoded string
	}
	views, err := collect(ctx, tx, `SELECT id::text, version, owner_id, owner_type, type, currency, status, convert_from(state, 'UTF8') FROM account_view`,
		func(r pgx.CollectableRow) (id string, s shown, err error) {
			err = r.Scan(&id, &s.version, &s.ownerID, &s.ownerType, &s.kind, &s.currency, &s.status, &s.encoded)
			return id, s, err
		})
	if err != nil {
		return err
	}
	closing, err := ids(ctx, tx, `SELECT id::text FROM account_closing`)
	if err != nil {
		return err
	}
	for id, a := range x.accounts {
		expect(x, "read model", "account_closing "+id, "being there", closing[id], a.status == "closing")
		delete(closing, id)
		if a.kind == "" {
			continue // a register on a stream that is no account
		}
		x.checked("rows of account_view", 1)
		want := shown{a.version, a.ownerID, a.ownerType, a.kind, a.currency, a.status, views[id].encoded}
		if got := views[id]; got != want {
			x.wrong("read model", "account_view "+id, "version %d, %s, want version %d, %s", got.version, got.status, want.version, want.status)
		} else if what := a.differs([]byte(got.encoded)); what != "" {
			x.wrong("read model", "account_view "+id, "its state differs in %s", what)
		}
		delete(views, id)
	}
	for id := range views {
		x.wrong("read model", "account_view "+id, "there is no such account")
	}
	for id := range closing {
		x.wrong("read model", "account_closing "+id, "there is no such account")
	}
	return x.totals(ctx, tx)
}

// sums are the books' columns of one currency.
type sums struct{ user, external, system, transit string }

// totals compares the books, which are book_total and what is not rolled up yet, with what the events come to.
func (x *audit) totals(ctx context.Context, tx pgx.Tx) error {
	rows, err := collect(ctx, tx, `SELECT currency, trim_scale(sum(user_total))::text, trim_scale(sum(external_total))::text,
		trim_scale(sum(system_total))::text, trim_scale(sum(in_transit))::text
		FROM (SELECT * FROM book_total UNION ALL SELECT currency, user_total, external_total, system_total, in_transit FROM book_delta) x GROUP BY currency`,
		func(r pgx.CollectableRow) (code string, s sums, err error) {
			err = r.Scan(&code, &s.user, &s.external, &s.system, &s.transit)
			return code, s, err
		})
	if err != nil {
		return err
	}
	for code, t := range x.byCurrency() {
		x.checked("rows of book_total", 1)
		want := sums{t["USER"].String(), t["EXTERNAL"].String(), t["SYSTEM"].String(), t["transit"].String()}
		got, posted := rows[code]
		if !posted {
			got = sums{"0", "0", "0", "0"} // the row comes with the first posting
		}
		expect(x, "read model", "book_total "+code, "the row", got, want)
		delete(rows, code)
	}
	for code := range rows {
		x.wrong("read model", "book_total "+code, "there are no accounts in it")
	}
	return nil
}

// byCurrency sums balances by type of account, and what postings did to money in transit.
func (x *audit) byCurrency() map[string]map[string]decimal.Decimal {
	out := map[string]map[string]decimal.Decimal{}
	for _, a := range x.accounts {
		if a.kind == "" {
			continue
		}
		t := out[a.currency]
		if t == nil {
			t = map[string]decimal.Decimal{}
			out[a.currency] = t
		}
		t[a.kind] = t[a.kind].Add(a.balance)
		t["transit"] = t["transit"].Add(a.transit)
	}
	return out
}

// books: no money is made or lost, and none is under way.
func (x *audit) books() {
	totals := x.byCurrency()
	for _, code := range slices.Sorted(maps.Keys(totals)) {
		t := totals[code]
		x.checked("currencies", 1)
		sum := t["USER"].Add(t["EXTERNAL"]).Add(t["SYSTEM"])
		if !sum.Add(t["transit"]).IsZero() {
			x.wrong("money", code, "all balances are %s and in transit are %s: together not zero", sum, t["transit"])
		}
		if !t["transit"].IsZero() {
			x.wrong("money", code, "%s are in transit, and nothing is under way", t["transit"])
		}
	}
}
