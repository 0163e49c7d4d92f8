package projection_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/projection"
)

// balance is the state that the read model shows.
type balance struct {
	Sum   int64 `json:"sum"`
	Moves int64 `json:"moves"`
}

type moved struct {
	Change int64 `json:"change"`
}

func (moved) EventType() string { return "Moved" }

func decider() *es.Decider[balance, any] {
	return &es.Decider[balance, any]{
		Type: "Account", Initial: func() balance { return balance{} },
		Evolve: func(b balance, f es.Fact, _ es.Occurred) balance {
			return balance{Sum: b.Sum + f.(moved).Change, Moves: b.Moves + 1}
		},
		Schemas: es.Schemas{"Moved": es.SchemaOf[moved]()},
		Snapshots: &es.Snapshots[balance]{
			Take: func(b balance) ([]byte, error) { return json.Marshal(b) },
			Restore: func(raw []byte) (b balance, err error) {
				err = json.Unmarshal(raw, &b)
				return b, err
			},
		},
	}
}

// fixture is a read model behind an owner's store.
type fixture struct {
	*projection.Projection
	pool  *pgxpool.Pool
	store *memory.Store
	model *projection.Folded[balance, any]

	mu     sync.Mutex
	writes []projection.Row[balance]
	loads  int
	fail   error // of the next write
}

func open(t *testing.T) *fixture {
	t.Helper()
	return openOn(t, pgtest.Pool(t))
}

func openOn(t *testing.T, pool *pgxpool.Pool) *fixture {
	t.Helper()
	f := &fixture{pool: pool, store: memory.New()}
	if _, err := f.pool.Exec(t.Context(), `CREATE TABLE account (id uuid PRIMARY KEY, version bigint NOT NULL, state bytea NOT NULL, tenant text)`); err != nil {
		t.Fatal(err)
	}
	f.model = &projection.Folded[balance, any]{Table: "account", Decider: decider(), Write: f.write}
	f.Projection = projection.New(f.pool, f.model, func(ctx context.Context, s es.Stream, after int64, limit int) ([]es.Event, error) {
		f.mu.Lock()
		f.loads++
		f.mu.Unlock()
		return f.store.Load(ctx, s, after, limit)
	})
	return f
}

func (f *fixture) write(ctx context.Context, tx pgx.Tx, table string, rows []projection.Row[balance]) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writes = append(f.writes, rows...)
	for _, r := range rows {
		if _, err := tx.Exec(ctx, `INSERT INTO `+table+` AS a VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO UPDATE SET version = excluded.version, state = excluded.state
			WHERE a.version <= excluded.version`,
			r.ID, r.Version, r.Encoded, r.First.Metadata["tenantId"]); err != nil {
			return err
		}
	}
	fail := f.fail
	f.fail = nil
	return fail
}

// row reads what the model shows of a stream.
func (f *fixture) row(t *testing.T, s es.Stream) projection.Row[balance] {
	t.Helper()
	rows, err := f.pool.Query(t.Context(), `SELECT id::text, version, state FROM account WHERE id = $1`, s.ID)
	if err != nil {
		t.Fatal(err)
	}
	r, err := pgx.CollectOneRow(rows, f.model.Scan)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		t.Fatal(err)
	}
	return r
}

func newStream() es.Stream { return es.Stream{Type: "Account", ID: uuid.NewString()} }

// history makes a stream's events 1 to n, each of which moves its own version, and stores the first `stored` with the owner.
func (f *fixture) history(t *testing.T, s es.Stream, n, stored int) []es.Event {
	t.Helper()
	events := make([]es.Event, n)
	for i := range events {
		events[i] = es.Event{
			ID: uuid.NewString(), Type: "Moved", Stream: s, Version: int64(i + 1), At: time.UnixMilli(1),
			Metadata: map[string]any{"tenantId": "t-1"}, Data: fmt.Appendf(nil, `{"change":%d}`, i+1),
		}
	}
	if err := f.store.Append(t.Context(), es.Append{Stream: s, Events: events[:stored]}); err != nil {
		t.Fatal(err)
	}
	return events
}

// Whatever of a stream arrives, in whatever batches, the row shows the newest version, each event counted once.
func TestTheRowFollowsItsStream(t *testing.T) {
	f := open(t)
	for _, tc := range []struct {
		name    string
		batches [][]int64 // versions as they arrive
		stored  int       // the owner's store has these
		version int64     // what the row shows in the end
		loads   int
	}{
		{"in order", [][]int64{{1, 2}, {3}}, 0, 3, 0},
		{"duplicates are dropped", [][]int64{{1, 1, 2}, {1, 2, 2, 3}, {3}}, 0, 3, 0},
		{"an older batch again", [][]int64{{1, 2, 3}, {1, 2}}, 0, 3, 0},
		{"a gap is loaded from the owner", [][]int64{{1}, {4}}, 5, 5, 1},
		{"what was loaded arrives late", [][]int64{{1}, {4, 2, 3, 5}}, 4, 5, 1},
		{"a stream that is seen from its middle", [][]int64{{3}}, 3, 3, 1},
		{"two gaps in one batch", [][]int64{{2, 5}}, 3, 0, 0}, // refused below: the owner lacks version 4
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStream()
			events := f.history(t, s, 5, tc.stored)
			f.loads = 0
			var err error
			for _, versions := range tc.batches {
				var batch []es.Event
				for _, v := range versions {
					batch = append(batch, events[v-1])
				}
				err = errors.Join(err, f.Handle(t.Context(), batch))
			}
			if tc.version == 0 {
				if err == nil {
					t.Error("a gap that nobody can fill was accepted")
				}
			} else if err != nil || f.loads != tc.loads {
				t.Errorf("%v after %d loads, want %d", err, f.loads, tc.loads)
			}
			want := balance{Sum: tc.version * (tc.version + 1) / 2, Moves: tc.version}
			if r := f.row(t, s); r.Version != tc.version || r.State != want {
				t.Errorf("row %+v, want version %d and %+v", r, tc.version, want)
			}
		})
	}
}

// A gap that the owner's store does not fill names what is missing, and stops the batch: nothing of it is written.
func TestAGapThatNobodyFillsIsAnError(t *testing.T) {
	f := open(t)
	s, other := newStream(), newStream()
	events, fine := f.history(t, s, 5, 2), f.history(t, other, 1, 0)
	err := f.Handle(t.Context(), []es.Event{fine[0], events[0], events[4]})
	var gap kafka.GapError
	if !errors.As(err, &gap) || gap.Have != 2 || gap.Got != 5 || !strings.Contains(err.Error(), s.ID) {
		t.Errorf("got %v", err)
	}
	if a, b := f.row(t, s), f.row(t, other); a.Version != 0 || b.Version != 0 {
		t.Errorf("written all the same: %+v, %+v", a, b)
	}
	if err := f.store.Append(t.Context(), es.Append{Stream: s, Expected: 2, Events: events[2:]}); err != nil {
		t.Fatal(err)
	}
	if err := f.Handle(t.Context(), []es.Event{fine[0], events[0], events[4]}); err != nil || f.row(t, s).Version != 5 || f.row(t, other).Version != 1 {
		t.Errorf("once the owner has it: %v", err)
	}
}

func TestALoaderThatFailsIsAnError(t *testing.T) {
	errAway := errors.New("the owner is away")
	f := open(t)
	p := projection.New(f.pool, f.model, func(context.Context, es.Stream, int64, int) ([]es.Event, error) { return nil, errAway })
	s := newStream()
	if err := p.Handle(t.Context(), f.history(t, s, 2, 0)[1:]); !errors.Is(err, errAway) || f.row(t, s).Version != 0 {
		t.Errorf("got %v", err)
	}
}

// A batch is one transaction: when the write fails nothing of it shows, and the same batch succeeds later.
func TestABatchIsAppliedInOneStep(t *testing.T) {
	f := open(t)
	a, b := newStream(), newStream()
	batch := append(f.history(t, a, 2, 0), f.history(t, b, 3, 0)...)
	f.fail = errors.New("the disk is full")
	if err := f.Handle(t.Context(), batch); err == nil {
		t.Error("the error was swallowed")
	}
	if x, y := f.row(t, a), f.row(t, b); x.Version != 0 || y.Version != 0 {
		t.Errorf("half a batch is visible: %+v, %+v", x, y)
	}
	if err := f.Handle(t.Context(), batch); err != nil || f.row(t, a).Version != 2 || f.row(t, b).Version != 3 {
		t.Errorf("tried again: %v", err)
	}
}

// However many events a row gets, it is written once, and a new row is told by its first event.
func TestFoldedWritesEachRowOnce(t *testing.T) {
	f := open(t)
	a, b := newStream(), newStream()
	as, bs := f.history(t, a, 4, 0), f.history(t, b, 2, 0)
	if err := f.Handle(t.Context(), []es.Event{as[0], bs[0], as[1], bs[1], as[2]}); err != nil {
		t.Fatal(err)
	}
	if err := f.Handle(t.Context(), []es.Event{as[3], as[0]}); err != nil {
		t.Fatal(err)
	}
	if err := f.Handle(t.Context(), []es.Event{as[0], bs[1]}); err != nil {
		t.Fatal(err)
	}
	want := []struct {
		s       es.Stream
		version int64
		isNew   bool
		first   string
	}{{a, 3, true, as[0].ID}, {b, 2, true, bs[0].ID}, {a, 4, false, as[3].ID}}
	if len(f.writes) != len(want) {
		t.Fatalf("%d writes, want %d", len(f.writes), len(want))
	}
	for i, w := range want {
		if r := f.writes[i]; r.ID != w.s.ID || r.Version != w.version || r.New != w.isNew || r.First.ID != w.first || r.State.Moves != w.version {
			t.Errorf("write %d: %+v, want %+v", i, r, w)
		}
	}
}

func TestFoldedReportsAnEventItCannotRead(t *testing.T) {
	f := open(t)
	s := newStream()
	events := f.history(t, s, 1, 0)
	events[0].Type = "Vanished"
	if err := f.Handle(t.Context(), events); err == nil || !strings.Contains(err.Error(), "Vanished") {
		t.Errorf("got %v", err)
	}
}

// Two consumers handle the same events of the same rows at once, as happens around a rebalance: nothing counts twice.
func TestTwoConsumersAtOnceCountOnce(t *testing.T) {
	f := open(t)
	s := newStream()
	events := f.history(t, s, 30, 30)
	if err := f.Handle(t.Context(), events[:1]); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range events {
				if err := f.Handle(context.Background(), events[i:min(i+3, len(events))]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if r := f.row(t, s); r.Version != 30 || r.State != (balance{Sum: 30 * 31 / 2, Moves: 30}) {
		t.Errorf("%+v", r)
	}
}
