package auditor

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/shopspring/decimal"
)

// transaction is what the events of a transaction come to.
type transaction struct {
	id, kind, status      string
	source, destination   string
	amount                decimal.Decimal
	currency, key, reason string
	payment, hold         string // that it refunds, or captures or releases
	holdStatus            string // of a hold
	cause                 string
	version               int64

	reserved, used decimal.Decimal            // of a payment by its refunds, of a hold by its captures
	under          map[string]decimal.Decimal // reservations under way, by transaction
}

// endings are what the names of events say of a transaction's end.
var endings = map[string]string{"Completed": "completed", "Failed": "failed", "Compensated": "compensated"}

// kindsOfTransactions are the beginnings of the events' names.
var kindsOfTransactions = map[string]string{
	"Transfer": "transfer", "Topup": "topup", "Withdrawal": "withdrawal", "Payment": "payment", "Refund": "refund", "Hold": "hold", "Release": "release",
}

// named splits an event's name: TransferRequested is a transfer and Requested.
func named(eventType string) (kind, what string) {
	for prefix, kind := range kindsOfTransactions {
		if what, ok := strings.CutPrefix(eventType, prefix); ok {
			return kind, what
		}
	}
	return "", eventType
}

// transactionEvent folds one event of a transaction and checks it against what was before.
func (x *audit) transactionEvent(e event, d data) {
	t := x.txs[e.AggregateID]
	if t == nil {
		t = &transaction{id: e.AggregateID, under: map[string]decimal.Decimal{}}
		x.txs[t.id] = t
	}
	t.version = e.Version
	kind, what := named(e.Type)
	if what == "Placed" {
		what = "Completed"
	}
	if what == "Requested" {
		if t.kind != "" {
			x.wrong("outcome", e.what(), "the transaction was there already")
		}
		*t = transaction{
			id: t.id, kind: kind, status: "pending", source: d.SourceID, destination: d.DestinationID, amount: d.Amount, currency: d.Currency, key: d.IdempotencyKey,
			payment: d.PaymentID, hold: d.HoldID, cause: d.Cause, version: e.Version, under: map[string]decimal.Decimal{},
		}
		if kind == "hold" {
			t.holdStatus = "pending"
		}
		return
	}
	if t.kind == "" || kind != t.kind {
		x.wrong("outcome", e.what(), "on a transaction that is a %q", t.kind)
	}
	switch end, ended := endings[what]; {
	case ended:
		if t.status != "pending" {
			x.wrong("outcome", e.what(), "the transaction was %s already", t.status)
		}
		if t.status, t.reason = end, d.ErrorReason; kind == "hold" {
			t.holdStatus = map[string]string{"completed": "active", "failed": "failed"}[end]
		}
	case what == "ReleaseStarted":
		t.holdStatus = "releasing"
	case what == "Released":
		t.holdStatus = map[string]string{"void": "voided", "expiry": "expired"}[d.Cause]
	default:
		x.reservation(t, e, d, what)
	}
}

// reservation is a refund that takes its part of a payment, or a capture its part of a hold, and what comes of that.
func (x *audit) reservation(t *transaction, e event, d data, what string) {
	switch what {
	case "RefundReserved", "CaptureReserved":
		if _, twice := t.under[d.TransactionID]; twice {
			x.wrong("money", e.what(), "%s reserves twice", d.TransactionID)
		}
		t.under[d.TransactionID] = d.Amount
		t.reserved = t.reserved.Add(d.Amount)
	case "Refunded", "Captured", "RefundCancelled", "CaptureCancelled":
		if under, ok := t.under[d.TransactionID]; !ok || !under.Equal(d.Amount) {
			x.wrong("money", e.what(), "%s of %s were reserved, not %s", under, d.TransactionID, d.Amount)
		}
		delete(t.under, d.TransactionID)
		t.reserved = t.reserved.Sub(d.Amount)
		if !strings.HasSuffix(what, "Cancelled") {
			t.used = t.used.Add(d.Amount)
		}
		if t.kind == "hold" && t.used.Equal(t.amount) {
			t.holdStatus = "captured"
		}
	default:
		x.wrong("outcome", e.what(), "is of a type that the auditor does not know")
	}
	if t.reserved.Add(t.used).GreaterThan(t.amount) {
		x.wrong("money", e.what(), "%s are reserved and %s used of %s", t.reserved, t.used, t.amount)
	}
}

// transactionState is the JSON of a transaction in transaction_view.
type transactionState struct {
	Type, Status   string
	Source         string `json:"sourceAccountId"`
	Destination    string `json:"destinationAccountId"`
	Currency       string
	IdempotencyKey string
	ErrorReason    string
	PaymentID      string
	HoldID         string
	HoldStatus     string
	Version        int64
	Amount         decimal.Decimal
	Reserved, Used decimal.Decimal
}

// differs says whether an encoded state differs from the transaction.
func (t *transaction) differs(encoded []byte) bool {
	var s transactionState
	if err := json.Unmarshal(encoded, &s); err != nil {
		return true
	}
	numbers := s.Amount.Equal(t.amount) && s.Reserved.Equal(t.reserved) && s.Used.Equal(t.used)
	s.Amount, s.Reserved, s.Used = decimal.Decimal{}, decimal.Decimal{}, decimal.Decimal{} // == is not for numbers
	want := transactionState{
		Type: t.kind, Status: t.status, Source: t.source, Destination: t.destination, Currency: t.currency, IdempotencyKey: t.key, ErrorReason: t.reason,
		PaymentID: t.payment, HoldID: t.hold, HoldStatus: t.holdStatus, Version: t.version,
	}
	return !numbers || s != want
}

// transactionTables compares transaction_view, transaction_pending and hold_open with the events.
func (x *audit) transactionTables(ctx context.Context, tx pgx.Tx) error {
	type shown struct {
		version                                                          int64
		kind, status, source, destination, currency, payment, holdStatus string
		amount, encoded                                                  string
	}
	views, err := collect(ctx, tx, `SELECT id::text, version, type, status, source_id::text, coalesce(destination_id::text, ''), currency, coalesce(payment_id::text, ''), hold_status,
		trim_scale(amount)::text, convert_from(state, 'UTF8') FROM transaction_view`,
		func(r pgx.CollectableRow) (id string, s shown, err error) {
			err = r.Scan(&id, &s.version, &s.kind, &s.status, &s.source, &s.destination, &s.currency, &s.payment, &s.holdStatus, &s.amount, &s.encoded)
			return id, s, err
		})
	if err != nil {
		return err
	}
	holds, err := ids(ctx, tx, `SELECT id::text FROM hold_open`)
	if err != nil {
		return err
	}
	pending, err := ids(ctx, tx, `SELECT id::text FROM transaction_pending`)
	if err != nil {
		return err
	}
	for id, t := range x.txs {
		x.checked("rows of transaction_view", 1)
		expect(x, "read model", "hold_open "+id, "being there", holds[id], t.holdStatus == "active")
		expect(x, "read model", "transaction_pending "+id, "being there", pending[id], t.status == "pending")
		got := views[id]
		want := shown{t.version, t.kind, t.status, t.source, t.destination, t.currency, t.payment, t.holdStatus, t.amount.String(), got.encoded}
		if got != want || t.differs([]byte(got.encoded)) {
			x.wrong("read model", "transaction_view "+id, "%+v, want %+v", got, want)
		}
		delete(views, id)
		delete(holds, id)
		delete(pending, id)
	}
	for id := range views {
		x.wrong("read model", "transaction_view "+id, "there is no such transaction")
	}
	for id := range holds {
		x.wrong("read model", "hold_open "+id, "there is no such hold")
	}
	for id := range pending {
		x.wrong("read model", "transaction_pending "+id, "there is no such transaction")
	}
	return nil
}
