package postgres

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
)

// atOnceAgain is after how many groups a transaction is sent whole again once one of those was refused: where another process writes to
// the same streams, the next ones would be too.
const atOnceAgain = 8

// atOnce commits a group in one round trip, upon the versions that its items expect and without a look at what is stored: who decides
// for a stream mostly knows it. Where something is not as expected the database refuses the whole: done is false, nothing is written,
// and the group has to be looked at item by item.
func (s *Store) atOnce(ctx context.Context, conn *pgxpool.Conn, g *group, with *With) (done bool, err error) {
	if with != nil && with.Once == nil || s.apart.Add(-1) >= 0 {
		return false, nil
	}
	s.apart.Store(0)
	errs := slices.Clone(g.errs)
	defer func() {
		if !done && err == nil {
			g.errs, g.written = errs, nil
		}
	}()
	heads := g.expected()
	accepted := g.accept(heads, nil)
	b := &pgx.Batch{}
	b.Queue("BEGIN")
	b.Queue(LockLog)
	end, err := s.write(ctx, b, g, accepted, heads)
	if err != nil {
		return false, nil // an item's, to be found
	}
	if with != nil {
		if ok, err := with.Once(b, accepted); !ok || err != nil {
			return false, nil // an item's, to be found
		}
	}
	g.queueUnmoved(b, accepted, heads)
	b.Queue("COMMIT")
	err = conn.SendBatch(ctx, b).Close()
	var refused *pgconn.PgError
	var unavailable *es.UnavailableError
	if errors.As(err, &refused) && refused.Code != otherHistory && !errors.As(Classify("append", err), &unavailable) {
		s.apart.Store(atOnceAgain)
		_, err := conn.Exec(ctx, "ROLLBACK")
		return false, Classify("append", err)
	}
	if err != nil {
		return false, s.historyError(ctx, "append", err)
	}
	g.place(*end)
	return true, nil
}

// expected are the versions that the first append to each stream expects.
func (g *group) expected() map[es.Stream]int64 {
	heads := make(map[es.Stream]int64, len(g.streams))
	for i, item := range g.items {
		if g.errs[i] != nil {
			continue
		}
		for _, a := range item {
			if _, known := heads[a.Stream]; !known {
				heads[a.Stream] = a.Expected
			}
		}
	}
	return heads
}

// queueUnmoved has the transaction fail unless the streams that nothing is written to are where their items expect them.
func (g *group) queueUnmoved(b *pgx.Batch, accepted []int, heads map[es.Stream]int64) {
	moved := map[es.Stream]bool{}
	for _, i := range accepted {
		for _, a := range g.items[i] {
			moved[a.Stream] = moved[a.Stream] || len(a.Events) > 0
		}
	}
	var still []es.Stream
	var versions []int64
	for _, st := range g.streams {
		if known, ok := heads[st]; ok && !moved[st] {
			still, versions = append(still, st), append(versions, known)
		}
	}
	if len(still) == 0 {
		return
	}
	types, ids := split(still)
	b.Queue(`SELECT es_require(bool_and(coalesce(h.version, 0) = w.v)) FROM unnest($1::text[], $2::text[], $3::bigint[]) AS w(t, id, v)
	         LEFT JOIN es_head h ON h.stream_id = w.id AND h.stream_type = w.t`, types, ids, versions)
}
