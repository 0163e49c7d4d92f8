package account_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"example.com/billing/pkg/es"
	"example.com/billing/services/account"
	"example.com/billing/services/edge/goldentest"
)

// published are the account's events, by the name of their golden file.
func published() map[string]es.Fact {
	rollback := moved("credit_source_rollback", account.Credit, "50.00", "50.00", "100.00")
	rollback.Reason = "transfer_rollback"
	return map[string]es.Fact{
		"AccountLimitsChanged": account.LimitsChanged{
			PreviousMinBalance: amtPtr("0.00"), PreviousMaxBalance: amtPtr("100.00"), MinBalance: amtPtr("-50.00"), MaxBalance: amtPtr("500.00"), Reason: "good customer",
		},
		"AccountCreated": created(upTo("1000.00"), func(f *account.Created) {
			f.Metadata, f.RequestHash = map[string]any{"plan": "<gold> & more", "seats": 3}, "9b74c9897bac770ffc029102a200c5de"
		}),
		"BalanceChanged":        moved("debit_source", account.Debit, "100.00", "50.00", "50.00"),
		"BalanceChanged.credit": moved("credit_destination", account.Credit, "0.00", "100.00", "100.00"),
		"BalanceChanged.bare":   rollback,
		"PostingRefused": account.PostingRefused{
			ChangeAmount: amt("250.50"), ChangeType: account.Debit, Currency: "USD", SagaID: saga, Step: "debit_source",
			ErrorReason: "INSUFFICIENT_FUNDS", ErrorMessage: "The account holds 100.00 USD, less than 250.50.",
		},
		"BalanceChanged.capture": captured("debit_customer", account.Debit, "100.00", "30.00", "70.00", hold1, "-30.00", "20.00"),
		"FundsHeld":              held(hold1, "50.00", "100.00", "50.00"),
		"FundsReleased":          released(hold1, "20.00", "70.00", "0.00"),
		"PostingCancelled":       account.PostingCancelled{SagaID: saga, Step: "credit_destination"},
		"AccountStatusChanged":   status(account.Active, account.Suspended),
	}
}

func TestGoldenEvents(t *testing.T) {
	stream := es.Stream{Type: account.AggregateType, ID: "7f3c2a10-5b1e-4c8e-9f25-6a8d3b1c4e01"}
	for name, f := range published() {
		data, err := es.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		version := int64(7)
		if name == "AccountCreated" {
			version = 1
		}
		e := es.Event{
			ID: es.EventID(stream, name, 0), Type: f.EventType(), Stream: stream, Version: version, At: time.Date(2025, 12, 9, 12, 0, 0, 123e6, time.UTC),
			CorrelationID: "corr-1", Data: data,
		}
		if !strings.HasSuffix(name, ".bare") {
			e.CausationID, e.Metadata = "5e0f2b64-0d7c-4a34-8a33-0c6f3d1f9a77", map[string]any{"tenantId": "default", "actor": "ann", "sagaId": saga}
		}
		files.Compare(t, name, e)
	}
}

// What was published once decodes for ever, and encodes to the same bytes.
func TestGoldenEventsDecode(t *testing.T) {
	for name, b := range files.All(t) {
		e, err := es.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		f, err := account.Decode(e)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if e.Data, err = es.Marshal(f); err != nil {
			t.Fatal(err)
		}
		if again, err := e.Encode(); err != nil || string(again) != string(b) || f.EventType() != e.Type {
			t.Errorf("%s (%v)\nbecame %s\n   was %s", name, err, again, b)
		}
	}
}

// The data of BalanceChanged begins with the five keys that every reader may rely on.
func TestGoldenBalanceChangedBegins(t *testing.T) {
	e, err := es.Decode(files.All(t)["BalanceChanged"])
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"previousBalance":"100.00","newBalance":"50.00","changeAmount":"50.00","changeType":"DEBIT","reason":"transfer",`
	if !strings.HasPrefix(string(e.Data), want) {
		t.Errorf("data %s", e.Data)
	}
}

var files = goldentest.New()

func TestGoldenEnvelopes(t *testing.T) { files.CheckEnvelopes(t) }

func TestGoldenContract(t *testing.T) { files.CheckContract(t) }

// An event of a newer version's type is no fault of the event's: whoever folds it is told to ask again.
func TestANewerTypeIsUnknown(t *testing.T) {
	d := account.Decider()
	root := d.New()
	err := d.Replay(&root, es.Event{Type: "Newer", Stream: es.Stream{Type: d.Type, ID: "x"}, Version: 1, Data: []byte(`{}`)})
	var unknown *es.UnknownTypeError
	if !errors.As(err, &unknown) || unknown.Type != "Newer" || !unknown.Unavailable() {
		t.Errorf("got %v", err)
	}
}
