// Package ops is what operators do with event stores: compare them, copy one into another, and find out what a topic lacks.
package ops

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"iter"
	"strconv"

	"example.com/billing/pkg/es"
)

// Log is what can be read of a store: es.Store's ReadAll.
type Log interface {
	ReadAll(ctx context.Context, aggregateType string, from es.From) iter.Seq2[es.Event, error]
}

// Target is what can be copied to.
type Target interface {
	Log
	End(ctx context.Context) (int64, error)
	// Import writes events that follow what is there, as they are: positions and times included.
	Import(ctx context.Context, events []es.Event) error
}

// Digest is what a log has, in short: two logs with the same one have the same events, byte for byte, at the same positions and recorded at the same
// times.
type Digest struct {
	Events int64  // up to this position
	SHA256 string // in hex, of a line for each event: position, microseconds since 1970 of its recording, JSON
}

// String is the digest as people read it.
func (d Digest) String() string { return fmt.Sprintf("%d events, SHA-256 %s", d.Events, d.SHA256) }

// digester adds events up.
type digester struct {
	sum hash.Hash
	at  int64
}

func newDigester() *digester { return &digester{sum: sha256.New()} }

func (d *digester) add(e es.Event) error {
	if e.Position != d.at+1 {
		return fmt.Errorf("position %d follows position %d", e.Position, d.at)
	}
	payload, err := e.Encode()
	if err != nil {
		return err
	}
	d.at = e.Position
	line := strconv.AppendInt(nil, e.Position, 10)
	line = strconv.AppendInt(append(line, ' '), e.RecordedAt.UnixMicro(), 10)
	line = append(append(append(line, ' '), payload...), '\n')
	d.sum.Write(line)
	return nil
}

func (d *digester) digest() Digest {
	return Digest{Events: d.at, SHA256: hex.EncodeToString(d.sum.Sum(nil))}
}

// Progress is told how many events have been gone through.
type Progress func(what string, events int64)

// sayEvery is how many events lie between two words of progress.
const sayEvery = 100_000

func (p Progress) at(what string, events int64) {
	if p != nil && events%sayEvery == 0 {
		p(what, events)
	}
}

// DigestOf reads a log from its beginning, up to a position; 0 = to its end.
func DigestOf(ctx context.Context, log Log, end int64, say Progress) (Digest, error) {
	d := newDigester()
	for e, err := range log.ReadAll(ctx, "", es.From{}) {
		if err == nil {
			err = d.add(e)
		}
		if err != nil {
			return d.digest(), err
		}
		if say.at("read", d.at); d.at == end {
			break
		}
	}
	if d.at < end {
		return d.digest(), fmt.Errorf("the log ends at position %d, before %d", d.at, end)
	}
	return d.digest(), nil
}

// DifferError says where two logs are not the same.
type DifferError struct {
	Position      int64
	Ours, Another string // what is there
}

// Error names the position.
func (e *DifferError) Error() string {
	return fmt.Sprintf("the two differ at position %d: %s; %s", e.Position, e.Ours, e.Another)
}

// copyPage is how many events are copied at a time.
const copyPage = 2000

// Copy copies what a target lacks of a log. What it has must be the log's beginning, event by event, else nothing is written and a *DifferError
// says where they differ: a copy that was broken off goes on. At the end the target is read once more and its digest compared with what was
// read of the log. Nobody else may write to the target meanwhile.
func Copy(ctx context.Context, from Log, to Target, say Progress) (Digest, error) {
	d := newDigester()
	end, err := to.End(ctx)
	if err != nil {
		return Digest{}, err
	}
	there, stop := iter.Pull2(to.ReadAll(ctx, "", es.From{}))
	defer stop()
	var page []es.Event
	flush := func() error {
		if len(page) == 0 {
			return nil
		}
		err := to.Import(ctx, page)
		page = page[:0]
		return err
	}
	for e, err := range from.ReadAll(ctx, "", es.From{}) {
		if err == nil {
			err = d.add(e)
		}
		if err != nil {
			return d.digest(), err
		}
		if d.at <= end {
			if err := same(e, there); err != nil {
				return d.digest(), err
			}
			say.at("compared", d.at)
			continue
		}
		if page = append(page, e); len(page) == copyPage {
			if err := flush(); err != nil {
				return d.digest(), err
			}
		}
		say.at("copied", d.at)
	}
	if d.at < end {
		return d.digest(), &DifferError{d.at + 1, "nothing", fmt.Sprintf("the target goes on to position %d", end)}
	}
	if err := flush(); err != nil {
		return d.digest(), err
	}
	want := d.digest()
	got, err := DigestOf(ctx, to, want.Events, say)
	if err == nil && got != want {
		err = fmt.Errorf("the copy is not the same: it has %s, want %s", got, want)
	}
	return want, err
}

// same compares an event with the target's next one.
func same(e es.Event, next func() (es.Event, error, bool)) error {
	other, err, ok := next()
	if err != nil {
		return err
	}
	if !ok {
		return errors.New("the target's events end before its end")
	}
	ours, err := line(e)
	if err != nil {
		return err
	}
	theirs, err := line(other)
	if err != nil {
		return err
	}
	if ours != theirs {
		return &DifferError{e.Position, ours, theirs}
	}
	return nil
}

func line(e es.Event) (string, error) {
	payload, err := e.Encode()
	return fmt.Sprintf("%d %s %s", e.Position, e.RecordedAt.UTC().Format("2006-01-02T15:04:05.000000Z"), payload), err
}
