package projection_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/projection"
)

// A repair loads from the owner's store while it holds no connection: with a pool of one it would wait for itself for ever.
func TestARepairHoldsNoConnection(t *testing.T) {
	f := open(t)
	cfg, err := pgxpool.ParseConfig(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 1
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE account (id uuid PRIMARY KEY, version bigint NOT NULL, state bytea NOT NULL, tenant text)`); err != nil {
		t.Fatal(err)
	}
	p := projection.New(pool, f.model, func(ctx context.Context, s es.Stream, after int64, limit int) ([]es.Event, error) {
		if err := pool.Ping(ctx); err != nil { // as a store on the same pool would
			return nil, err
		}
		return f.store.Load(ctx, s, after, limit)
	})
	s := newStream()
	events := f.history(t, s, 5, 5)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := p.Handle(ctx, events[4:]); err != nil {
		t.Fatal(err)
	}
	var version int64
	if err := pool.QueryRow(t.Context(), `SELECT version FROM account WHERE id = $1`, s.ID).Scan(&version); err != nil || version != 5 {
		t.Errorf("the row shows version %d (%v), want 5", version, err)
	}
}

// A row whose state this code cannot read is folded anew from the owner's store, whatever message comes: a late duplicate of
// the first event must not take it back.
func TestAnUnreadableRowIsFoldedAnew(t *testing.T) {
	for name, deliver := range map[string]func([]es.Event) []es.Event{
		"by a late duplicate":   func(all []es.Event) []es.Event { return all[:1] },
		"by the next event":     func(all []es.Event) []es.Event { return all[3:] },
		"by the whole stream":   func(all []es.Event) []es.Event { return all },
		"by one in the middle":  func(all []es.Event) []es.Event { return all[1:2] },
		"by a hole in a stream": func(all []es.Event) []es.Event { return []es.Event{all[0], all[3]} },
	} {
		t.Run(name, func(t *testing.T) {
			f := open(t)
			s := newStream()
			all := f.history(t, s, 4, 4)
			if err := f.Handle(t.Context(), all[:3]); err != nil {
				t.Fatal(err)
			}
			if _, err := f.pool.Exec(t.Context(), `UPDATE account SET state = '{"sum":"of another schema"}' WHERE id = $1`, s.ID); err != nil {
				t.Fatal(err)
			}
			if err := f.Handle(t.Context(), deliver(all)); err != nil {
				t.Fatal(err)
			}
			if r := f.row(t, s); r.Version != 4 || r.State != (balance{Sum: 10, Moves: 4}) {
				t.Errorf("the row shows %+v, want all four events", r)
			}
		})
	}
}
