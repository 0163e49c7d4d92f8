package postgres_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/saga"
	"example.com/billing/pkg/saga/postgres"
)

// batches counts the batches sent to the database.
type batches struct{ atomic.Int64 }

func (*batches) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (*batches) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (b *batches) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	b.Add(1)
	return ctx
}
func (*batches) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (*batches) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

// States that hold are saved in one round trip, ends with their events among them. One that does not hold fails alone, whether its
// revision is another or its epoch.
func TestSavesAreSentWhole(t *testing.T) {
	_, _, pool := open(t)
	n := &batches{}
	cfg := pool.Config().Copy()
	cfg.ConnConfig.Tracer = n
	watched, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watched.Close)
	s := postgres.New(watched, espg.New(watched, espg.Options{}), ended)
	going, ending, third := newState(t, s), newState(t, s), newState(t, s)
	ending.Status = saga.Completed
	before := n.Load()
	if err := errors.Join(s.Save(t.Context(), []saga.State{going, ending})...); err != nil || n.Load() != before+1 {
		t.Fatalf("%v in %d batches", err, n.Load()-before)
	}
	for name, change := range map[string]func(*saga.State){
		"revision": func(st *saga.State) { st.Revision = 1 },
		"epoch":    func(st *saga.State) { st.Epoch = 77 },
	} {
		late := going
		late.Revision = 2
		change(&late)
		errs := s.Save(t.Context(), []saga.State{late, third})
		if !errors.Is(errs[0], saga.ErrStale) || errs[1] != nil {
			t.Errorf("another %s: %v", name, errs)
		}
		third.Revision++
	}
	for id, want := range map[string]int64{going.SagaID: 2, ending.SagaID: 2, third.SagaID: 3} {
		if got, err := s.Get(t.Context(), id); err != nil || got.Revision != want {
			t.Errorf("revision %d (%v), want %d", got.Revision, err, want)
		}
	}
}
