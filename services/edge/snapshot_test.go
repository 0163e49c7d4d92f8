package edge

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"example.com/billing/pkg/pgtest"
)

// A snapshot that stays open has an age, which grows; once it is gone there is none.
func TestAnOpenSnapshotHasAnAge(t *testing.T) {
	pool := pgtest.Pool(t)
	s := snapshots{pool: pool, holders: holders, now: time.Now}
	age := func() time.Duration {
		t.Helper()
		d, err := s.oldest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	tx, err := pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `SELECT 1`); err != nil {
		t.Fatal(err)
	}
	first := age()
	if second := age(); first <= 0 || second <= first {
		t.Errorf("%v, then %v", first, second)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the snapshot is gone", func() bool { return age() == 0 }) // an autovacuum may have one for a moment
}

// A slot says what it holds, and not since when: it is as old as the time since it was first seen to hold that.
func TestWhatHasNoTimeIsAsOldAsItIsKnown(t *testing.T) {
	var now time.Time
	s := snapshots{pool: pgtest.Pool(t), now: func() time.Time { return now }}
	for _, step := range []struct {
		holds string
		pass  time.Duration
		want  time.Duration
	}{
		{`('slot a', '7', NULL::timestamptz)`, 0, 0},
		{`('slot a', '7', NULL::timestamptz)`, time.Minute, time.Minute},
		{`('slot a', '7', NULL::timestamptz), ('slot b', '3', NULL)`, time.Minute, 2 * time.Minute},
		{`('slot a', '8', NULL::timestamptz), ('slot b', '3', NULL)`, time.Minute, time.Minute},
		{`('slot a', '8', NULL::timestamptz)`, time.Minute, time.Minute},
	} {
		now = now.Add(step.pass)
		s.holders = `VALUES ` + step.holds
		if got, err := s.oldest(t.Context()); err != nil || got != step.want {
			t.Errorf("%s: %v (%v), want %v", step.holds, got, err, step.want)
		}
	}
}
