package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/page"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/saga"
	"example.com/billing/pkg/saga/postgres"
	"example.com/billing/pkg/saga/sagatest"
)

func open(t *testing.T) (*postgres.Store, *espg.Store, *pgxpool.Pool) {
	t.Helper()
	pool := pgtest.Pool(t)
	if err := errors.Join(migrate.Up(t.Context(), pool, espg.Migrations, espg.MigrationsTable),
		migrate.Up(t.Context(), pool, postgres.Migrations, postgres.MigrationsTable)); err != nil {
		t.Fatal(err)
	}
	events := espg.New(pool, espg.Options{})
	return postgres.New(pool, events, ended), events, pool
}

var errNoEvent = errors.New("this saga has no event")

// ended makes the event of a saga's end.
func ended(s saga.State) (es.Event, error) {
	if s.ErrorReason == "NO_EVENT" {
		return es.Event{}, errNoEvent
	}
	st := es.Stream{Type: "Saga", ID: s.SagaID}
	return es.Event{
		ID: es.EventID(st, "end", 0), Type: "SagaEnded", Stream: st, Version: 1, At: s.UpdatedAt, CorrelationID: s.CorrelationID,
		Data: fmt.Appendf(nil, `{"status":%q}`, s.Status),
	}, nil
}

func TestStateStore(t *testing.T) {
	sagatest.TestStateStore(t, func(t *testing.T) saga.Store { s, _, _ := open(t); return s })
}

func newState(t *testing.T, s saga.Store) saga.State {
	t.Helper()
	st := saga.State{
		SagaID: uuid.NewString(), SagaType: "transfer", Definition: 1, Status: saga.InProgress, Input: []byte(`{}`), CorrelationID: "c-1",
		CreatedAt: time.UnixMilli(1).UTC(), UpdatedAt: time.UnixMilli(1).UTC(),
	}
	added, err := s.Insert(t.Context(), []saga.State{st})
	if err != nil || len(added) != 1 {
		t.Fatal(added, err)
	}
	return added[0]
}

// eventOf returns the type and data of a saga's events.
func eventOf(t *testing.T, events *espg.Store, id string) (out []string) {
	t.Helper()
	found, err := events.Load(context.Background(), es.Stream{Type: "Saga", ID: id}, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range found {
		out = append(out, e.Type+string(e.Data))
	}
	return out
}

// A saga's last state and its event, with the event's outbox row, are stored together; progress stores no event.
func TestTheEndIsStoredWithItsEvent(t *testing.T) {
	for _, status := range []saga.Status{saga.Completed, saga.Compensated, saga.Failed} {
		t.Run(string(status), func(t *testing.T) {
			s, events, pool := open(t)
			going, ending, attention := newState(t, s), newState(t, s), newState(t, s)
			ending.Status, attention.Status = status, saga.NeedsAttention
			if err := errors.Join(s.Save(t.Context(), []saga.State{going, ending, attention})...); err != nil {
				t.Fatal(err)
			}
			if got := eventOf(t, events, ending.SagaID); len(got) != 1 || got[0] != fmt.Sprintf(`SagaEnded{"status":%q}`, status) {
				t.Errorf("events %v", got)
			}
			if got := append(eventOf(t, events, going.SagaID), eventOf(t, events, attention.SagaID)...); len(got) != 0 {
				t.Errorf("sagas that have not ended have events: %v", got)
			}
			var outbox, position int64
			if err := pool.QueryRow(t.Context(), `SELECT (SELECT sum(events) FROM outbox_batch), es_end()`).Scan(&outbox, &position); err != nil || outbox != 1 || position != 1 {
				t.Errorf("%d events in the outbox, the log ends at %d (%v), want 1 and 1", outbox, position, err)
			}
			select {
			case <-events.Committed():
			default:
				t.Error("the relay was not woken up")
			}
		})
	}
}

// What is refused writes no event, and takes nobody along.
func TestARefusedEndWritesNothing(t *testing.T) {
	s, events, _ := open(t)
	stale, broken, fine := newState(t, s), newState(t, s), newState(t, s)
	stale.Status, broken.Status, fine.Status = saga.Completed, saga.Completed, saga.Completed
	stale.Revision, broken.ErrorReason = 7, "NO_EVENT"
	errs := s.Save(t.Context(), []saga.State{stale, broken, fine})
	if !errors.Is(errs[0], saga.ErrStale) || !errors.Is(errs[1], errNoEvent) || errs[2] != nil {
		t.Errorf("results %v", errs)
	}
	for st, want := range map[*saga.State]saga.Status{&stale: saga.InProgress, &broken: saga.InProgress, &fine: saga.Completed} {
		got, err := s.Get(t.Context(), st.SagaID)
		if err != nil || got.Status != want || len(eventOf(t, events, st.SagaID)) != map[saga.Status]int{saga.Completed: 1}[want] {
			t.Errorf("%s with %v (%v), want %s", got.Status, eventOf(t, events, st.SagaID), err, want)
		}
	}
}

// When the events cannot be written, the states are not either.
func TestStateAndEventFailTogether(t *testing.T) {
	s, events, pool := open(t)
	st := newState(t, s)
	if _, err := pool.Exec(t.Context(), `ALTER TABLE es_event ADD CHECK (event_type <> 'SagaEnded')`); err != nil {
		t.Fatal(err)
	}
	st.Status = saga.Completed
	if err := s.Save(t.Context(), []saga.State{st})[0]; err == nil {
		t.Error("the error was swallowed")
	}
	if got, err := s.Get(t.Context(), st.SagaID); err != nil || got.Status != saga.InProgress || got.Revision != 1 || len(eventOf(t, events, st.SagaID)) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestADatabaseThatIsNotThereIsUnavailable(t *testing.T) {
	pool, err := pgxpool.New(t.Context(), "postgres://nobody@127.0.0.1:1/nothing?connect_timeout=1")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	s := postgres.New(pool, espg.New(pool, espg.Options{}), ended)
	_, insert := s.Insert(t.Context(), []saga.State{{SagaID: uuid.NewString()}})
	_, get := s.Get(t.Context(), uuid.NewString())
	_, list := s.List(t.Context(), saga.Filter{Limit: 1})
	_, unfinished := s.Unfinished(t.Context(), 0, 0, page.Cursor{}, 1)
	for what, err := range map[string]error{
		"insert": insert, "get": get, "list": list, "unfinished": unfinished, "save": s.Save(t.Context(), []saga.State{{SagaID: uuid.NewString()}})[0],
	} {
		var unavailable *es.UnavailableError
		if !errors.As(err, &unavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// One state that the database refuses fails alone, among others that are stored, each once and with its event.
func TestAStateThatTheDatabaseRefusesFailsAlone(t *testing.T) {
	s, events, pool := open(t)
	states := make([]saga.State, 9)
	for i := range states {
		states[i] = newState(t, s)
		states[i].Status = saga.Completed
	}
	if _, err := pool.Exec(t.Context(), fmt.Sprintf(`ALTER TABLE es_event ADD CHECK (stream_id <> '%s')`, states[4].SagaID)); err != nil {
		t.Fatal(err)
	}
	for i, err := range s.Save(t.Context(), states) {
		if (err != nil) != (i == 4) || errors.Is(err, saga.ErrStale) {
			t.Errorf("state %d: %v", i, err)
		}
		want := map[bool]saga.Status{true: saga.InProgress, false: saga.Completed}[i == 4]
		if got, err := s.Get(t.Context(), states[i].SagaID); err != nil || got.Status != want || (len(eventOf(t, events, got.SagaID)) == 1) != (i != 4) {
			t.Errorf("state %d is %s (%v), want %s", i, got.Status, err, want)
		}
	}
}

// A lease that a clock an hour ahead wrote is void: the sagas of its engine, which is gone, are claimed at once. A lease of a process
// that does not say how long it lasts is no exception; one that may be what it says is left alone.
func TestALeaseOfAWrongClockIsVoid(t *testing.T) {
	s, _, pool := open(t)
	epochs := make([]int64, 4)
	for i := range epochs {
		var err error
		if epochs[i], err = s.Lease(t.Context(), "gone", 0, 30*time.Second); err != nil {
			t.Fatal(err)
		}
		st := saga.State{
			SagaID: uuid.NewString(), SagaType: "transfer", Definition: 1, Status: saga.InProgress, Input: []byte(`{}`), CorrelationID: "c-1",
			Epoch: epochs[i], CreatedAt: time.UnixMilli(int64(i)).UTC(), UpdatedAt: time.UnixMilli(1).UTC(),
		}
		if added, err := s.Insert(t.Context(), []saga.State{st}); err != nil || len(added) != 1 {
			t.Fatal(added, err)
		}
	}
	ahead := `UPDATE saga_engine SET leased_until = leased_until + interval '1 hour'`
	for sql, epoch := range map[string]int64{ahead: epochs[0], ahead + `, lasts = NULL`: epochs[1], `UPDATE saga_engine SET lasts = NULL`: epochs[2]} {
		if _, err := pool.Exec(t.Context(), sql+` WHERE epoch = $1`, epoch); err != nil {
			t.Fatal(err)
		}
	}
	heir, err := s.Lease(t.Context(), "heir", 0, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	claimed, err := s.Claim(t.Context(), heir, []saga.DefinitionID{{Type: "transfer", Version: 1}}, 10)
	if err != nil || len(claimed) != 2 {
		t.Fatalf("claimed %d sagas (%v), want those of the two void leases", len(claimed), err)
	}
	for i, st := range claimed {
		if st.CreatedAt.UnixMilli() != int64(i) {
			t.Errorf("claimed the saga of lease %d", st.CreatedAt.UnixMilli())
		}
	}
	if _, err := s.Lease(t.Context(), "gone", epochs[0], time.Second); !errors.Is(err, saga.ErrFenced) {
		t.Errorf("renewing a void lease: %v, want %v", err, saga.ErrFenced)
	}
}
