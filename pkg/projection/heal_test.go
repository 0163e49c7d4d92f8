package projection_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/projection"
)

// healing is a read model beside its streams, in one database.
type healing struct {
	*fixture
	events *espg.Store
	healer *projection.Healer[balance, any]
}

func openHealing(t *testing.T, pace projection.HealerPace) *healing {
	t.Helper()
	h := &healing{fixture: open(t)}
	if err := migrate.Up(t.Context(), h.pool, espg.Migrations, espg.MigrationsTable); err != nil {
		t.Fatal(err)
	}
	h.events = espg.New(h.pool, espg.Options{})
	h.healer = projection.NewHealer(h.Projection, h.model, h.events.Load, slog.New(slog.DiscardHandler), pace)
	return h
}

// quick has a healer look as often as it can.
var quick = projection.HealerPace{PassEvery: time.Millisecond, Grace: time.Millisecond, PageMax: 3}

func (h *healing) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.healer.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// commit commits n events of a stream, each of which moves by, and returns them.
func (h *healing) commit(t *testing.T, s es.Stream, n int, by int64) []es.Event {
	t.Helper()
	events := make([]es.Event, n)
	for i := range events {
		events[i] = es.Event{
			ID: uuid.NewString(), Type: "Moved", Stream: s, Version: int64(i + 1), At: time.UnixMilli(1), CorrelationID: "c",
			Metadata: map[string]any{"tenantId": "t-1"}, Data: fmt.Appendf(nil, `{"change":%d}`, by),
		}
	}
	state, err := json.Marshal(balance{Sum: by * int64(n), Moves: int64(n)})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.events.Append(t.Context(), es.Append{Stream: s, Events: events, Snapshot: state}); err != nil {
		t.Fatal(err)
	}
	return events
}

// lose takes a stream's events from the database, as a fail-over to a standby that lags does.
func (h *healing) lose(t *testing.T, s es.Stream) {
	t.Helper()
	for _, table := range []string{"es_event", "es_head"} {
		if _, err := h.pool.Exec(t.Context(), `DELETE FROM `+table+` WHERE stream_id = $1`, s.ID); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.pool.Exec(t.Context(), `DELETE FROM outbox_batch WHERE to_position > es_end()`); err != nil { // their positions are used again
		t.Fatal(err)
	}
}

func (h *healing) shows(t *testing.T, s es.Stream, version, sum int64) func() bool {
	return func() bool {
		r := h.row(t, s)
		return r.Version == version && r.State == (balance{Sum: sum, Moves: version})
	}
}

// Messages that never come leave no row behind for good: it is made right from the store.
func TestRowsWhoseMessagesWereLostAreHealed(t *testing.T) {
	h := openHealing(t, quick)
	var right, missing, behind []es.Stream
	for range 7 { // more than a page of each
		a, b, c := newStream(), newStream(), newStream()
		if err := errors.Join(h.Handle(t.Context(), h.commit(t, a, 3, 1)), h.Handle(t.Context(), h.commit(t, b, 3, 1)[:1])); err != nil {
			t.Fatal(err)
		}
		h.commit(t, c, 2, 5)
		right, behind, missing = append(right, a), append(behind, b), append(missing, c)
	}
	h.run(t)
	for n := range right {
		pgtest.Eventually(t, "the row that was behind is right", h.shows(t, behind[n], 3, 3))
		pgtest.Eventually(t, "the row that was missing is there", h.shows(t, missing[n], 2, 10))
		if !h.shows(t, right[n], 3, 3)() {
			t.Error("a row that was right has changed")
		}
	}
	pgtest.Eventually(t, "each is counted", func() bool { return h.healer.Healed() == 14 })
}

// A row that shows what the database has lost is folded anew: also where another history has the same version by now.
func TestRowsOfALostHistoryAreHealed(t *testing.T) {
	h := openHealing(t, quick)
	shorter, same, gone := newStream(), newStream(), newStream()
	for _, s := range []es.Stream{shorter, same, gone} {
		if err := h.Handle(t.Context(), h.commit(t, s, 4, 1)); err != nil {
			t.Fatal(err)
		}
		h.lose(t, s)
	}
	h.commit(t, shorter, 2, 1)
	h.commit(t, same, 4, 100)
	h.run(t)
	pgtest.Eventually(t, "the row goes back to what the stream has", h.shows(t, shorter, 2, 2))
	pgtest.Eventually(t, "the row shows the other history", h.shows(t, same, 4, 400))
	pgtest.Eventually(t, "the row of a stream that is gone is gone", func() bool { return h.row(t, gone).Version == 0 })
	pgtest.Eventually(t, "each is counted", func() bool { return h.healer.Healed() == 3 })
	var tenant string
	if err := h.pool.QueryRow(t.Context(), `SELECT tenant FROM account WHERE id = $1`, shorter.ID).Scan(&tenant); err != nil || tenant != "t-1" {
		t.Errorf("the row's tenant is %q (%v)", tenant, err)
	}
}

// What is on its way is left to the projection, and what only looks wrong is not repaired again and again.
func TestTheHealerLeavesAloneWhatIsRight(t *testing.T) {
	late := openHealing(t, projection.HealerPace{PassEvery: time.Millisecond, Grace: time.Hour, PageMax: 3})
	s, lost := newStream(), newStream()
	late.commit(t, s, 2, 1)
	if err := late.Handle(t.Context(), late.commit(t, lost, 1, 1)); err != nil {
		t.Fatal(err)
	}
	late.lose(t, lost)
	late.run(t)
	pgtest.Eventually(t, "a pass is over", func() bool { return late.healer.Healed() == 1 })
	if late.row(t, s).Version != 0 {
		t.Error("a row was repaired whose message may still come")
	}

	h := openHealing(t, quick)
	rowless, odd, last := newStream(), newStream(), newStream()
	h.model.Write = func(ctx context.Context, tx pgx.Tx, table string, rows []projection.Row[balance]) error {
		if rows[0].ID == rowless.ID { // such as a register on a stream that is no account
			return nil
		}
		return h.write(ctx, tx, table, rows)
	}
	h.commit(t, rowless, 2, 1)
	if err := h.Handle(t.Context(), h.commit(t, odd, 2, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := h.pool.Exec(t.Context(), `UPDATE es_head SET snapshot = '{"moves": 2, "sum": 2}' WHERE stream_id = $1`, odd.ID); err != nil {
		t.Fatal(err)
	}
	h.run(t)
	h.commit(t, last, 1, 1)
	pgtest.Eventually(t, "passes go on", h.shows(t, last, 1, 1))
	pgtest.Eventually(t, "it is counted", func() bool { return h.healer.Healed() > 0 })
	if n := h.healer.Healed(); n != 1 || !h.shows(t, odd, 2, 2)() {
		t.Errorf("%d rows were healed, want the last one alone", n)
	}
}

// A comparison names what is wrong and waits for what is on its way.
func TestCompare(t *testing.T) {
	t.Parallel() // it waits for rows that do not come
	h := openHealing(t, quick)
	right, gone, other, missing := newStream(), newStream(), newStream(), newStream()
	for _, s := range []es.Stream{right, gone, other} {
		if err := h.Handle(t.Context(), h.commit(t, s, 2, 1)); err != nil {
			t.Fatal(err)
		}
	}
	h.lose(t, gone)
	h.lose(t, other)
	h.commit(t, other, 2, 7)
	h.commit(t, missing, 1, 1)
	want := map[string]projection.Difference{
		gone.ID: {ID: gone.ID, Row: 2}, other.ID: {ID: other.ID, Head: 2, Row: 2}, missing.ID: {ID: missing.ID, Head: 1},
	}
	wrong, last, err := h.model.Compare(t.Context(), h.pool, "")
	if err != nil || last != "" || len(wrong) != len(want) {
		t.Fatalf("%v, %q, %v", wrong, last, err)
	}
	for _, d := range wrong {
		if d != want[d.ID] {
			t.Errorf("got %+v, want %+v", d, want[d.ID])
		}
	}
}
