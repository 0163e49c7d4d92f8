package kafka

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"

	"example.com/billing/pkg/es"
)

// state is what the log says up to an offset, on the local disk, by stream, id and position. It is written behind the log, never before it,
// and may be thrown away at any time: the log makes it anew. One writer; reads are safe beside it.
type state struct {
	db     *pebble.DB
	at     mark
	decode func([]byte) (es.Event, error)
}

// mark is how far a state is.
type mark struct {
	Log      string    `json:"log"`      // which log: another one's state is thrown away
	Next     int64     `json:"next"`     // offset behind what is in it
	Position int64     `json:"position"` // of the newest event; 0 = there is none
	Offset   int64     `json:"offset"`   // its offset
	ID       string    `json:"id"`       // its id
	Recorded time.Time `json:"recorded"` // when it was taken
}

// What the keys begin with.
const (
	keyMark     = 'm'
	keyHead     = 'h' // stream → head
	keyEvent    = 'e' // stream, version → event
	keyKept     = 'k' // stream, version → snapshot kept for good
	keyID       = 'i' // event id → key of the event
	keyPosition = 'p' // position → key of the event
)

// bloomBits is how many bits of filter each key gets: one in a hundred keys that are not there is looked for all the same.
const bloomBits = 10

// openState opens the state of a log in a directory; decode reads an event's JSON. What is there of another log, or cannot be read, is removed.
func openState(dir, log string, decode func([]byte) (es.Event, error)) (*state, error) {
	s, err := tryState(dir, log, decode)
	if err == nil {
		return s, nil
	}
	if removeErr := os.RemoveAll(dir); removeErr != nil {
		return nil, errors.Join(err, removeErr)
	}
	return tryState(dir, log, decode)
}

var errOtherLog = errors.New("the state is of another log")

func tryState(dir, log string, decode func([]byte) (es.Event, error)) (*state, error) {
	o := &pebble.Options{Logger: quiet{}}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(bloomBits) // most ids and streams that are asked for are not there
	}
	db, err := pebble.Open(dir, o)
	if err != nil {
		return nil, fmt.Errorf("open the local state: %w", err)
	}
	s := &state{db: db, at: mark{Log: log}, decode: decode}
	value, found, err := s.get([]byte{keyMark})
	if err == nil && found {
		err = json.Unmarshal(value, &s.at)
	}
	if err == nil && s.at.Log != log {
		err = errOtherLog
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

// quiet keeps Pebble's own log to its errors, which are returned too.
type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}

func (s *state) close() error { return s.db.Close() }

// get reads a key.
func (s *state) get(key []byte) (value []byte, found bool, err error) {
	v, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	value = append([]byte(nil), v...)
	return value, true, closer.Close()
}

// snapshot is a stream's state at a version, which the log does not have.
type snapshot struct {
	stream   es.Stream
	version  int64
	snapshot []byte
	keep     bool // for good
}

// apply adds events that follow what is there, up to an offset, with snapshots of their streams, oldest first.
func (s *state) apply(events []stored, snapshots []snapshot, next int64) error {
	b := s.db.NewBatch()
	defer func() { _ = b.Close() }() // what was committed stays
	heads := map[es.Stream]es.Head{}
	at := s.at
	at.Next = next
	for _, e := range events {
		h, known := heads[e.Stream]
		if !known {
			var err error
			if h, err = s.head(e.Stream); err != nil {
				return err
			}
		}
		if e.Version != h.Version+1 {
			return fmt.Errorf("%s: version %d follows %d in the log", e.Stream, e.Version, h.Version)
		}
		h.Version = e.Version
		heads[e.Stream] = h
		at.Position, at.Offset, at.ID, at.Recorded = at.Position+1, e.offset, e.ID, e.RecordedAt
		key := versionKey(keyEvent, e.Stream, e.Version)
		value := binary.BigEndian.AppendUint64(nil, uint64(at.Position)) //nolint:gosec // not negative
		value = binary.BigEndian.AppendUint64(value, uint64(e.RecordedAt.UnixMicro()))
		if err := errors.Join(b.Set(key, append(value, e.payload...), nil), b.Set(idKey(e.ID), key, nil), b.Set(positionKey(at.Position), key, nil)); err != nil {
			return err
		}
	}
	for _, t := range snapshots {
		h, known := heads[t.stream]
		if !known || t.version > h.Version {
			continue
		}
		h.Snapshot, h.SnapshotVersion = t.snapshot, t.version
		heads[t.stream] = h
		if t.keep {
			if err := b.Set(versionKey(keyKept, t.stream, t.version), t.snapshot, nil); err != nil {
				return err
			}
		}
	}
	for stream, h := range heads {
		value := binary.BigEndian.AppendUint64(nil, uint64(h.Version))          //nolint:gosec // not negative
		value = binary.BigEndian.AppendUint64(value, uint64(h.SnapshotVersion)) //nolint:gosec // not negative
		if err := b.Set(streamKey(keyHead, stream), append(value, h.Snapshot...), nil); err != nil {
			return err
		}
	}
	encoded, err := json.Marshal(at)
	if err != nil {
		return err
	}
	if err := errors.Join(b.Set([]byte{keyMark}, encoded, nil), b.Commit(pebble.NoSync)); err != nil {
		return fmt.Errorf("write the local state: %w", err)
	}
	s.at = at
	return nil
}

// head is the end of a stream; the zero head where there is none.
func (s *state) head(stream es.Stream) (h es.Head, err error) {
	value, found, err := s.get(streamKey(keyHead, stream))
	if err != nil || !found {
		return h, err
	}
	h.Version, h.SnapshotVersion = number(value), number(value[8:])
	if h.SnapshotVersion > 0 {
		h.Snapshot = value[16:]
	}
	return h, nil
}

// knows returns which of the ids are of events in the state.
func (s *state) knows(id string) (bool, error) {
	_, found, err := s.get(idKey(id))
	return found, err
}

// event reads what a key of keyEvent holds.
func (s *state) event(value []byte) (es.Event, error) {
	e, err := s.decode(value[16:])
	e.Position, e.RecordedAt = number(value), time.UnixMicro(number(value[8:])).UTC()
	return e, err
}

// load reads a stream's events above a version, at most limit of them; 0 = all.
func (s *state) load(stream es.Stream, after int64, limit int) ([]es.Event, error) {
	it, err := s.db.NewIter(&pebble.IterOptions{
		LowerBound: versionKey(keyEvent, stream, max(after, 0)+1), UpperBound: versionKey(keyEvent, stream, -1), // above every version
	})
	if err != nil {
		return nil, err
	}
	var events []es.Event
	for ok := it.First(); ok && (limit <= 0 || len(events) < limit); ok = it.Next() {
		e, err := s.event(append([]byte(nil), it.Value()...))
		if err != nil {
			return nil, errors.Join(err, it.Close())
		}
		events = append(events, e)
	}
	return events, errors.Join(it.Error(), it.Close())
}

// kept is the newest snapshot at or below a version of those kept for good.
func (s *state) kept(stream es.Stream, version int64) (h es.Head, err error) {
	if version < 1 {
		return h, nil
	}
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: versionKey(keyKept, stream, 0), UpperBound: versionKey(keyKept, stream, version+1)})
	if err != nil {
		return h, err
	}
	if it.Last() {
		key := it.Key()
		h.Version = number(key[len(key)-8:])
		h.Snapshot, h.SnapshotVersion = append([]byte(nil), it.Value()...), h.Version
	}
	return h, errors.Join(it.Error(), it.Close())
}

// byID reads an event by its id.
func (s *state) byID(id string) (e es.Event, found bool, err error) {
	return s.behind(idKey(id))
}

// byPosition reads an event by its position.
func (s *state) byPosition(position int64) (e es.Event, found bool, err error) {
	return s.behind(positionKey(position))
}

func (s *state) behind(key []byte) (e es.Event, found bool, err error) {
	at, found, err := s.get(key)
	if err != nil || !found {
		return e, false, err
	}
	value, found, err := s.get(at)
	if err == nil && !found {
		err = fmt.Errorf("the local state lacks an event that it names")
	}
	if err != nil {
		return e, false, err
	}
	e, err = s.event(value)
	return e, err == nil, err
}

// recordedFrom is the position of the first event that was recorded at or after a time; one behind the last where there is none.
func (s *state) recordedFrom(at time.Time) (int64, error) {
	low, high := int64(1), s.at.Position+1
	for low < high {
		middle := low + (high-low)/2
		e, found, err := s.byPosition(middle)
		if err != nil {
			return 0, err
		}
		if found && e.RecordedAt.Before(at) {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low, nil
}

func number(b []byte) int64 { return int64(binary.BigEndian.Uint64(b)) } //nolint:gosec // as it was written

func streamKey(kind byte, s es.Stream) []byte {
	key := make([]byte, 0, 24+len(s.Type)+len(s.ID))
	key = binary.AppendUvarint(append(key, kind), uint64(len(s.Type)))
	key = binary.AppendUvarint(append(key, s.Type...), uint64(len(s.ID)))
	return append(key, s.ID...)
}

func versionKey(kind byte, s es.Stream, version int64) []byte {
	return binary.BigEndian.AppendUint64(streamKey(kind, s), uint64(version)) //nolint:gosec // -1 is behind every other one
}

func idKey(id string) []byte { return append([]byte{keyID}, id...) }

func positionKey(position int64) []byte {
	return binary.BigEndian.AppendUint64([]byte{keyPosition}, uint64(position)) //nolint:gosec // not negative
}
