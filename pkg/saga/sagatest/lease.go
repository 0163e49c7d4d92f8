package sagatest

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"example.com/billing/pkg/page"
	"example.com/billing/pkg/saga"
)

func testFilters(t *testing.T, s saga.Store) {
	var all []saga.State
	for i := range 8 {
		st := newState(i)
		st.SagaType = []string{"transfer", "topup"}[i%2]
		st.Subjects = [][]string{{"alice", "bob"}, {"bob"}, nil, {"carol", "alice"}}[i%4]
		all = append(all, st)
	}
	mustInsert(t, s, all...)
	for i := range all {
		all[i].Revision = 1
		if i >= 4 {
			all[i].Status, all[i].ErrorReason = saga.Failed, []string{"POOR", "CLOSED"}[i%2]
			mustSave(t, s, all[i])
		}
	}
	slices.Reverse(all) // the newest first
	for _, f := range []saga.Filter{
		{}, {Subject: "alice"}, {Subject: "bob", Type: "topup"}, {Subject: "nobody"}, {ErrorReason: "POOR"}, {ErrorReason: "POOR", Subject: "bob"},
		{Since: start.Add(3 * time.Second)}, {Until: start.Add(3 * time.Second)}, {Since: start.Add(2 * time.Second), Until: start.Add(6 * time.Second), Status: saga.Failed},
	} {
		f.TenantID, f.Limit = tenant, 100
		var want []string
		counts := map[saga.Count]int64{}
		for _, st := range all {
			if (f.Subject == "" || slices.Contains(st.Subjects, f.Subject)) && (f.ErrorReason == "" || st.ErrorReason == f.ErrorReason) &&
				(f.Type == "" || st.SagaType == f.Type) && (f.Status == "" || st.Status == f.Status) &&
				!st.CreatedAt.Before(f.Since) && (f.Until.IsZero() || st.CreatedAt.Before(f.Until)) {
				want = append(want, st.SagaID)
				counts[saga.Count{Type: st.SagaType, Status: st.Status, ErrorReason: st.ErrorReason}]++
			}
		}
		got, err := s.List(t.Context(), f)
		if err != nil || !slices.Equal(ids(got), want) {
			t.Errorf("%+v\n got %v (%v)\nwant %v", f, ids(got), err, want)
		}
		counted, err := s.Count(t.Context(), f)
		if err != nil || len(counted) != len(counts) {
			t.Errorf("%+v: counted %v (%v), want %v", f, counted, err, counts)
		}
		for _, c := range counted {
			oldest := got[len(got)-1].CreatedAt // of all kinds
			if n := counts[saga.Count{Type: c.Type, Status: c.Status, ErrorReason: c.ErrorReason}]; c.Sagas != n || c.Oldest.Before(oldest) {
				t.Errorf("%+v: counted %+v, want %d", f, c, n)
			}
		}
	}
}

func mustLease(t *testing.T, s saga.Store, epoch int64, ttl time.Duration) int64 {
	t.Helper()
	got, err := s.Lease(t.Context(), "test", epoch, ttl)
	if err != nil || got == 0 || epoch != 0 && got != epoch {
		t.Fatalf("lease of epoch %d: %d, %v", epoch, got, err)
	}
	return got
}

func testLease(t *testing.T, s saga.Store) {
	a := mustLease(t, s, 0, time.Hour)
	b := mustLease(t, s, 0, time.Hour)
	if a == b {
		t.Fatal("two engines have one epoch")
	}
	mustLease(t, s, a, time.Hour)
	if err := s.Release(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lease(t.Context(), "test", a, time.Hour); !errors.Is(err, saga.ErrFenced) {
		t.Errorf("an epoch that ended: %v, want %v", err, saga.ErrFenced)
	}
	mustLease(t, s, b, -time.Hour) // it ends, and nobody looks: it can be renewed
	mustLease(t, s, b, -time.Hour)
	if _, err := s.Claim(t.Context(), mustLease(t, s, 0, time.Hour), known, 1); err != nil { // now somebody has looked
		t.Fatal(err)
	}
	if _, err := s.Lease(t.Context(), "test", b, time.Hour); !errors.Is(err, saga.ErrFenced) {
		t.Errorf("an epoch that ended and whose sagas may be taken over: %v, want %v", err, saga.ErrFenced)
	}
	if c := mustLease(t, s, 0, time.Hour); c == a || c == b {
		t.Errorf("epoch %d is used again", c)
	}
}

// known are the kinds of the sagas here, and one more.
var known = []saga.DefinitionID{{Type: "other", Version: 3}, {Type: "transfer", Version: 1}}

// claim claims and wants exactly these.
func claim(t *testing.T, s saga.Store, epoch int64, limit int, want ...saga.State) {
	t.Helper()
	got, err := s.Claim(t.Context(), epoch, known, limit)
	if err != nil || !slices.Equal(ids(got), ids(want)) {
		t.Errorf("epoch %d claimed %v (%v), want %v", epoch, ids(got), err, ids(want))
	}
	for _, st := range got {
		if st.Epoch != epoch {
			t.Errorf("saga %s is of epoch %d, not %d", st.SagaID, st.Epoch, epoch)
		}
	}
}

func testClaim(t *testing.T, s saga.Store) {
	dead, alive, heir := mustLease(t, s, 0, time.Hour), mustLease(t, s, 0, time.Hour), mustLease(t, s, 0, time.Hour)
	var left []saga.State
	for i, epoch := range []int64{dead, alive, 0, dead, dead} {
		st := newState(i)
		st.Epoch = epoch
		mustInsert(t, s, st)
		left = append(left, st)
	}
	ended := newState(9)
	ended.Epoch = dead
	mustInsert(t, s, ended)
	ended.Revision, ended.Status = 1, saga.Completed
	mustSave(t, s, ended)

	newer := newState(8)
	newer.Definition = 2
	mustInsert(t, s, newer)        // an engine that does not know it leaves it to those that do
	claim(t, s, heir, 10, left[2]) // nobody's
	claim(t, s, heir, 10)
	mustLease(t, s, dead, -time.Second)
	claim(t, s, heir, 2, left[0], left[3]) // the oldest first
	late := left[0]
	late.Revision = 1
	if err := s.Save(t.Context(), []saga.State{late})[0]; !errors.Is(err, saga.ErrStale) {
		t.Errorf("a late write under the ended epoch: %v, want %v", err, saga.ErrStale)
	}
	late = left[4]
	late.Revision = 1
	mustSave(t, s, late) // nobody has taken it over yet: it is still its own
	claim(t, s, heir, 2, left[4])
	late.Revision = 2
	if err := s.Save(t.Context(), []saga.State{late})[0]; !errors.Is(err, saga.ErrStale) {
		t.Errorf("a late write under the ended epoch: %v, want %v", err, saga.ErrStale)
	}
	late.Epoch = heir
	mustSave(t, s, late)
	for epoch, want := range map[int64][]saga.State{heir: {left[0], left[2], left[3], left[4]}, alive: {left[1]}, dead: nil} {
		if got, err := s.Unfinished(t.Context(), epoch, 0, page.Cursor{}, 10); err != nil || !slices.Equal(placeIDs(got), ids(want)) {
			t.Errorf("epoch %d has %v (%v), want %v", epoch, placeIDs(got), err, ids(want))
		}
	}
}

func testByID(t *testing.T, s saga.Store) {
	epoch := mustLease(t, s, 0, time.Hour)
	asked, want := []string{uuid.NewString()}, []saga.State{}
	for i, status := range saga.Statuses() {
		for _, of := range []int64{0, epoch, epoch + 1} {
			st := newState(i)
			st.Epoch = of
			mustInsert(t, s, st)
			st.Revision, st.Status = 1, status
			mustSave(t, s, st)
			asked = append(asked, st.SagaID)
			if st.Revision, st.Epoch = 2, st.OwnerStored(); status.Ended() || of == epoch && status != saga.NeedsAttention {
				want = append(want, st)
			}
		}
	}
	sleeps := newState(9)
	sleeps.Epoch = epoch
	mustInsert(t, s, sleeps)
	sleeps.Revision, sleeps.WakeAt = 1, time.Now().Add(time.Hour)
	mustSave(t, s, sleeps)
	asked = append(asked, sleeps.SagaID)
	mustInsert(t, s, newState(10)) // nobody asks for it

	known, err := s.Known(t.Context(), asked)
	if slices.Sort(known); err != nil || !slices.Equal(known, slices.Sorted(slices.Values(asked[1:]))) {
		t.Errorf("known are %v (%v), want %v", known, err, asked[1:])
	}
	got, err := s.EndedOrOwned(t.Context(), epoch, asked)
	if found := ids(got); err != nil || !slices.Equal(slices.Sorted(slices.Values(found)), slices.Sorted(slices.Values(ids(want)))) {
		t.Errorf("found %v (%v), want %v", found, err, ids(want))
	}
	for _, st := range got {
		check(t, s, st)
	}
	for _, none := range [][]string{nil, asked[:1]} {
		known, err := s.Known(t.Context(), none)
		got, err2 := s.EndedOrOwned(t.Context(), epoch, none)
		if len(known)+len(got) > 0 || errors.Join(err, err2) != nil {
			t.Errorf("of none: %v, %v (%v)", known, got, errors.Join(err, err2))
		}
	}
}

func testClaimRace(t *testing.T, s saga.Store) {
	const sagas, engines = 60, 6
	for i := range sagas {
		mustInsert(t, s, newState(i))
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		taken = map[string]int{}
	)
	for range engines {
		epoch := mustLease(t, s, 0, time.Hour)
		wg.Go(func() {
			for {
				got, err := s.Claim(t.Context(), epoch, known, 7)
				if err != nil {
					t.Error(err)
				}
				if len(got) == 0 {
					return
				}
				mu.Lock()
				for _, st := range got {
					taken[st.SagaID]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(taken) != sagas {
		t.Errorf("%d of %d sagas were taken", len(taken), sagas)
	}
	for id, n := range taken {
		if n != 1 {
			t.Errorf("saga %s was taken by %d engines", id, n)
		}
	}
}

func testSleep(t *testing.T, s saga.Store) {
	epoch, other := mustLease(t, s, 0, time.Hour), mustLease(t, s, 0, time.Hour)
	long, short := newState(0), newState(1)
	long.Epoch, short.Epoch = epoch, epoch
	mustInsert(t, s, long, short)
	long.Revision, short.Revision = 1, 1
	long.WakeAt, short.WakeAt = time.Now().Add(time.Hour), time.Now().Add(-time.Second)
	mustSave(t, s, long, short)
	long.Revision = 2
	if err := s.Save(t.Context(), []saga.State{long})[0]; !errors.Is(err, saga.ErrStale) {
		t.Errorf("who put it to sleep has it no more: %v, want %v", err, saga.ErrStale)
	}
	claim(t, s, other, 10, short)
	short.Epoch, short.Revision, short.WakeAt = other, 2, time.Time{}
	mustSave(t, s, short)
	claim(t, s, epoch, 10)
}

func testOverride(t *testing.T, s saga.Store) {
	epoch, other := mustLease(t, s, 0, time.Hour), mustLease(t, s, 0, time.Hour)
	st := newState(0)
	st.Epoch = epoch
	mustInsert(t, s, st)
	st.Revision = 1
	theirs := st
	theirs.Status, theirs.ErrorReason = saga.Compensating, "STOPPED"
	if err := s.Override(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
	for _, revision := range []int64{1, 2} {
		if st.Revision = revision; !errors.Is(s.Save(t.Context(), []saga.State{st})[0], saga.ErrStale) {
			t.Errorf("the engine writes over a person's decision at revision %d", revision)
		}
	}
	if err := s.Override(t.Context(), theirs); !errors.Is(err, saga.ErrStale) {
		t.Errorf("the same decision again: %v, want %v", err, saga.ErrStale)
	}
	theirs.Revision = 2
	claim(t, s, other, 10, theirs)
	if got, err := s.Get(t.Context(), st.SagaID); err != nil || got.Status != saga.Compensating || got.ErrorReason != "STOPPED" {
		t.Errorf("%+v, %v", got, err)
	}
}
