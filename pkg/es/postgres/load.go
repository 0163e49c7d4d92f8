package postgres

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"example.com/billing/pkg/batch"
	"example.com/billing/pkg/es"
)

// loadEach reads each span through the index on streams. The limit within the lateral query forbids a join of
// whole tables, which the statistics of a fast-growing table can suggest.
const loadEach = `SELECT w.n, e.position, e.recorded_at, e.payload
	FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) WITH ORDINALITY AS w(t, id, after, most, n)
	CROSS JOIN LATERAL (
		SELECT position, recorded_at, payload FROM es_event
		WHERE stream_id = w.id AND stream_type = w.t AND version > w.after
		ORDER BY version LIMIT nullif(w.most, 0)
	) e`

// LoadEach is es.Store's: one query for all spans.
func (s *Store) LoadEach(ctx context.Context, spans []es.Span) ([]batch.Result[[]es.Event], error) {
	const op = "load streams"
	loaded := make([]batch.Result[[]es.Event], len(spans))
	if len(spans) == 0 {
		return loaded, nil
	}
	streams, after, most := make([]es.Stream, len(spans)), make([]int64, len(spans)), make([]int64, len(spans))
	for i, span := range spans {
		streams[i], after[i], most[i] = span.Stream, span.After, int64(span.Limit)
	}
	types, ids := split(streams)
	rows, err := s.pool.Query(ctx, loadEach, types, ids, after, most)
	if err != nil {
		return nil, Classify(op, err)
	}
	var (
		n   int64
		row eventRow
	)
	_, err = pgx.ForEachRow(rows, []any{&n, &row.position, &row.at, &row.payload}, func() error {
		l := &loaded[n-1]
		e, err := row.event()
		row.payload = nil // the next row gets an array of its own
		if err != nil && l.Err == nil {
			l.Err = fmt.Errorf("load %s at position %d: %w", streams[n-1], row.position, err)
		}
		l.Value = append(l.Value, e)
		return nil
	})
	if err != nil {
		return nil, Classify(op, err)
	}
	for i := range loaded {
		if loaded[i].Err != nil {
			loaded[i].Value = nil
		}
		// The query has no order of its own: the database would sort the payloads with it.
		slices.SortFunc(loaded[i].Value, func(a, b es.Event) int { return cmp.Compare(a.Version, b.Version) })
	}
	return loaded, nil
}
