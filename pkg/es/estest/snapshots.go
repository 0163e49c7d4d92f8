package estest

import (
	"fmt"
	"testing"

	"example.com/billing/pkg/es"
)

func testSnapshots(t *testing.T, s es.Store) {
	st, none := newStream(), newStream()
	mustAppend(t, s, es.Append{Stream: st, Events: events(st, 0, 2), Snapshot: []byte("two")})
	mustAppend(t, s, es.Append{Stream: st, Expected: 2, Events: events(st, 2, 1)})
	heads, err := s.Heads(t.Context(), []es.Stream{none, st})
	if err != nil {
		t.Fatal(err)
	}
	if heads[0].Version != 0 || heads[0].Snapshot != nil {
		t.Errorf("unknown stream: %+v", heads[0])
	}
	if h := heads[1]; h.Version != 3 || string(h.Snapshot) != "two" || h.SnapshotVersion != 2 {
		t.Errorf("head %+v, want version 3 with the snapshot of version 2", h)
	}
}

func testKeptSnapshots(t *testing.T, s es.Store) {
	const size, appends = es.SnapshotEvery*2/5 + 1, 12
	st, other := newStream(), newStream()
	versions := []int64{0} // at which a snapshot is to be kept
	for i := range int64(appends) {
		after, last := i*size, (i+1)*size
		mustAppend(t, s, es.Append{Stream: st, Expected: after, Events: events(st, after, size), Snapshot: fmt.Append(nil, last)})
		if after/es.SnapshotEvery != last/es.SnapshotEvery {
			versions = append(versions, last)
		}
	}
	mustAppend(t, s, es.Append{Stream: other, Events: events(other, 0, es.SnapshotEvery)}) // has none
	for i, v := range versions {
		next := int64(appends * size)
		if i+1 < len(versions) {
			next = versions[i+1] - 1
		}
		for _, at := range []int64{v, v + 1, next} {
			h, err := s.Snapshot(t.Context(), st, at)
			if err != nil || h.Version != v || h.SnapshotVersion != v || v > 0 && string(h.Snapshot) != fmt.Sprint(v) {
				t.Errorf("at version %d: %d, %q (%v), want the snapshot of version %d", at, h.SnapshotVersion, h.Snapshot, err, v)
			}
		}
	}
	if h, err := s.Snapshot(t.Context(), other, es.SnapshotEvery); err != nil || h.Version != 0 || h.Snapshot != nil {
		t.Errorf("of a stream without snapshots: %+v, %v", h, err)
	}
}
