package es_test

import (
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
)

// faulty is a store whose calls fail: each counter is how many calls still do.
type faulty struct {
	es.Store
	lostAnswers, lostAppends, lostLookups, lostHeads atomic.Int64
}

var errCut = errors.New("the line was cut")

func fails(n *atomic.Int64) bool { return n.Add(-1) >= 0 }

func unavailable(op string) error { return &es.UnavailableError{Op: op, Err: errCut} }

// AppendBatch fails before it commits (lostAppends) or after (lostAnswers).
func (f *faulty) AppendBatch(ctx context.Context, items [][]es.Append) []error {
	var errs []error
	before := fails(&f.lostAppends)
	if !before {
		errs = f.Store.AppendBatch(ctx, items)
	}
	if before || fails(&f.lostAnswers) {
		errs = make([]error, len(items))
		for i := range errs {
			errs[i] = unavailable("append")
		}
	}
	return errs
}

func (f *faulty) Lookup(ctx context.Context, ids []string) ([]es.Event, error) {
	if fails(&f.lostLookups) {
		return nil, unavailable("look up")
	}
	return f.Store.Lookup(ctx, ids)
}

func (f *faulty) Heads(ctx context.Context, s []es.Stream) ([]es.Head, error) {
	if fails(&f.lostHeads) {
		return nil, unavailable("heads")
	}
	return f.Store.Heads(ctx, s)
}

// Whatever answers are lost, a command is carried out once, and its answer is what it did.
func TestALostAnswerIsFoundAgain(t *testing.T) {
	eachStore(t, func(t *testing.T, s es.Store) {
		for _, tc := range []struct {
			name                             string
			answers, appends, lookups, heads int64
		}{
			{"commit without an answer", 1, 0, 0, 0},
			{"then the store does not say which keys it has", 1, 0, 1, 0},
			{"then the store does not say where the streams end", 1, 0, 0, 1},
			{"then neither, several times", 1, 0, 3, 3},
			{"several commits without an answer", 3, 0, 0, 0},
			{"no commit and no answer", 0, 2, 0, 0},
			{"all of it", 2, 2, 2, 2},
		} {
			t.Run(tc.name, func(t *testing.T) {
				id, other, fresh := uuid.NewString(), uuid.NewString(), uuid.NewString()
				must(t, newExecutor(t, s, es.ExecutorOptions{}), id, "", put{100})
				must(t, newExecutor(t, s, es.ExecutorOptions{}), other, "", put{100})
				f := &faulty{Store: s}
				x := newExecutor(t, f, es.ExecutorOptions{})
				must(t, x, id, "", idle{}) // cached
				f.lostAnswers.Store(tc.answers)
				f.lostAppends.Store(tc.appends)
				f.lostLookups.Store(tc.lookups)
				f.lostHeads.Store(tc.heads)
				create := command(fresh, "", put{3})
				create.Creates = true
				results := x.ExecuteAll(t.Context(), []es.Command[any]{command(id, "", spendAll{}), command(other, "", spend{60}), create})
				for i, want := range []int64{0, 40, 3} {
					if out := results[i].Value; results[i].Err != nil || len(out.Events) != 1 || out.State.Balance != want {
						t.Errorf("command %d: %+v, %v; want balance %d", i, out, results[i].Err, want)
					}
				}
				if a, b, c := balance(t, s, id), balance(t, s, other), balance(t, s, fresh); a != 0 || b != 40 || c != 3 {
					t.Errorf("balances %d, %d and %d, want 0, 40 and 3", a, b, c)
				}
			})
		}
	})
}

// A store that never answers costs the caller no more than Timeout, and the error says what is known.
func TestAStoreThatIsGoneIsReportedInTime(t *testing.T) {
	const long = 1 << 40
	for name, fault := range map[string]func(*faulty){
		"append": func(f *faulty) { f.lostAppends.Store(long) },
		"heads":  func(f *faulty) { f.lostHeads.Store(long) },
	} {
		t.Run(name, func(t *testing.T) {
			f := &faulty{Store: memory.New()}
			x := newExecutor(t, f, es.ExecutorOptions{Timeout: 100 * time.Millisecond})
			fault(f)
			began := time.Now()
			_, err := x.Execute(t.Context(), command(uuid.NewString(), "", put{1}))
			var unavailable *es.UnavailableError
			if !errors.As(err, &unavailable) || !errors.Is(err, errCut) {
				t.Errorf("got %v", err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// A stream that is contended for ever gives up after AttemptMax, and says why.
func TestEndlessConflictsEnd(t *testing.T) {
	s := memory.New()
	other, id := newExecutor(t, s, es.ExecutorOptions{}), uuid.NewString()
	always := &interfering{Store: s, before: func() { must(t, other, id, "", put{1}) }}
	_, err := newExecutor(t, always, es.ExecutorOptions{AttemptMax: 3}).Execute(t.Context(), command(id, "", put{100}))
	var conflict *es.ConflictError
	if !errors.As(err, &conflict) || always.calls != 3 {
		t.Errorf("after %d attempts: %v", always.calls, err)
	}
}

// interfering does something before every append.
type interfering struct {
	es.Store
	before func()
	calls  int
}

func (i *interfering) AppendBatch(ctx context.Context, items [][]es.Append) []error {
	i.calls++
	i.before()
	return i.Store.AppendBatch(ctx, items)
}

// A key that another process uses between the look at it and the append is noticed by the version.
func TestAKeyUsedMeanwhileIsAnswered(t *testing.T) {
	s := memory.New()
	other, id := newExecutor(t, s, es.ExecutorOptions{}), uuid.NewString()
	must(t, other, id, "", put{10})
	var done bool
	x := newExecutor(t, &interfering{Store: s, before: func() {
		if !done {
			done = true
			must(t, other, id, "key", spendAll{})
		}
	}}, es.ExecutorOptions{})
	out, err := x.Execute(t.Context(), command(id, "key", spend{99}))
	if err != nil || !out.Replayed || out.State.Balance != 0 || string(out.Events[0].Data) != `{"change":-10}` {
		t.Errorf("%+v, %v", out, err)
	}
}

// A stream that can no longer be read, whatever the reason, fails its own commands only.
func TestAnUnreadableStreamFailsAlone(t *testing.T) {
	for name, bad := range map[string]es.Event{
		"unknown type":    {Type: "Vanished", Data: json.RawMessage(`{}`)},
		"panic in Evolve": {Type: "Noted", Data: json.RawMessage(`{"text":"bomb"}`)},
	} {
		t.Run(name, func(t *testing.T) {
			s := memory.New()
			id, other := uuid.NewString(), uuid.NewString()
			bad.ID, bad.Stream, bad.Version = uuid.NewString(), es.Stream{Type: "Purse", ID: id}, 1
			if err := s.Append(t.Context(), es.Append{Stream: bad.Stream, Events: []es.Event{bad}}); err != nil {
				t.Fatal(err)
			}
			results := newExecutor(t, s, es.ExecutorOptions{}).ExecuteAll(t.Context(), []es.Command[any]{
				command(id, "", put{1}), command(other, "", put{2}),
			})
			if results[0].Err == nil || results[1].Err != nil || balance(t, s, other) != 2 {
				t.Errorf("%+v", results)
			}
		})
	}
}

// A snapshot that cannot be restored is thrown away: the events say the same.
func TestABrokenSnapshotIsFoldedAgain(t *testing.T) {
	s, id := memory.New(), uuid.NewString()
	d := purses(true)
	d.Snapshots.Take = func(purse) ([]byte, error) { return []byte("of another age"), nil }
	x, err := es.NewExecutor(d, s, es.ExecutorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := x.Execute(t.Context(), command(id, "", put{4})); err != nil {
			t.Fatal(err)
		}
	}
	if b := balance(t, s, id); b != 12 {
		t.Errorf("balance %d, want 12", b)
	}
}
