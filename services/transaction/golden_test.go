package transaction_test

import (
	"errors"
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
	hold, holdBare := holdRequested(), holdRequested()
	hold.DefaultExpiry = true
	holdBare.DestinationID, holdBare.Reference, holdBare.Metadata = "", nil, nil
	refund, capture, release := refundRequested("40.00", true), captureRequested("40.00", true), releaseRequested("60.00", transaction.Void)
	refund.Metadata, capture.Metadata, capture.Reference = map[string]any{"month": "May"}, map[string]any{"month": "May"}, ref("rent")
	release.Reason = ref("cancelled")
	final := reservation(transaction.Hold, transaction.Paid, "40.00")
	final.Final = true
	for name, f := range map[string]es.Fact{
		"RefundRequested": refund, "RefundRequested.bare": refundRequested("40.00", false), "PaymentRequested.capture": capture, "ReleaseRequested": release,
		"ReleaseRequested.bare": releaseRequested("60.00", transaction.Expiry), "HoldRequested": hold, "HoldRequested.bare": holdBare,
		"HoldCaptured.final": final, "HoldReleaseStarted": transaction.ReleaseStarted{TransactionID: saga, Cause: transaction.Void},
		"HoldReleased": transaction.Released{TransactionID: saga, Cause: transaction.Expiry},
	} {
		events[name] = f
	}
	for _, f := range []es.Fact{
		ended(transaction.Refund, transaction.Completed), ended(transaction.Refund, transaction.Failed), ended(transaction.Refund, transaction.Compensated),
		ended(transaction.Hold, transaction.Completed), ended(transaction.Hold, transaction.Failed), ended(transaction.Release, transaction.Completed),
		reservation(transaction.Payment, transaction.Taken, "40.00"), reservation(transaction.Payment, transaction.Paid, "40.00"),
		reservation(transaction.Payment, transaction.Cancelled, "40.00"), reservation(transaction.Hold, transaction.Taken, "40.00"),
		reservation(transaction.Hold, transaction.Paid, "40.00"), reservation(transaction.Hold, transaction.Cancelled, "40.00"),
	} {
		events[f.EventType()] = f
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

// An event of a newer version's type is no fault of the event's: whoever folds it is told to ask again.
func TestANewerTypeIsUnknown(t *testing.T) {
	d := transaction.Decider()
	root := d.New()
	err := d.Replay(&root, es.Event{Type: "Newer", Stream: es.Stream{Type: d.Type, ID: "x"}, Version: 1, Data: []byte(`{}`)})
	var unknown *es.UnknownTypeError
	if !errors.As(err, &unknown) || unknown.Type != "Newer" || !unknown.Unavailable() {
		t.Errorf("got %v", err)
	}
}
