package es_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"example.com/billing/pkg/batch"
	"example.com/billing/pkg/es"
)

// result is what one of several concurrent commands came to.
type result = batch.Result[es.Outcome[purse]]

// atOnce executes n commands from n goroutines that start together.
func atOnce(t *testing.T, n int, on func(i int) *executor, c func(i int) es.Command[any]) []result {
	t.Helper()
	results := make([]result, n)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-start
			results[i].Value, results[i].Err = on(i).Execute(t.Context(), c(i))
		})
	}
	close(start)
	wg.Wait()
	return results
}

// counted sorts results: how many stored events, how many replayed a stored answer, how many were refused.
func counted(t *testing.T, results []result) (stored, replayed, refusals int) {
	t.Helper()
	for _, r := range results {
		switch {
		case refused(r.Err, "INSUFFICIENT_FUNDS"):
			refusals++
		case r.Err != nil:
			t.Errorf("neither done nor refused: %v", r.Err)
		case r.Value.Replayed:
			replayed++
		case len(r.Value.Events) > 0:
			stored++
		}
	}
	return stored, replayed, refusals
}

func same(x *executor) func(int) *executor { return func(int) *executor { return x } }

func TestOneOfManySpendersOfAllGetsIt(t *testing.T) {
	eachStore(t, func(t *testing.T, s es.Store) {
		x, id := newExecutor(t, s, es.ExecutorOptions{}), uuid.NewString()
		must(t, x, id, "", put{100})
		results := atOnce(t, 64, same(x), func(int) es.Command[any] { return command(id, "", spendAll{}) })
		if stored, _, refusals := counted(t, results); stored != 1 || refusals != 63 {
			t.Errorf("%d spent, %d refused, want 1 and 63", stored, refusals)
		}
		if b := balance(t, s, id); b != 0 {
			t.Errorf("balance %d", b)
		}
	})
}

// The same, with the spenders spread over executors that know nothing of each other.
func TestOneSpenderAmongManyExecutorsGetsIt(t *testing.T) {
	eachStore(t, func(t *testing.T, s es.Store) {
		id := uuid.NewString()
		executors := make([]*executor, 4)
		for i := range executors {
			executors[i] = newExecutor(t, s, es.ExecutorOptions{Batch: batch.Options{FlightMax: 2, BatchMax: 3}})
			must(t, executors[i], id, "", put{25}) // each has cached a version of its own
		}
		results := atOnce(t, 64, func(i int) *executor { return executors[i%4] }, func(int) es.Command[any] { return command(id, "", spendAll{}) })
		if stored, _, refusals := counted(t, results); stored != 1 || refusals != 63 {
			t.Errorf("%d spent, %d refused, want 1 and 63", stored, refusals)
		}
		if b := balance(t, s, id); b != 0 {
			t.Errorf("balance %d", b)
		}
	})
}

func TestOneKeyAtOnceHasOneEffect(t *testing.T) {
	eachStore(t, func(t *testing.T, s es.Store) {
		for name, c := range map[string]any{"possible again": put{5}, "impossible again": spendAll{}} {
			t.Run(name, func(t *testing.T) {
				x, id := newExecutor(t, s, es.ExecutorOptions{Batch: batch.Options{BatchMax: 10}}), uuid.NewString()
				must(t, x, id, "", put{100})
				results := atOnce(t, 64, same(x), func(int) es.Command[any] { return command(id, "key", c) })
				stored, replayed, _ := counted(t, results)
				if stored != 1 || replayed != 63 {
					t.Errorf("%d stored, %d replayed, want 1 and 63", stored, replayed)
				}
				for _, r := range results {
					if len(r.Value.Events) != 1 || r.Value.Events[0].ID != results[0].Value.Events[0].ID || r.Value.Events[0].Version != 2 {
						t.Fatalf("another answer: %+v", r)
					}
				}
				if out, err := x.Get(t.Context(), id); err != nil || out.Version != 2 {
					t.Errorf("version %d (%v), want 2", out.Version, err)
				}
			})
		}
	})
}

func TestOneKeySeveralTimesInAGroupHasOneEffect(t *testing.T) {
	eachStore(t, func(t *testing.T, s es.Store) {
		x, id := newExecutor(t, s, es.ExecutorOptions{}), uuid.NewString()
		results := x.ExecuteAll(t.Context(), []es.Command[any]{
			command(id, "", put{10}), command(id, "key", spendAll{}), command(id, "key", spendAll{}), command(id, "", put{3}), command(id, "key", put{1}),
		})
		for i, want := range []struct {
			replayed bool
			version  int64
			event    int64
		}{{false, 1, 1}, {false, 2, 2}, {true, 2, 2}, {false, 3, 3}, {true, 3, 2}} {
			out := results[i].Value
			if results[i].Err != nil || out.Replayed != want.replayed || out.Version != want.version || len(out.Events) != 1 || out.Events[0].Version != want.event {
				t.Errorf("command %d: %+v, want %+v", i, results[i], want)
			}
		}
		if b := balance(t, s, id); b != 3 {
			t.Errorf("balance %d, want 3", b)
		}
	})
}

// A key is used once, whatever happened since: the repeat's answer is the first one's, even if it would be refused now.
func TestAKeyIsAnsweredAgain(t *testing.T) {
	eachStore(t, func(t *testing.T, s es.Store) {
		for _, tc := range []struct {
			name    string
			first   any
			between any
			repeat  any
		}{
			{"when it could be done again", put{5}, put{1}, put{5}},
			{"when it would be refused now", spendAll{}, idle{}, spendAll{}},
			{"when it would change nothing now", put{5}, put{1}, idle{}},
			{"when it would fail now", put{5}, put{1}, lost{}},
			{"with its first event", twice{5}, put{1}, twice{5}},
		} {
			t.Run(tc.name, func(t *testing.T) {
				x, id := newExecutor(t, s, es.ExecutorOptions{}), uuid.NewString()
				must(t, x, id, "", put{10})
				first := must(t, x, id, "key", tc.first)
				now := must(t, x, id, "", tc.between)
				restarted := newExecutor(t, s, es.ExecutorOptions{})
				for name, x := range map[string]*executor{"same executor": x, "after a restart": restarted, "cached after a restart": restarted} {
					out, err := x.Execute(t.Context(), command(id, "key", tc.repeat))
					if err != nil || !out.Replayed || out.Version != now.Version || len(out.Events) == 0 || out.Events[0].ID != first.Events[0].ID {
						t.Errorf("%s: got %+v, %v", name, out, err)
					}
				}
			})
		}
	})
}

func TestAKeyBelongsToItsStream(t *testing.T) {
	eachStore(t, func(t *testing.T, s es.Store) {
		x := newExecutor(t, s, es.ExecutorOptions{})
		for _, id := range []string{uuid.NewString(), uuid.NewString()} {
			if out := must(t, x, id, "key", put{5}); out.Replayed || out.State.Balance != 5 {
				t.Errorf("%+v", out)
			}
		}
	})
}

// An executor that has cached an old state decides again before it answers, also when it refuses.
func TestNothingIsAnsweredOnStaleState(t *testing.T) {
	eachStore(t, func(t *testing.T, s es.Store) {
		for _, tc := range []struct {
			name      string
			elsewhere any
			c         any
			check     func(es.Outcome[purse], error) bool
		}{
			{"what would be refused succeeds", put{10}, spend{15}, func(o es.Outcome[purse], err error) bool { return err == nil && o.State.Balance == 5 }},
			{"what would succeed is refused", spendAll{}, spend{10}, func(_ es.Outcome[purse], err error) bool { return refused(err, "INSUFFICIENT_FUNDS") }},
			{"what is refused is refused with today's facts", put{2}, spend{15}, func(_ es.Outcome[purse], err error) bool {
				return refused(err, "INSUFFICIENT_FUNDS") && strings.Contains(err.Error(), "holds 12")
			}},
			{"what changes nothing shows today's state", put{2}, idle{}, func(o es.Outcome[purse], err error) bool {
				return err == nil && o.State.Balance == 12 && o.Version == 2
			}},
		} {
			t.Run(tc.name, func(t *testing.T) {
				a, b, id := newExecutor(t, s, es.ExecutorOptions{}), newExecutor(t, s, es.ExecutorOptions{}), uuid.NewString()
				must(t, a, id, "", put{10})
				must(t, b, id, "", tc.elsewhere)
				out, err := a.Execute(t.Context(), command(id, "", tc.c))
				if !tc.check(out, err) {
					t.Errorf("got %+v, %v", out, err)
				}
			})
		}
	})
}

func TestRacingExecutorsLoseNothing(t *testing.T) {
	eachStore(t, func(t *testing.T, s es.Store) {
		a, b, id := newExecutor(t, s, es.ExecutorOptions{}), newExecutor(t, s, es.ExecutorOptions{}), uuid.NewString()
		results := atOnce(t, 100, func(i int) *executor { return []*executor{a, b}[i%2] },
			func(i int) es.Command[any] { return command(id, "", put{int64(i)}) })
		if stored, _, _ := counted(t, results); stored != 100 {
			t.Errorf("%d of 100 stored", stored)
		}
		if got := balance(t, s, id); got != 99*100/2 {
			t.Errorf("balance %d, want %d", got, 99*100/2)
		}
	})
}

// A group with a command that cannot be carried out: it fails, and nobody else does.
func TestABadCommandFailsAlone(t *testing.T) {
	eachStore(t, func(t *testing.T, s es.Store) {
		var limit *es.LimitError
		for _, tc := range []struct {
			name  string
			bad   any
			fails func(error) bool
		}{
			{"refused", spend{1000}, func(err error) bool { return refused(err, "INSUFFICIENT_FUNDS") }},
			{"error", lost{}, func(err error) bool { return errors.Is(err, errLost) }},
			{"panic in Decide", explode{}, func(err error) bool { return err != nil && es.RefusalOf(err) == nil }},
			{"panic in Evolve", bomb{}, func(err error) bool { return err != nil && es.RefusalOf(err) == nil }},
			{"a fact over the limit", swell{}, func(err error) bool { return errors.As(err, &limit) }},
		} {
			t.Run(tc.name, func(t *testing.T) {
				x, id, other := newExecutor(t, s, es.ExecutorOptions{}), uuid.NewString(), uuid.NewString()
				for _, cached := range []bool{false, true} {
					results := x.ExecuteAll(t.Context(), []es.Command[any]{
						command(id, "", put{1}), command(other, "", put{1}), command(id, "", tc.bad), command(id, "", put{2}), command(other, "", put{2}),
					})
					for i, r := range results {
						if i == 2 && !tc.fails(r.Err) {
							t.Errorf("cached %v: the bad one: %v", cached, r.Err)
						}
						if i != 2 && r.Err != nil {
							t.Errorf("cached %v: command %d: %v", cached, i, r.Err)
						}
					}
				}
				if a, b := balance(t, s, id), balance(t, s, other); a != 6 || b != 6 {
					t.Errorf("balances %d and %d, want 6 and 6", a, b)
				}
			})
		}
	})
}

// Creates saves a look at the store when the guess is right, and nothing else when it is wrong.
func TestAWrongGuessAtCreatesCostsNothing(t *testing.T) {
	eachStore(t, func(t *testing.T, s es.Store) {
		id := uuid.NewString()
		guess := func(key string, c any) es.Command[any] {
			cmd := command(id, key, c)
			cmd.Creates = true
			return cmd
		}
		if _, err := newExecutor(t, s, es.ExecutorOptions{}).Execute(t.Context(), guess("", spend{1})); !refused(err, "INSUFFICIENT_FUNDS") {
			t.Errorf("a right guess: %v", err)
		}
		must(t, newExecutor(t, s, es.ExecutorOptions{}), id, "key", put{10})
		for _, tc := range []struct {
			key      string
			c        any
			replayed bool
			version  int64
		}{{"", spend{3}, false, 2}, {"key", put{10}, true, 2}, {"", idle{}, false, 2}} {
			out, err := newExecutor(t, s, es.ExecutorOptions{}).Execute(t.Context(), guess(tc.key, tc.c))
			if err != nil || out.Replayed != tc.replayed || out.Version != tc.version || out.State.Balance != 7 {
				t.Errorf("%T: got %+v, %v", tc.c, out, err)
			}
		}
	})
}

func TestGetOfAnUnknownStreamIsVersionZero(t *testing.T) {
	eachStore(t, func(t *testing.T, s es.Store) {
		x, id := newExecutor(t, s, es.ExecutorOptions{}), uuid.NewString()
		must(t, x, id, "", put{10})
		all, err := x.GetAll(t.Context(), []string{uuid.NewString(), id})
		if err != nil || all[0].Version != 0 || all[0].State != (purse{}) || all[1].Version != 1 || all[1].State.Balance != 10 {
			t.Errorf("%+v, %v", all, err)
		}
	})
}

func TestAClosedExecutorTakesNothing(t *testing.T) {
	eachStore(t, func(t *testing.T, s es.Store) {
		x, id := newExecutor(t, s, es.ExecutorOptions{}), uuid.NewString()
		if err := x.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := x.Execute(context.Background(), command(id, "", put{1})); !errors.Is(err, batch.ErrClosed) {
			t.Errorf("got %v", err)
		}
	})
}
