package orchestrator

import (
	"encoding/json"
	"testing"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/saga"
)

func TestGoldenEvents(t *testing.T) {
	bare := ended(saga.Failed)
	bare.CausedBy, bare.Metadata = "", nil
	for name, s := range map[string]saga.State{
		"SagaCompleted": ended(saga.Completed), "SagaFailed": failedLate(), "SagaFailed.bare": bare, "SagaCompensated": ended(saga.Compensated),
	} {
		e, err := EndedEvent(s)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, e)
	}
}

// failedLate has every field of a failed saga filled, as no saga of three steps has.
func failedLate() saga.State {
	s := ended(saga.Failed)
	s.CurrentStep, s.Results = 1, ended(saga.Compensated).Results
	return s
}

// What was published once decodes for ever, and encodes to the same bytes.
func TestGoldenEventsDecode(t *testing.T) {
	for name, b := range goldens(t) {
		e, err := es.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		var d endedData
		if err := json.Unmarshal(e.Data, &d); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if e.Data, err = es.Marshal(d); err != nil {
			t.Fatal(err)
		}
		if again, err := e.Encode(); err != nil || string(again) != string(b) {
			t.Errorf("%s (%v)\nbecame %s\n   was %s", name, err, again, b)
		}
	}
}
