package run

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
)

// trips counts what is sent to the database and waited for: a query, or a batch of them.
type trips struct{ prometheus.Counter }

// countTrips registers the counter; pools of one process share it.
func countTrips(metrics prometheus.Registerer) (trips, error) {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "postgres_round_trips_total", Help: "Queries and batches of queries sent to the database."})
	err := metrics.Register(c)
	var known prometheus.AlreadyRegisteredError
	if errors.As(err, &known) {
		return trips{known.ExistingCollector.(prometheus.Counter)}, nil //nolint:forcetypeassert // of this name
	}
	return trips{c}, err
}

// TraceQueryStart is pgx.QueryTracer's.
func (t trips) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	t.Inc()
	return ctx
}

// TraceQueryEnd is pgx.QueryTracer's.
func (trips) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TraceBatchStart is pgx.BatchTracer's.
func (t trips) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	t.Inc()
	return ctx
}

// TraceBatchQuery is pgx.BatchTracer's.
func (trips) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd is pgx.BatchTracer's.
func (trips) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}
