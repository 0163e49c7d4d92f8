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
		e := es.Event{
			ID: es.EventID(stream, name, 0), Stream: stream, Version: 2, At: time.Date(2025, 12, 9, 12, 0, 0, 123e6, time.UTC), CorrelationID: "corr-1",
		}
		if strings.HasSuffix(f.EventType(), "Requested") {
			e.Version = 1
		}
		_, variant, _ := strings.Cut(name, ".")
		if variant != "bare" {
			e.CausationID, e.Metadata = "5e0f2b64-0d7c-4a34-8a33-0c6f3d1f9a77", map[string]any{"tenantId": "default", "actor": "ann"}
		}
		e, err := transaction.Decider().Schemas.Record(e, f)
		if err != nil {
			t.Fatal(err)
		}
		files.Compare(t, variant, e)
	}
}

// What was published once, in whichever schema version, loads into today's state for ever.
func TestGoldenSchemas(t *testing.T) {
	estest.TestSchemas(t, transaction.Decider().Schemas, files.All(t), func(t *testing.T, e es.Event) any {
		f, err := transaction.Decode(e)
		if err != nil {
			t.Fatal(err)
		}
		return estest.Given(t, transaction.Decider(), history(f)...).Load(e)
	})
}

// history is what comes before a published fact in its stream.
func history(f es.Fact) []es.Fact {
	placed := []es.Fact{holdRequested(), ended(transaction.Hold, transaction.Completed)}
	switch f := f.(type) {
	case transaction.Requested:
		return nil
	case transaction.Ended:
		switch f.Type {
		case transaction.Hold:
			return placed[:1]
		case transaction.Refund:
			return []es.Fact{refundRequested("40.00", false)}
		case transaction.Release:
			return []es.Fact{releaseRequested("60.00", transaction.Void)}
		}
		return []es.Fact{requested(f.Type)}
	case transaction.Reservation:
		before := placed
		if f.On == transaction.Payment {
			before = []es.Fact{requested(transaction.Payment), ended(transaction.Payment, transaction.Completed)}
		}
		if f.Step != transaction.Taken {
			before = append(before, reservation(f.On, transaction.Taken, f.Amount))
		}
		return before
	case transaction.Released:
		return append(placed, transaction.ReleaseStarted{TransactionID: saga, Cause: f.Cause})
	}
	return placed
}

var files = goldentest.New()

func TestGoldenEnvelopes(t *testing.T) { files.CheckEnvelopes(t) }

func TestGoldenManifest(t *testing.T) { files.CheckManifest(t) }

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
