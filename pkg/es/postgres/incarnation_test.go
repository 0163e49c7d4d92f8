package postgres_test

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/pgtest"
)

// loseBehind makes a database what a standby that lagged would be after its promotion: without what was committed behind a position,
// and with an identity of its own. Another identity in the recorded row is the same as another one of the database.
func loseBehind(t *testing.T, pool *pgxpool.Pool, position int64) {
	t.Helper()
	exec(t, pool, `WITH gone AS (DELETE FROM es_event WHERE position > $1 RETURNING stream_id, stream_type),
		heads AS (UPDATE es_head h SET version = (SELECT count(*) FROM es_event e WHERE e.stream_id = h.stream_id AND e.position <= $1)
			WHERE (h.stream_id, h.stream_type) IN (SELECT * FROM gone))
		DELETE FROM outbox_batch WHERE to_position > $1`, position)
	exec(t, pool, `DELETE FROM es_head WHERE version = 0`)
	exec(t, pool, `UPDATE es_incarnation SET identity = 'the old primary/' || number WHERE number = (SELECT max(number) FROM es_incarnation)`)
}

// Nothing is appended upon versions that were seen in a history that the database does not have any more, even where the numbers are equal.
func TestAnotherHistoryRefusesWhatWasDecidedInTheOldOne(t *testing.T) {
	_, pool := open(t)
	one, other := postgres.New(pool, postgres.Options{}), postgres.New(pool, postgres.Options{})
	st := stream("a")
	if err := one.Append(t.Context(), after(st, 0, 3)); err != nil {
		t.Fatal(err)
	}
	if err := other.Append(t.Context(), after(stream("b"), 0, 1)); err != nil { // it knows the old history
		t.Fatal(err)
	}
	old, err := other.Incarnation(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var told []postgres.Incarnation
	one.WatchIncarnations(func(i postgres.Incarnation) { told = append(told, i) })
	loseBehind(t, pool, 2)
	var unavailable *es.UnavailableError
	if err := one.Append(t.Context(), after(st, 2, 1)); !errors.As(err, &unavailable) { // decided before it is known: asked again
		t.Fatalf("decided in the old history: %v", err)
	}
	if len(told) != 1 || told[0].Number != old+1 || told[0].FromPosition != 2 || told[0].KnownTo != 3 || told[0].Lost() != 1 {
		t.Errorf("told of %+v, want incarnation %d from position 2, with position 3 lost", told, old+1)
	}
	if err := one.Append(t.Context(), after(st, 2, 1)); err != nil {
		t.Fatalf("decided in the present history: %v", err)
	}
	ctx := es.WithIncarnation(t.Context(), old) // the other one read version 3 in the old history, and the present one has a version 3 too
	for name, a := range map[string]es.Append{"an event": after(st, 3, 1), "a look at the version": {Stream: st, Expected: 3}} {
		if err := other.Append(ctx, a); !errors.As(err, &unavailable) {
			t.Errorf("%s upon a version of the old history: %v", name, err)
		}
	}
	lost, err := one.Unrecovered(t.Context())
	if err != nil || len(lost) != 1 || lost[0].KnownTo != 4 { // the other one knew position 4
		t.Errorf("lost %+v (%v)", lost, err)
	}
	if err := one.Recovered(t.Context(), lost[0].Number); err != nil {
		t.Fatal(err)
	}
	if lost, err := one.Unrecovered(t.Context()); err != nil || len(lost) != 0 {
		t.Errorf("recovered, and lost %+v (%v)", lost, err)
	}
}

// A change of history that lost nothing goes unnoticed by callers but for one repeat.
func TestAHistoryThatLostNothingGoesOn(t *testing.T) {
	s, pool := open(t)
	if err := s.Append(t.Context(), after(stream("a"), 0, 3)); err != nil {
		t.Fatal(err)
	}
	loseBehind(t, pool, 3)
	pgtest.Eventually(t, "the new history is noticed", func() bool {
		return s.CheckIncarnation(t.Context()) == nil && number(t, pool, `SELECT max(number) FROM es_incarnation`) == 2
	})
	if err := s.Append(t.Context(), after(stream("a"), 3, 1)); err != nil {
		t.Error(err)
	}
	if lost, err := s.Unrecovered(t.Context()); err != nil || len(lost) != 0 {
		t.Errorf("lost %+v (%v)", lost, err)
	}
}

// What is remembered for the relay, and what tells of others' commits, belongs to one history.
func TestMemoryOfTheOldHistoryIsDropped(t *testing.T) {
	s, pool := open(t)
	if err := s.Append(t.Context(), after(stream("a"), 0, 5)); err != nil {
		t.Fatal(err)
	}
	loseBehind(t, pool, 2)
	if err := s.Append(t.Context(), after(stream("b"), 0, 1)); err == nil {
		t.Fatal("appended without a look at the history")
	}
	if err := s.Append(t.Context(), after(stream("b"), 0, 1)); err != nil {
		t.Fatal(err)
	}
	events, _ := s.Recent(2, 2, 10)
	if len(events) != 1 || events[0].Position != 3 || events[0].Stream != stream("b") {
		t.Errorf("remembered behind position 2: %+v", events)
	}
	if events, whole := s.Recent(1, 2, 10); len(events) != 0 || whole {
		t.Errorf("a relay of the old history gets %+v, whole %v", events, whole)
	}
}

// The database's clock is not recorded where it is far ahead of what was recorded last and of the writer's clock: the time would stay on
// all that follows.
func TestAClockThatIsFarAheadIsRefused(t *testing.T) {
	_, pool := open(t)
	for _, tc := range []struct {
		last, writer string
		refused      bool
	}{
		{"-1 hour", "-1 hour", true}, {"-1 hour", "0", false}, {"0", "-1 hour", false}, {"-1 hour", "1 hour", false}, {"1 hour", "-1 hour", false},
	} {
		var at time.Time
		err := pool.QueryRow(t.Context(), `SELECT es_clock(clock_timestamp() + $1::interval, clock_timestamp() + $2::interval)`, tc.last, tc.writer).Scan(&at)
		if (err != nil) != tc.refused {
			t.Errorf("last %s, writer %s: %v, %v", tc.last, tc.writer, at, err)
		}
	}
}
