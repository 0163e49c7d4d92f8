package kafka

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"example.com/billing/pkg/es"
)

func storedEvent(t *testing.T, stream es.Stream, version int64) stored {
	t.Helper()
	e := es.Event{ID: uuid.NewString(), Type: "X", Stream: stream, Version: version, At: time.Now(), CorrelationID: "c", Data: []byte(`{}`), RecordedAt: time.Now()}
	payload, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return stored{Event: e, payload: payload, offset: version - 1}
}

func stateOf(t *testing.T, dir string) (*state, es.Stream) {
	t.Helper()
	s, err := openState(dir, "log-1", es.Decode)
	if err != nil {
		t.Fatal(err)
	}
	stream := es.Stream{Type: "Account", ID: uuid.NewString()}
	if err := s.apply([]stored{storedEvent(t, stream, 1)}, nil, 1); err != nil {
		t.Fatal(err)
	}
	return s, stream
}

// A second process on the same folder is refused, also where it would look for another log, and the first one goes on.
func TestASecondProcessLeavesTheStateAlone(t *testing.T) {
	if dir := os.Getenv("STATE_DIR"); dir != "" {
		_, err := openState(dir, os.Getenv("STATE_LOG"), es.Decode)
		if err == nil || !strings.Contains(err.Error(), dir) {
			t.Fatalf("a folder in use: %v", err)
		}
		return
	}
	dir := filepath.Join(t.TempDir(), "topic")
	s, stream := stateOf(t, dir)
	for _, log := range []string{"log-1", "log-2"} {
		c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestASecondProcessLeavesTheStateAlone$")
		c.Env = append(os.Environ(), "STATE_DIR="+dir, "STATE_LOG="+log)
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", log, err, out)
		}
	}
	if err := errors.Join(s.apply([]stored{storedEvent(t, stream, 2)}, nil, 2), s.close()); err != nil {
		t.Fatal(err)
	}
	s, err := openState(dir, "log-1", es.Decode)
	if err != nil {
		t.Fatal(err)
	}
	if s.at.Position != 2 {
		t.Errorf("position %d after a second process, want 2", s.at.Position)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
}

// An error that does not prove the state broken removes nothing: here a file in place of the folder.
func TestAnErrorOfTheSystemRemovesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "topic")
	if err := os.WriteFile(dir, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := openState(dir, "log-1", es.Decode); err == nil {
		t.Error("a file was opened as a folder", s.close())
	}
	if b, err := os.ReadFile(dir); err != nil || string(b) != "keep" {
		t.Errorf("the file holds %q, %v", b, err)
	}
}

// A fatal report of Pebble is an error of everything that follows, not the end of the process.
func TestAFatalReportIsAnError(t *testing.T) {
	s, stream := stateOf(t, filepath.Join(t.TempDir(), "topic"))
	s.failure.Fatalf("MANIFEST flush failed: %v", os.ErrPermission)
	s.failure.Fatalf("a second report")
	_, headErr := s.head(stream)
	_, loadErr := s.load(stream, 0, 0)
	for what, err := range map[string]error{"apply": s.apply(nil, nil, 2), "head": headErr, "load": loadErr} {
		if !errors.Is(err, errState) || !strings.Contains(err.Error(), "MANIFEST") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
}
