package orchestrator

import (
	"encoding/json"
	"testing"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/saga"
	"example.com/billing/services/edge/goldentest"
)

func TestGoldenEvents(t *testing.T) {
	bare := ended(saga.Failed)
	bare.CausedBy, bare.Metadata = "", nil
	for name, s := range map[string]saga.State{
		"SagaCompleted": ended(saga.Completed), "SagaFailed": ended(saga.Failed), "SagaFailed.bare": bare, "SagaCompensated": ended(saga.Compensated),
	} {
		e, err := EndedEvent(s)
		if err != nil {
			t.Fatal(err)
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

var files = goldentest.New()

func TestGoldenEnvelopes(t *testing.T) { files.CheckEnvelopes(t) }

func TestGoldenContract(t *testing.T) { files.CheckContract(t) }
