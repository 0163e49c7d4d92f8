package filestore

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/estest"
	"example.com/billing/pkg/es/ops"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(context.Background()) })
	return s
}

func TestStore(t *testing.T) {
	estest.TestStore(t, func(t *testing.T) es.Store { return open(t, t.TempDir()) })
}

// What was appended is there after the file is opened again; half a line at its end is not.
func TestOpenedAgain(t *testing.T) {
	dir, st := t.TempDir(), es.Stream{Type: "Test", ID: "a"}
	s := open(t, dir)
	happened := func(s es.Store, v int64) {
		t.Helper()
		e := es.Event{ID: time.Now().String(), Type: "Happened", Stream: st, Version: v + 1, At: time.Now(), CorrelationID: "c", Data: []byte("{}")}
		if err := s.Append(t.Context(), es.Append{Stream: st, Expected: v, Events: []es.Event{e}}); err != nil {
			t.Fatal(err)
		}
	}
	for v := range int64(3) {
		happened(s, v)
	}
	want, err := ops.DigestOf(t.Context(), s, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Append(t.Context(), es.Append{Stream: st, Expected: 3}); err == nil {
		t.Error("appended to a closed file")
	}
	file, err := os.OpenFile(filepath.Join(dir, "events.jsonl"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString(`{"recordedAt":"20`); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir)
	if got, err := ops.DigestOf(t.Context(), again, 0, nil); err != nil || got != want {
		t.Errorf("it has %s (%v), want %s", got, err, want)
	}
	happened(again, 3)
	if events, err := open(t, dir).Load(t.Context(), st, 0, 0); err != nil || len(events) != 4 {
		t.Errorf("%d events (%v), want 4", len(events), err)
	}
}
