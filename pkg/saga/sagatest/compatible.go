package sagatest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/billing/pkg/saga"
)

// released is a file of Compatible: a definition as it was released, and states that sagas of it are stored in.
type released struct {
	Definition json.RawMessage `json:"definition"`
	States     []stored        `json:"states"`
}

type stored struct {
	State json.RawMessage `json:"state"`
	Next  []string        `json:"next"` // operations and actions
}

// Compatible holds definitions to what was released of them: dir has a file for each version, with its contract and the states
// that its sagas may be stored in. It fails the test if a released version is gone or says something else, or if a stored state
// no longer leads to what it led to: sagas of it may be running. A new version's file is written where write is set, and is
// never edited.
func Compatible(t *testing.T, dir string, write bool, definitions ...saga.Definition) {
	t.Helper()
	if err := Released(dir, write, definitions...); err != nil {
		t.Error(err)
	}
}

// Released is what Compatible checks, all that is wrong.
func Released(dir string, write bool, definitions ...saga.Definition) error {
	var errs []error
	known := map[string]bool{}
	for _, d := range definitions {
		name := fmt.Sprintf("%s.%d.json", d.Name, d.Version)
		known[name] = true
		path := filepath.Join(dir, name)
		b, err := os.ReadFile(path) //nolint:gosec // the caller's
		if os.IsNotExist(err) && write {
			b, err = release(path, d)
		}
		if err != nil {
			err = fmt.Errorf("%w (a new version's file is written with -update)", err)
		} else {
			err = compatible(d, b)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("saga %s version %d: %w", d.Name, d.Version, err))
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	errs = append(errs, err)
	for _, path := range files {
		if !known[filepath.Base(path)] {
			errs = append(errs, fmt.Errorf("%s was released, and there is no such definition any more: sagas of it could not go on", path))
		}
	}
	return errors.Join(errs...)
}

// release writes the file of a version: the states on the way of a saga all of whose steps are done, and of one for each step that is
// refused.
func release(path string, d saga.Definition) ([]byte, error) {
	contract, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	r := released{Definition: contract}
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, refuse := range append([]string{""}, d.StepNames()...) {
		s := saga.NewState(d, saga.Trigger{SagaID: "11111111-1111-4111-8111-111111111111", EventID: "e-1", Data: json.RawMessage(`{"amount":"1.00"}`), CorrelationID: "c-1", At: at}, at)
		for next := saga.Next(d, s); ; next = saga.Next(d, s) {
			b, err := json.Marshal(s)
			if err != nil {
				return nil, err
			}
			if !slices.ContainsFunc(r.States, func(have stored) bool { return string(have.State) == string(b) }) {
				r.States = append(r.States, stored{State: b, Next: names(next)})
			}
			if len(next) == 0 {
				break
			}
			a := saga.Answer{Outcome: saga.Done, Result: map[string]any{"did": next[0].Action}, StartedAt: at, Attempts: 1}
			if next[0].Action == refuse {
				a = saga.Answer{Outcome: saga.Refused, Reason: "NO", Message: "It may not be."}
			}
			s = saga.Apply(d, s, next[0], a, at)
		}
	}
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return nil, err
	}
	b = append(b, '\n')
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, err
	}
	return b, os.WriteFile(path, b, 0o644) //nolint:gosec // part of the source
}

func compatible(d saga.Definition, file []byte) error {
	var r released
	if err := json.Unmarshal(file, &r); err != nil {
		return err
	}
	contract, err := json.Marshal(d)
	if err != nil {
		return err
	}
	var was bytes.Buffer
	if err := json.Compact(&was, r.Definition); err != nil {
		return err
	}
	if was.String() != string(contract) {
		return fmt.Errorf("it was released as\n%s\nand is now\n%s\nwhat is to change needs a new version beside it", &was, contract)
	}
	if len(r.States) == 0 {
		return fmt.Errorf("its file has no states")
	}
	for i, have := range r.States {
		var s saga.State
		if err := json.Unmarshal(have.State, &s); err != nil {
			return fmt.Errorf("state %d can no longer be read: %w", i, err)
		}
		if next := names(saga.Next(d, s)); !slices.Equal(next, have.Next) {
			return fmt.Errorf("state %d (%s at step %d) led to %q and leads to %q now", i, s.Status, s.CurrentStep, have.Next, next)
		}
	}
	return nil
}

func names(next []saga.Decision) []string {
	out := make([]string, len(next))
	for i, did := range next {
		out[i] = strings.TrimSpace(string(did.Op) + " " + did.Action)
	}
	return out
}
