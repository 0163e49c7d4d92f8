package account_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/estest"
	"example.com/billing/pkg/es/memory"
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
		e := es.Event{
			ID: es.EventID(stream, name, 0), Stream: stream, Version: 7, At: time.Date(2025, 12, 9, 12, 0, 0, 123e6, time.UTC), CorrelationID: "corr-1",
		}
		if name == "AccountCreated" {
			e.Version = 1
		}
		_, variant, _ := strings.Cut(name, ".")
		if variant != "bare" {
			e.CausationID, e.Metadata = "5e0f2b64-0d7c-4a34-8a33-0c6f3d1f9a77", map[string]any{"tenantId": "default", "actor": "ann", "sagaId": saga}
		}
		e, err := account.Decider().Schemas.Record(e, f)
		if err != nil {
			t.Fatal(err)
		}
		files.Compare(t, variant, e)
	}
}

// What was published once, in whichever schema version, loads into today's state for ever.
func TestGoldenSchemas(t *testing.T) {
	estest.TestSchemas(t, account.Decider().Schemas, files.All(t), func(t *testing.T, e es.Event) any {
		f, err := account.Decode(e)
		if err != nil {
			t.Fatal(err)
		}
		a := estest.Given(t, account.Decider(), history(f)...).Load(e)
		if c, ok := f.(account.BalanceChanged); ok && (!a.Held.Equal(decimal.Decimal(c.HeldBalance)) || !a.Balance.Equal(decimal.Decimal(c.NewBalance))) {
			t.Errorf("%s: the state has %s, of which %s held; the event says %+v", e.ID, a.Balance, a.Held, c)
		}
		return a
	})
}

// history is what comes before a published fact on its account.
func history(f es.Fact) []es.Fact {
	funded := []es.Fact{created(upTo("1000.00")), credited("100.00")}
	switch f := f.(type) {
	case account.Created:
		return nil
	case account.FundsReleased:
		return append(funded, held(hold1, "50.00", "100.00", "50.00"),
			captured("debit_customer", account.Debit, "100.00", "30.00", "70.00", hold1, "-30.00", "20.00"))
	case account.BalanceChanged:
		switch {
		case f.HoldID != "":
			return append(funded, held(hold1, "50.00", "100.00", "50.00"))
		case decimal.Decimal(f.PreviousBalance).IsZero():
			return funded[:1]
		case decimal.Decimal(f.PreviousBalance).Equal(d("50.00")):
			return append(funded, moved("debit_source", account.Debit, "100.00", "50.00", "50.00"))
		}
	}
	return funded
}

// A posting of version 1 that says nothing of holds has none; its data must have what tells the digits.
func TestUpcastBalanceChanged(t *testing.T) {
	for _, tc := range []struct{ name, data, held, err string }{
		{"nothing is held", `{"newBalance":"70.00"}`, "0.00", ""},
		{"a currency without digits", `{"newBalance":"70"}`, "0", ""},
		{"null says nothing", `{"newBalance":"70.000","heldBalance":null}`, "0.000", ""},
		{"what is said stays", `{"newBalance":"70.00","heldBalance":"20.00"}`, "20.00", ""},
		{"no balance", `{"reason":"transfer"}`, "", "newBalance: is missing"},
		{"a balance that is no text", `{"newBalance":70}`, "", "newBalance: json: cannot unmarshal number into Go value of type string"},
		{"no object", `[]`, "", "json: cannot unmarshal array into Go value of type es.Fields"},
		{"null", `null`, "", "the data is null, not an object"},
	} {
		f, err := account.Decode(es.Event{ID: "e-1", Type: "BalanceChanged", Data: []byte(tc.data)})
		if tc.err != "" {
			if want := "event e-1 (BalanceChanged of schema version 1): upcast from 1 to 2: " + tc.err; err == nil || err.Error() != want {
				t.Errorf("%s: %v, want %s", tc.name, err, want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
		} else if got := f.(account.BalanceChanged).HeldBalance; !strings.Contains(string(mustMarshal(t, got)), `"`+tc.held+`"`) {
			t.Errorf("%s: held %s, want %s", tc.name, mustMarshal(t, got), tc.held)
		}
	}
}

// An account that was written in schema version 1 goes on: its old postings answer as today's do, and new ones follow.
func TestAStreamOfVersionOneGoesOn(t *testing.T) {
	store, stream := memory.New(), es.Stream{Type: account.AggregateType, ID: saga}
	var events []es.Event
	for i, data := range []string{string(mustMarshal(t, created())), `{"previousBalance":"0.00","newBalance":"100.00","changeAmount":"100.00","changeType":"CREDIT",` +
		`"reason":"topup","currency":"USD","accountType":"USER","transitChange":"-100.00","sagaId":"` + saga + `","step":"credit_destination"}`} {
		events = append(events, es.Event{
			ID: es.EventID(stream, "old", i), Type: []string{"AccountCreated", "BalanceChanged"}[i], Stream: stream, Version: int64(i + 1),
			At: time.Unix(0, 0).UTC(), Data: []byte(data),
		})
	}
	events[1].ID = es.EventID(stream, "saga/credit_destination", 0)
	if err := store.Append(t.Context(), es.Append{Stream: stream, Events: events}); err != nil {
		t.Fatal(err)
	}
	x, err := es.NewExecutor(account.Decider(), store, es.ExecutorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	execute := func(key string, c account.Command) account.Register {
		t.Helper()
		out, err := x.Execute(t.Context(), es.Command[account.Command]{ID: key, StreamID: stream.ID, Key: key, At: time.Unix(1, 0), Body: c})
		if err != nil {
			t.Fatal(err)
		}
		f, err := account.Decode(out.Events[0])
		if err != nil {
			t.Fatal(err)
		}
		r, _ := account.ReadRegister(f)
		return r
	}
	if r := execute("saga/credit_destination", post(account.Credit, "100.00")); r.Outcome != account.Done || r.NewBalance != "100.00" || r.Available != "100.00" {
		t.Errorf("the old posting, asked for again: %+v", r)
	}
	if r := execute("saga/place_hold", place("60.00")); r.Outcome != account.Done || r.Available != "40.00" {
		t.Errorf("a hold: %+v", r)
	}
	if r := execute("saga/debit_source", post(account.Debit, "30.00")); r.Outcome != account.Done || r.NewBalance != "70.00" || r.Available != "10.00" {
		t.Errorf("a new posting: %+v", r)
	}
	stored, err := store.Load(t.Context(), stream, 0, 0)
	if err != nil || len(stored) != 4 || stored[1].SchemaVersion != 0 || stored[3].SchemaVersion != 2 ||
		!strings.HasSuffix(string(stored[3].Data), `"heldBalance":"60.00"}`) {
		t.Errorf("%+v, %v", stored, err)
	}
}

func mustMarshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := es.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The data of BalanceChanged begins with the five keys that every reader may rely on.
func TestGoldenBalanceChangedBegins(t *testing.T) {
	e, err := es.Decode(files.All(t)["BalanceChanged.v2"])
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

func TestGoldenManifest(t *testing.T) { files.CheckManifest(t) }

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
