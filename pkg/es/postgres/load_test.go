package postgres_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/postgres"
)

// tick is the only fact of the counters in these tests.
type tick struct{}

func (tick) EventType() string { return "Ticked" }

// counters counts ticks; every is as of es.Snapshots, 0 = without snapshots.
func counters(every int64) *es.Decider[int, int] {
	d := &es.Decider[int, int]{
		Type: "Counter", Initial: func() int { return 0 },
		Decide:  func(int, int) ([]es.Fact, error) { return []es.Fact{tick{}}, nil },
		Evolve:  func(n int, _ es.Fact, _ es.Occurred) int { return n + 1 },
		Schemas: es.Schemas{"Ticked": es.SchemaOf[tick]()},
	}
	if every > 0 {
		d.Snapshots = &es.Snapshots[int]{
			Every: every, Take: func(n int) ([]byte, error) { return json.Marshal(n) },
			Restore: func(b []byte) (n int, err error) {
				err = json.Unmarshal(b, &n)
				return n, err
			},
		}
	}
	return d
}

// A group of commands on streams that this instance does not know costs few round trips.
func TestAGroupOnUnknownStreamsHasABudgetOfRoundTrips(t *testing.T) {
	const commands, tripsMax = 256, 4
	for name, every := range map[string]int64{"no snapshots": 0, "every second version": 2, "every version": 1} {
		t.Run(name, func(t *testing.T) {
			store, pool := open(t)
			ids := make([]string, commands)
			for i := range ids {
				ids[i] = uuid.NewString()
			}
			run := func(s *postgres.Store, want int) {
				t.Helper()
				x, err := es.NewExecutor(counters(every), s, es.ExecutorOptions{})
				if err != nil {
					t.Fatal(err)
				}
				cmds := make([]es.Command[int], commands)
				for i, id := range ids {
					cmds[i] = es.Command[int]{
						ID: uuid.NewString(), StreamID: id, At: time.Now(), Creates: want == 1,
					}
				}
				for _, r := range x.ExecuteAll(t.Context(), cmds) {
					if r.Err != nil || r.Value.State != want {
						t.Fatalf("%+v, want state %d", r, want)
					}
				}
				if err := x.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			for want := 1; want <= 3; want++ {
				run(store, want)
			}
			other, n := counted(t, pool)
			run(other, 4)
			if got := n.Load(); got > tripsMax {
				t.Errorf("%d commands took %d round trips, at most %d are allowed", commands, got, tripsMax)
			}
		})
	}
}

// A stored event that is no JSON fails its own span and nothing else.
func TestAnEventThatCannotBeReadFailsItsOwnSpan(t *testing.T) {
	s, pool := open(t)
	good, bad := stream("good"), stream("bad")
	if err := s.Append(t.Context(), after(good, 0, 2), after(bad, 0, 3)); err != nil {
		t.Fatal(err)
	}
	const cut = `UPDATE es_event SET payload = '{"cut' WHERE stream_id = 'bad' AND version = 2`
	if _, err := pool.Exec(t.Context(), cut); err != nil {
		t.Fatal(err)
	}
	loaded, err := s.LoadEach(t.Context(), []es.Span{{Stream: bad}, {Stream: good}, {Stream: bad, After: 2}})
	if err != nil {
		t.Fatal(err)
	}
	if err := loaded[0].Err; err == nil || loaded[0].Value != nil || !strings.Contains(err.Error(), bad.String()) {
		t.Errorf("the broken span: %v, %v", loaded[0].Value, err)
	}
	for i, want := range []int{1: 2, 2: 1} {
		if l := loaded[i]; i > 0 && (l.Err != nil || len(l.Value) != want) {
			t.Errorf("span %d: %+v, want %d events", i, l, want)
		}
	}
}
