package kafka

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"example.com/billing/pkg/es"
)

// state is what the log says up to an offset, on the local disk, by stream, id and position. It is written behind the log, never before it,
// and may be thrown away at any time: the log makes it anew. One writer; reads are safe beside it.
type state struct {
	db      *pebble.DB
	lock    io.Closer // of the directory
	closed  sync.Once
	failure *failure
	at      mark
	decode  func([]byte) (es.Event, error)
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

// openState opens the state of a log in a directory; decode reads an event's JSON. It removes only what is proved to be of another log,
// or broken. Any other error (a held lock, no file handles, a full disk) says nothing about what is there, and leaves it.
func openState(dir, log string, decode func([]byte) (es.Event, error)) (*state, error) {
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	s, err := tryState(dir, log, decode)
	if errors.Is(err, errOtherLog) || errors.Is(err, errUnreadable) || pebble.IsCorruptionError(err) {
		if err = os.RemoveAll(dir); err == nil { //nolint:gosec // the folder that the settings name
			s, err = tryState(dir, log, decode)
		}
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	s.lock = lock
	return s, nil
}

var (
	errOtherLog   = errors.New("the state is of another log")
	errUnreadable = errors.New("the state is broken")
)

// lockDir keeps other processes from a directory. The lock is beside the directory, so that it is held while the directory is removed.
func lockDir(dir string) (io.Closer, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil { //nolint:gosec // as Pebble makes its own
		return nil, fmt.Errorf("open the local state: %w", err)
	}
	lock, err := vfs.Default.Lock(dir + ".lock")
	if err != nil {
		return nil, fmt.Errorf("lock the local state in %s: %w: if another process uses this folder, stop it or give this one"+
			" a folder of its own; nothing was changed", dir, err)
	}
	return lock, nil
}

func tryState(dir, log string, decode func([]byte) (es.Event, error)) (*state, error) {
	failure := &failure{broken: make(chan struct{})}
	o := &pebble.Options{Logger: failure}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(bloomBits) // most ids and streams that are asked for are not there
	}
	db, err := pebble.Open(dir, o)
	if err != nil {
		return nil, fmt.Errorf("open the local state in %s: %w", dir, err)
	}
	s := &state{db: db, failure: failure, at: mark{Log: log}, decode: decode}
	value, found, err := s.get([]byte{keyMark})
	if err == nil && found {
		if err = json.Unmarshal(value, &s.at); err != nil {
			err = fmt.Errorf("%w: %w", errUnreadable, err)
		}
	}
	if err == nil && s.at.Log != log {
		err = errOtherLog
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

// failure is Pebble's logger. Pebble reports here what it cannot go on after. That must not end the process: the state is
// not used any more, and the leader steps down.
type failure struct {
	once   sync.Once
	broken chan struct{} // closed with the first one
	cause  error         // set before broken is closed
}

func (*failure) Infof(string, ...any)  {}
func (*failure) Errorf(string, ...any) {} // these errors are returned too

// Fatalf keeps the first failure. It returns, since it may be called under Pebble's locks.
func (f *failure) Fatalf(format string, args ...any) {
	f.once.Do(func() {
		f.cause = fmt.Errorf("%w: "+format, append([]any{errState}, args...)...)
		close(f.broken)
	})
}

// err is the first failure, or nil.
func (f *failure) err() error {
	select {
	case <-f.broken:
		return f.cause
	default:
		return nil
	}
}

// close may be called again: a state that could not be made anew is closed already.
func (s *state) close() (err error) {
	s.closed.Do(func() { err = errors.Join(s.db.Close(), s.lock.Close()) })
	return err
}

// get reads a key.
func (s *state) get(key []byte) (value []byte, found bool, err error) {
	if err := s.failure.err(); err != nil {
		return nil, false, err
	}
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
	if err := s.failure.err(); err != nil {
		return err
	}
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
	if err := errors.Join(b.Set([]byte{keyMark}, encoded, nil), b.Commit(pebble.NoSync), s.failure.err()); err != nil {
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
	return events, errors.Join(it.Error(), it.Close(), s.failure.err())
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
	return h, errors.Join(it.Error(), it.Close(), s.failure.err())
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
