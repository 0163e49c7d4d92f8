// Package filestore is an example of an event store of another make, plugged into the account service by its configuration: events in one
// file, a line of JSON each, and all of them in memory. It passes the same conformance suite as the others (estest.TestStore). One process at a time may
// use a file.
//
//	BILLING_EVENT_STORE=file BILLING_EVENT_STORE_DIR=/var/lib/events go run ./services/account/examples/filestore/cmd/accountd-file
package filestore

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
	"example.com/billing/services/edge"
)

// Name is what BILLING_EVENT_STORE says.
const Name = "file"

// Register gives the store its name; a main calls it before the service runs.
func Register() {
	edge.RegisterEventStore(Name, func(_ context.Context, dir string, log *slog.Logger) (es.Store, error) { return Open(dir, log) })
}

// Store is an es.Store. Safe for concurrent use.
type Store struct {
	*memory.Store // answers all that reads

	mu     sync.Mutex // of writers
	file   *os.File
	broken error // the file may lack what is in memory: nothing is written any more
}

// record is a line of the file.
type record struct {
	RecordedAt time.Time       `json:"recordedAt"`
	Event      json.RawMessage `json:"event"`
}

// Open opens the file in a folder, and reads it. A last line that was never finished is cut off: its append was never acknowledged.
func Open(dir string, log *slog.Logger) (*Store, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(dir, "events.jsonl"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600) //nolint:gosec // the settings say where
	if err != nil {
		return nil, err
	}
	s := &Store{Store: memory.New(), file: file}
	whole, err := s.read()
	if err == nil {
		err = file.Truncate(whole)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read %s: %w", file.Name(), err), file.Close())
	}
	log.Info("event file read", "file", file.Name(), "bytes", whole)
	return s, nil
}

// read reads the file's whole lines and returns where the last one ends.
func (s *Store) read() (whole int64, err error) {
	lines := bufio.NewReader(s.file)
	for position := int64(1); ; position++ {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return whole, nil
		}
		var r record
		var e es.Event
		if err == nil {
			err = json.Unmarshal(line, &r)
		}
		if err == nil {
			e, err = es.Decode(r.Event)
		}
		if err == nil {
			e.Position, e.RecordedAt = position, r.RecordedAt
			err = s.Import(context.Background(), []es.Event{e})
		}
		if err != nil {
			return whole, fmt.Errorf("line %d: %w", position, err)
		}
		whole += int64(len(line))
	}
}

// Append is es.Store's.
func (s *Store) Append(ctx context.Context, streams ...es.Append) error {
	return s.AppendBatch(ctx, [][]es.Append{streams})[0]
}

// AppendBatch is es.Store's: the events of a batch are written and flushed to the disk at once. Readers may see them a moment before that.
func (s *Store) AppendBatch(ctx context.Context, items [][]es.Append) []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return all(len(items), s.broken)
	}
	before, err := s.End(ctx)
	if err != nil {
		return all(len(items), err)
	}
	errs := s.Store.AppendBatch(ctx, items)
	if err := s.flush(context.WithoutCancel(ctx), before); err != nil {
		s.broken = &es.UnavailableError{Op: "append", Err: fmt.Errorf("%s: %w", s.file.Name(), err)}
		return all(len(items), s.broken)
	}
	return errs
}

// flush writes what memory has behind a position.
func (s *Store) flush(ctx context.Context, after int64) error {
	var b bytes.Buffer
	for e, err := range s.ReadAll(ctx, "", es.From{After: after}) {
		if err != nil {
			return err
		}
		payload, err := e.Encode()
		if err != nil {
			return err
		}
		line, err := json.Marshal(record{e.RecordedAt, payload})
		if err != nil {
			return err
		}
		b.Write(append(line, '\n'))
	}
	if b.Len() == 0 {
		return nil
	}
	if _, err := s.file.Write(b.Bytes()); err != nil {
		return err
	}
	return s.file.Sync()
}

// Close closes the file.
func (s *Store) Close(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken == nil {
		s.broken = &es.UnavailableError{Op: "append", Err: os.ErrClosed}
	}
	return s.file.Close()
}

func all(n int, err error) []error {
	errs := make([]error, n)
	for i := range errs {
		errs[i] = err
	}
	return errs
}
