package orchestrator

import (
	"strings"
	"testing"

	"example.com/billing/pkg/es/estest"
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
		_, variant, _ := strings.Cut(name, ".")
		files.Compare(t, variant, e)
	}
}

// What was published once, in whichever schema version, is read for ever.
func TestGoldenSchemas(t *testing.T) { estest.TestSchemas(t, schemas, files.All(t), nil) }

var files = goldentest.New()

func TestGoldenEnvelopes(t *testing.T) { files.CheckEnvelopes(t) }

func TestGoldenManifest(t *testing.T) { files.CheckManifest(t) }

func TestGoldenContract(t *testing.T) { files.CheckContract(t) }
