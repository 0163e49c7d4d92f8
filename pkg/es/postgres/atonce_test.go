package postgres_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/postgres"
)

// trips counts what is sent to the database and waited for.
type trips struct{ atomic.Int64 }

func (t *trips) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	t.Add(1)
	return ctx
}
func (*trips) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (t *trips) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	t.Add(1)
	return ctx
}
func (*trips) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (*trips) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

// counted is another store on the same database, with a count of its round trips.
func counted(t *testing.T, pool *pgxpool.Pool) (*postgres.Store, *trips) {
	t.Helper()
	n := &trips{}
	cfg := pool.Config().Copy()
	cfg.ConnConfig.Tracer = n
	watched, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watched.Close)
	return postgres.New(watched, postgres.Options{}), n
}

// A group upon the versions that are stored costs one round trip. One that is refused costs three more, the next eight begin with a
// look, and then groups are sent whole again.
func TestAGroupThatHoldsIsOneRoundTrip(t *testing.T) {
	_, pool := open(t)
	s, n := counted(t, pool)
	if _, err := s.Incarnation(t.Context()); err != nil { // asked for once, with a process's first append
		t.Fatal(err)
	}
	a, b := stream("a"), stream("b")
	took := func(want int64, items ...[]es.Append) []error {
		t.Helper()
		before := n.Load()
		errs := s.AppendBatch(t.Context(), items)
		if got := n.Load() - before; got != want {
			t.Errorf("%d round trips, want %d", got, want)
		}
		return errs
	}
	for _, errs := range [][]error{
		took(1, []es.Append{after(a, 0, 2)}, []es.Append{after(b, 0, 1)}),
		took(1, []es.Append{after(a, 2, 1)}, []es.Append{after(a, 3, 1), after(b, 1, 3)}, []es.Append{after(b, 4, 1)}),
	} {
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	var conflict *es.ConflictError
	if errs := took(4, []es.Append{after(a, 2, 1)}, []es.Append{after(b, 5, 1)}); !errors.As(errs[0], &conflict) || conflict.Actual != 4 || errs[1] != nil {
		t.Fatal(errs)
	}
	for i := range 8 {
		if errs := took(2, []es.Append{after(a, int64(4+i), 1)}); errs[0] != nil {
			t.Fatal(errs)
		}
	}
	if errs := took(1, []es.Append{after(a, 12, 1)}); errs[0] != nil {
		t.Fatal(errs)
	}
	if got := number(t, pool, `SELECT sum(version) FROM es_head`); got != 13+6 {
		t.Errorf("versions of the heads: %d", got)
	}
}

// What a group takes for granted is checked with it, whoever wrote meanwhile: a stream's version that something is written upon, one
// that nothing is written to, that a stream is new, and that an event's id is. Only the item that was wrong about it fails.
func TestWhatAGroupExpectsIsChecked(t *testing.T) {
	var (
		conflict  *es.ConflictError
		duplicate *es.DuplicateError
		moved     = stream("moved")
		stored    = after(moved, 0, 3)
	)
	again := after(stream("own"), 0, 1)
	again.Events[0].ID = stored.Events[1].ID
	for name, tc := range map[string]struct {
		item  []es.Append
		fails func(error) bool
	}{
		"a version to write upon":         {[]es.Append{after(moved, 2, 1)}, func(err error) bool { return errors.As(err, &conflict) && conflict.Actual == 3 }},
		"a version that is not there yet": {[]es.Append{after(moved, 5, 1)}, func(err error) bool { return errors.As(err, &conflict) && conflict.Actual == 3 }},
		"a version that is only read":     {[]es.Append{{Stream: moved, Expected: 2}}, func(err error) bool { return errors.As(err, &conflict) && conflict.Actual == 3 }},
		"a stream that is not there":      {[]es.Append{{Stream: stream("never"), Expected: 1}}, func(err error) bool { return errors.As(err, &conflict) && conflict.Actual == 0 }},
		"a new stream":                    {[]es.Append{after(moved, 0, 1)}, func(err error) bool { return errors.As(err, &conflict) && conflict.Actual == 3 }},
		"an id":                           {[]es.Append{again}, func(err error) bool { return errors.As(err, &duplicate) && len(duplicate.IDs) == 1 }},
		"one of several streams":          {[]es.Append{after(stream("own"), 0, 1), after(moved, 1, 1)}, func(err error) bool { return errors.As(err, &conflict) && conflict.Actual == 3 }},
		"nothing is wrong":                {[]es.Append{after(moved, 3, 1), {Stream: stream("never")}}, func(err error) bool { return err == nil }},
		"nothing is wrong, only read":     {[]es.Append{{Stream: moved, Expected: 3}}, func(err error) bool { return err == nil }},
	} {
		t.Run(name, func(t *testing.T) {
			s, pool := open(t)
			if err := s.Append(t.Context(), stored); err != nil {
				t.Fatal(err)
			}
			other, _ := counted(t, pool)
			errs := other.AppendBatch(t.Context(), [][]es.Append{{after(stream("first"), 0, 2)}, tc.item, {after(stream("last"), 0, 1)}})
			if errs[0] != nil || !tc.fails(errs[1]) || errs[2] != nil {
				t.Fatal(errs)
			}
			want := int64(3 + 2 + 1)
			if errs[1] == nil {
				for _, a := range tc.item {
					want += int64(len(a.Events))
				}
			}
			if got := number(t, pool, `SELECT count(*) FROM es_event`); got != want || number(t, pool, `SELECT es_end()`) != want ||
				number(t, pool, `SELECT sum(version) FROM es_head`) != want || number(t, pool, `SELECT sum(events) FROM outbox_batch`) != want {
				t.Errorf("%d events, want %d, as the log's end, the heads and the outbox say too", got, want)
			}
		})
	}
}
