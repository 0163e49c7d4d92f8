package transaction_test

import (
	"strings"
	"testing"
	"time"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/estest"
	"example.com/billing/services/edge/goldentest"
	"example.com/billing/services/transaction"
)

// published are the transactions' events, by the name of their golden file.
func published() map[string]es.Fact {
	events := map[string]es.Fact{}
	for _, kind := range types() {
		for _, f := range []es.Fact{
			requested(kind), ended(kind, transaction.Completed), ended(kind, transaction.Failed), ended(kind, transaction.Compensated),
		} {
			events[f.EventType()] = f
		}
	}
	bare := requested(transaction.Transfer)
	bare.Reference, bare.Metadata = nil, nil
	events["TransferRequested.bare"] = bare
	return events
}

func TestGoldenEvents(t *testing.T) {
	stream := es.Stream{Type: transaction.AggregateType, ID: saga}
	for name, f := range published() {
		estest.RoundTrip(t, transaction.Decider(), f)
		data, err := es.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		e := es.Event{
			ID: es.EventID(stream, name, 0), Type: f.EventType(), Stream: stream, Version: 2, At: time.Date(2025, 12, 9, 12, 0, 0, 123e6, time.UTC),
			CorrelationID: "corr-1", Data: data,
		}
		if strings.HasSuffix(e.Type, "Requested") {
			e.Version = 1
		}
		if !strings.HasSuffix(name, ".bare") {
			e.CausationID, e.Metadata = "5e0f2b64-0d7c-4a34-8a33-0c6f3d1f9a77", map[string]any{"tenantId": "default", "actor": "ann"}
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
		f, err := transaction.Decode(e)
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

var files = goldentest.New()

func TestGoldenEnvelopes(t *testing.T) { files.CheckEnvelopes(t) }

func TestGoldenContract(t *testing.T) { files.CheckContract(t) }
