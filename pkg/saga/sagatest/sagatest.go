// Package sagatest tests stores of saga states against their contract.
package sagatest

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"example.com/billing/pkg/page"
	"example.com/billing/pkg/saga"
)

// TestStateStore is the contract of saga.Store. open returns a store that no other test writes to.
func TestStateStore(t *testing.T, open func(t *testing.T) saga.Store) {
	for _, tc := range []struct {
		name string
		run  func(*testing.T, saga.Store)
	}{
		{"keeps everything of a state", testRoundTrip},
		{"inserts a saga once", testInsert},
		{"lets one of many concurrent inserts through", testInsertRace},
		{"saves under the stored revision", testSave},
		{"gives each saved state its own result", testSaveResults},
		{"ends a saga once", testEnd},
		{"lets one of many concurrent writers through", testSaveRace},
		{"does not know what was never inserted", testUnknown},
		{"finds sagas by id: which there are, which have ended, which are an epoch's", testByID},
		{"lists the newest first, by status and type, page by page", testList},
		{"lists what is unfinished", testUnfinished},
		{"lists and counts by what sagas are about", testFilters},
		{"leases epochs, and fences those that ended", testLease},
		{"gives an ended epoch's sagas to another, and refuses its late writes", testClaim},
		{"shares claims between engines", testClaimRace},
		{"lets sleeping sagas lie", testSleep},
		{"lets a person's write go before an engine's", testOverride},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, open(t)) })
	}
}

// start is when the sagas of a test began: long ago, so that all of them are idle.
var start = time.Date(2025, 12, 9, 12, 0, 0, 0, time.UTC)

// newState is a saga that began n seconds after start.
// tenant is the tenant of every saga here but one.
const tenant = "t-1"

func newState(n int) saga.State {
	at := start.Add(time.Duration(n) * time.Second)
	return saga.State{
		SagaID: uuid.NewString(), SagaType: "transfer", Definition: 1, Status: saga.InProgress, Steps: []string{"debit", "credit"},
		Input: json.RawMessage(`{"amount":"1.00"}`), CorrelationID: "c-1", CausedBy: "e-1", Metadata: map[string]any{"tenantId": tenant}, CreatedAt: at, UpdatedAt: at,
	}
}

func mustInsert(t *testing.T, s saga.Store, states ...saga.State) {
	t.Helper()
	added, err := s.Insert(t.Context(), states)
	if err != nil || len(added) != len(states) {
		t.Fatalf("inserted %d of %d: %v", len(added), len(states), err)
	}
}

func mustSave(t *testing.T, s saga.Store, states ...saga.State) {
	t.Helper()
	if err := errors.Join(s.Save(t.Context(), states)...); err != nil {
		t.Fatal(err)
	}
}

// check fails the test unless the store holds exactly this state.
func check(t *testing.T, s saga.Store, want saga.State) {
	t.Helper()
	got, err := s.Get(t.Context(), want.SagaID)
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, want)
}

func same(t *testing.T, got, want saga.State) {
	t.Helper()
	a, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if string(a) != string(b) {
		t.Errorf("state\n got %s\nwant %s", a, b)
	}
}

func ids(states []saga.State) []string {
	out := make([]string, len(states))
	for i, st := range states {
		out[i] = st.SagaID
	}
	return out
}

func placeIDs(places []page.Cursor) []string {
	var out []string
	for _, p := range places {
		out = append(out, p.ID)
	}
	return out
}

func testRoundTrip(t *testing.T, s saga.Store) {
	st := newState(0)
	st.Metadata = map[string]any{"tenantId": "t-1", "n": 1.5}
	mustInsert(t, s, st)
	st.Revision = 1
	check(t, s, st)
	st.Status, st.CurrentStep, st.Undone = saga.Compensating, 1, 1
	st.Results = map[string]json.RawMessage{"debit": json.RawMessage(`{"newBalance":"9.00"}`)}
	st.ErrorReason, st.ErrorMessage = "ACCOUNT_CLOSED", "Zürich \u2028 \"closed\""
	st.Actions = []saga.Compensation{{Action: "debit_rollback", Result: json.RawMessage(`{"a":1}`), Timestamp: start.Add(time.Millisecond)}, {Action: "x", Timestamp: start}}
	st.Timeline = []saga.Entry{{Type: saga.EntryStarted, At: start}, {Type: saga.EntryRefused, Action: "credit", Reason: "NO", Message: "No.", At: start}}
	st.UpdatedAt = start.Add(1234 * time.Millisecond)
	mustSave(t, s, st)
	st.Revision = 2
	check(t, s, st)
}

func testInsert(t *testing.T, s saga.Store) {
	a, b, c := newState(0), newState(1), newState(2)
	mustInsert(t, s, a)
	other, twice := a, b
	other.CorrelationID, twice.CorrelationID = "another", "another"
	added, err := s.Insert(t.Context(), []saga.State{other, b, twice, c})
	if err != nil || !slices.Equal(ids(added), []string{b.SagaID, c.SagaID}) {
		t.Fatalf("added %v (%v), want the two new ones", ids(added), err)
	}
	for i, want := range []saga.State{b, c} {
		want.Revision = 1
		same(t, added[i], want)
		check(t, s, want)
	}
	a.Revision = 1
	check(t, s, a)
	if added, err := s.Insert(t.Context(), nil); len(added) != 0 || err != nil {
		t.Errorf("nothing: %v, %v", added, err)
	}
	mustSave(t, s, a)
	if added, err := s.Insert(t.Context(), []saga.State{other}); len(added) != 0 || err != nil {
		t.Errorf("a saga that has moved on: %v, %v", added, err)
	}
	a.Revision = 2
	check(t, s, a)
}

func testInsertRace(t *testing.T, s saga.Store) {
	states := []saga.State{newState(0), newState(1), newState(2)}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		added = map[string]int{}
	)
	for i := range 12 {
		wg.Go(func() {
			mine := slices.Clone(states)
			if i%2 == 1 {
				slices.Reverse(mine)
			}
			got, err := s.Insert(t.Context(), mine)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, id := range ids(got) {
				added[id]++
			}
		})
	}
	wg.Wait()
	for _, st := range states {
		if n := added[st.SagaID]; n != 1 {
			t.Errorf("saga %s was new to %d callers", st.SagaID, n)
		}
	}
}

func testSave(t *testing.T, s saga.Store) {
	st := newState(0)
	mustInsert(t, s, st)
	for _, tc := range []struct {
		revision int64
		stale    bool
	}{{0, true}, {2, true}, {1, false}, {1, true}, {3, true}, {2, false}} {
		st.Revision = tc.revision
		st.CurrentStep++
		err := s.Save(t.Context(), []saga.State{st})[0]
		if errors.Is(err, saga.ErrStale) != tc.stale || !tc.stale && err != nil {
			t.Errorf("revision %d: %v", tc.revision, err)
		}
		if err == nil {
			want := st
			want.Revision++
			check(t, s, want)
		}
	}
}

func testSaveResults(t *testing.T, s saga.Store) {
	a, b, unknown := newState(0), newState(1), newState(2)
	mustInsert(t, s, a, b)
	a.Revision, b.Revision, unknown.Revision = 1, 9, 0
	again := a
	again.Revision, again.CurrentStep = 2, 2 // builds on a, in the same call
	a.CurrentStep = 1
	errs := s.Save(t.Context(), []saga.State{a, b, again, unknown})
	if len(errs) != 4 || errs[0] != nil || !errors.Is(errs[1], saga.ErrStale) || errs[2] != nil || !errors.Is(errs[3], saga.ErrStale) {
		t.Fatalf("results %v", errs)
	}
	again.Revision = 3
	check(t, s, again)
	b.Revision = 1
	check(t, s, b)
	if _, err := s.Get(t.Context(), unknown.SagaID); !errors.Is(err, saga.ErrNotFound) {
		t.Errorf("a state that was never inserted was stored: %v", err)
	}
	if errs := s.Save(t.Context(), nil); len(errs) != 0 {
		t.Errorf("nothing: %v", errs)
	}
}

func testEnd(t *testing.T, s saga.Store) {
	for _, status := range []saga.Status{saga.Completed, saga.Compensated, saga.Failed} {
		st := newState(0)
		mustInsert(t, s, st)
		st.Revision, st.Status = 1, status
		mustSave(t, s, st)
		if err := s.Save(t.Context(), []saga.State{st})[0]; !errors.Is(err, saga.ErrStale) {
			t.Errorf("%s again: %v, want %v", status, err, saga.ErrStale)
		}
		late := st
		late.Status = saga.InProgress
		if err := s.Save(t.Context(), []saga.State{late})[0]; !errors.Is(err, saga.ErrStale) {
			t.Errorf("a late write after %s: %v, want %v", status, err, saga.ErrStale)
		}
		st.Revision = 2
		check(t, s, st)
	}
}

// testSaveRace: writers race for every revision, the last of which ends the saga; each has exactly one winner.
func testSaveRace(t *testing.T, s saga.Store) {
	const writers, rounds = 16, 4
	st := newState(0)
	mustInsert(t, s, st)
	for r := int64(1); r <= rounds; r++ {
		var (
			wg   sync.WaitGroup
			mu   sync.Mutex
			wins []int
		)
		for w := range writers {
			wg.Go(func() {
				mine := st
				mine.Revision, mine.CurrentStep = r, w
				if r == rounds {
					mine.Status = saga.Completed
				}
				err := s.Save(t.Context(), []saga.State{mine})[0]
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					wins = append(wins, w)
				} else if !errors.Is(err, saga.ErrStale) {
					t.Errorf("neither saved nor stale: %v", err)
				}
			})
		}
		wg.Wait()
		if len(wins) != 1 {
			t.Fatalf("revision %d has %d winners", r, len(wins))
		}
		if got, err := s.Get(t.Context(), st.SagaID); err != nil || got.CurrentStep != wins[0] || got.Revision != r+1 {
			t.Fatalf("revision %d is %d's, want %d's (%v)", got.Revision, got.CurrentStep, wins[0], err)
		}
	}
}

func testUnknown(t *testing.T, s saga.Store) {
	if st, err := s.Get(t.Context(), uuid.NewString()); !errors.Is(err, saga.ErrNotFound) || st.SagaID != "" {
		t.Errorf("%+v, %v", st, err)
	}
}

func testList(t *testing.T, s saga.Store) {
	var all []saga.State
	for i := range 12 {
		st := newState(i / 3) // three at a time
		st.SagaType = []string{"transfer", "topup"}[i%2]
		all = append(all, st)
	}
	mustInsert(t, s, all...)
	for i := range all {
		all[i].Revision = 1
		if i%4 == 0 {
			all[i].Status = saga.Completed
			mustSave(t, s, all[i])
			all[i].Revision = 2
		}
	}
	slices.SortFunc(all, func(a, b saga.State) int {
		if c := b.CreatedAt.Compare(a.CreatedAt); c != 0 {
			return c
		}
		return strings.Compare(b.SagaID, a.SagaID)
	})
	other := newState(1000)
	other.Metadata = map[string]any{"tenantId": "t-2"}
	mustInsert(t, s, other)
	for _, f := range []saga.Filter{{}, {Status: saga.Completed}, {Type: "topup"}, {Status: saga.InProgress, Type: "transfer"}, {Status: saga.Failed}, {Type: "refund"}} {
		var want []saga.State
		for _, st := range all {
			if (f.Status == "" || st.Status == f.Status) && (f.Type == "" || st.SagaType == f.Type) {
				want = append(want, st)
			}
		}
		for limit := 1; limit <= len(want)+1; limit += 2 {
			f.TenantID, f.Limit, f.Before = tenant, limit, page.Cursor{}
			var got []saga.State
			for {
				batch, err := s.List(t.Context(), f)
				if err != nil || len(batch) > limit {
					t.Fatalf("%+v: %d sagas, %v", f, len(batch), err)
				}
				got = append(got, batch...)
				if len(batch) < limit || len(got) > len(all) {
					break
				}
				last := batch[len(batch)-1]
				f.Before = page.Cursor{CreatedAt: last.CreatedAt, ID: last.SagaID}
			}
			if !slices.Equal(ids(got), ids(want)) {
				t.Fatalf("%+v\n got %v\nwant %v", f, ids(got), ids(want))
			}
			for i := range got {
				same(t, got[i], want[i])
			}
		}
	}
}

func testUnfinished(t *testing.T, s saga.Store) {
	var want []string
	for i, status := range append(saga.Statuses(), saga.InProgress, saga.Compensating) {
		st := newState(i)
		mustInsert(t, s, st)
		st.Revision, st.Status = 1, status
		mustSave(t, s, st)
		if status == saga.InProgress || status == saga.Compensating {
			want = append(want, st.SagaID)
		}
	}
	busy := newState(100)
	busy.UpdatedAt = time.Now().UTC().Truncate(time.Millisecond)
	mustInsert(t, s, busy)
	for _, tc := range []struct {
		idle  time.Duration
		limit int
		want  []string
	}{
		{time.Hour, 100, want}, {time.Hour, 3, want[:3]}, {0, 100, append(slices.Clone(want), busy.SagaID)}, {100 * 365 * 24 * time.Hour, 100, nil},
	} {
		got, err := s.Unfinished(t.Context(), 0, tc.idle, page.Cursor{}, tc.limit)
		if err != nil || !slices.Equal(placeIDs(got), tc.want) {
			t.Errorf("idle for %v, %d at most: %v (%v), want %v", tc.idle, tc.limit, placeIDs(got), err, tc.want)
		}
	}
	// Page by page, each behind the last.
	var (
		after page.Cursor
		got   []string
	)
	for {
		batch, err := s.Unfinished(t.Context(), 0, 0, after, 2)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, placeIDs(batch)...)
		if len(batch) < 2 || len(got) > len(want)+1 {
			break
		}
		after = batch[1]
	}
	if all := append(slices.Clone(want), busy.SagaID); !slices.Equal(got, all) {
		t.Errorf("page by page: %v, want %v", got, all)
	}
}
