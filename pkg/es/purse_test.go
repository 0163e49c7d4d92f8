package es_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
	"example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/pgtest"
)

// purse is the aggregate of these tests: money goes in, and out while it lasts.
type purse struct {
	Balance int64 `json:"balance"`
	Moves   int64 `json:"moves"`
}

// Commands of a purse. Those at the end misbehave.
type (
	put      struct{ n int64 }
	spend    struct{ n int64 }
	spendAll struct{}
	twice    struct{ n int64 } // put, as two facts
	give     struct{ n int64 } // from the own purse to the other
	idle     struct{}          // nothing to do
	explode  struct{}          // panics in Decide
	swell    struct{}          // a fact over the limit of any store
	poison   struct{}          // a fact that cannot be encoded, after one that can
	bomb     struct{}          // panics in Evolve
	lost     struct{}          // an error that is no refusal
)

type moved struct {
	Change int64 `json:"change"`
}

func (moved) EventType() string { return "Moved" }

type noted struct {
	Text any `json:"text"`
}

func (noted) EventType() string { return "Noted" }

var errLost = errors.New("the rules cannot be read")

func decidePurse(p purse, c any) ([]es.Fact, error) {
	switch c := c.(type) {
	case put:
		return []es.Fact{moved{c.n}}, nil
	case twice:
		return []es.Fact{moved{c.n}, moved{c.n}}, nil
	case spend:
		if c.n > p.Balance {
			return nil, es.Refuse("INSUFFICIENT_FUNDS", "The purse holds %d, less than %d.", p.Balance, c.n)
		}
		return []es.Fact{moved{-c.n}}, nil
	case spendAll:
		if p.Balance == 0 {
			return nil, es.Refuse("INSUFFICIENT_FUNDS", "The purse is empty.")
		}
		return []es.Fact{moved{-p.Balance}}, nil
	case idle:
		return nil, nil
	case explode:
		panic("the command explodes")
	case swell:
		return []es.Fact{noted{strings.Repeat("a", es.EventBytesMax)}}, nil
	case poison:
		return []es.Fact{moved{1}, noted{func() {}}}, nil
	case bomb:
		return []es.Fact{moved{1}, noted{"bomb"}}, nil
	case lost:
		return nil, errLost
	}
	return nil, fmt.Errorf("unknown command %T", c)
}

func decidePair(own, _ purse, c any) (ownFacts, otherFacts []es.Fact, err error) {
	switch c := c.(type) {
	case give:
		if c.n > own.Balance {
			return nil, nil, es.Refuse("INSUFFICIENT_FUNDS", "The purse holds %d, less than %d.", own.Balance, c.n)
		}
		return []es.Fact{moved{-c.n}}, []es.Fact{moved{c.n}}, nil
	case idle:
		return nil, nil, nil
	case explode:
		panic("the command explodes")
	case bomb:
		return []es.Fact{moved{1}}, []es.Fact{moved{-1}, noted{"bomb"}}, nil
	case lost:
		return nil, []es.Fact{moved{1}}, nil
	}
	return nil, nil, fmt.Errorf("unknown command %T", c)
}

func evolvePurse(p purse, f es.Fact, _ es.Occurred) purse {
	switch f := f.(type) {
	case moved:
		p.Balance += f.Change
	case noted:
		if f.Text == "bomb" {
			panic("the fact explodes")
		}
	}
	p.Moves++
	return p
}

var purseSchemas = es.Schemas{"Moved": es.SchemaOf[moved](), "Noted": es.SchemaOf[noted]()}

// purses is the decider; withSnapshots or always folding.
func purses(withSnapshots bool) *es.Decider[purse, any] {
	d := &es.Decider[purse, any]{
		Type: "Purse", Initial: func() purse { return purse{} }, Decide: decidePurse, DecidePair: decidePair, Evolve: evolvePurse, Schemas: purseSchemas,
	}
	if withSnapshots {
		d.Snapshots = &es.Snapshots[purse]{
			Take: func(p purse) ([]byte, error) { return json.Marshal(p) },
			Restore: func(b []byte) (p purse, err error) {
				err = json.Unmarshal(b, &p)
				return p, err
			},
		}
	}
	return d
}

type executor = es.Executor[purse, any]

func newExecutor(t testing.TB, s es.Store, o es.ExecutorOptions) *executor {
	t.Helper()
	x, err := es.NewExecutor(purses(true), s, o)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// command is c for a purse. Key "" makes a command that is never repeated.
func command(purseID, key string, c any) es.Command[any] {
	return es.Command[any]{ID: uuid.NewString(), StreamID: purseID, Key: key, At: noon, CorrelationID: "c-1", Body: c}
}

// must executes a command that succeeds.
func must(t testing.TB, x *executor, purseID, key string, c any) es.Outcome[purse] {
	t.Helper()
	out, err := x.Execute(t.Context(), command(purseID, key, c))
	if err != nil {
		t.Fatalf("%T: %v", c, err)
	}
	return out
}

// balance reads a purse from the store and checks it against the fold of its events.
func balance(t testing.TB, s es.Store, purseID string) int64 {
	t.Helper()
	live, err := newExecutor(t, s, es.ExecutorOptions{}).Get(t.Context(), purseID)
	if err != nil {
		t.Fatal(err)
	}
	x, err := es.NewExecutor(purses(false), s, es.ExecutorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	folded, err := x.Get(t.Context(), purseID)
	if err != nil || folded.State != live.State || folded.Version != live.Version {
		t.Fatalf("the snapshot says %+v, the events say %+v (%v)", live, folded, err)
	}
	return live.State.Balance
}

func refused(err error, reason string) bool {
	r := es.RefusalOf(err)
	return r != nil && r.Reason == reason
}

// eachStore runs a test on every store.
func eachStore(t *testing.T, test func(*testing.T, es.Store)) {
	t.Run("memory", func(t *testing.T) { test(t, memory.New()) })
	t.Run("postgres", func(t *testing.T) {
		test(t, postgres.New(pgtest.Migrated(t, postgres.Migrations, postgres.MigrationsTable), postgres.Options{}))
	})
}
