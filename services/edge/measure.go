package edge

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"example.com/billing/pkg/inbox"
	"example.com/billing/pkg/outbox"
	"example.com/billing/pkg/parking"
)

// measureMax is how long one query of a scrape may take.
const measureMax = time.Second

// measured are the metrics of a service's database, which each scrape reads once.
type measured struct {
	pool  *pgxpool.Pool
	gauge map[string]*prometheus.Desc

	mu        sync.Mutex // one scrape at a time
	snapshots snapshots
}

// measuredNames are the metrics' names.
var measuredNames = []string{
	"outbox_pending_events", "outbox_oldest_pending_seconds", "outbox_parked_events", "inbox_parked_messages", "postgres_oldest_snapshot_seconds",
}

func newMeasured(pool *pgxpool.Pool) *measured {
	m := &measured{pool: pool, gauge: map[string]*prometheus.Desc{}, snapshots: snapshots{pool: pool, holders: holders, now: time.Now}}
	for _, name := range measuredNames {
		m.gauge[name] = prometheus.NewDesc(name, strings.ReplaceAll(name, "_", " ")+"; -1 = not known", nil, nil)
	}
	return m
}

// Describe is prometheus.Collector's.
func (m *measured) Describe(into chan<- *prometheus.Desc) {
	for _, name := range measuredNames {
		into <- m.gauge[name]
	}
}

// Collect is prometheus.Collector's.
func (m *measured) Collect(into chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.read(into, func(ctx context.Context) ([]float64, error) {
		st, err := outbox.ReadStats(ctx, m.pool)
		return []float64{float64(st.Pending), st.OldestPending.Seconds()}, err
	}, "outbox_pending_events", "outbox_oldest_pending_seconds")
	m.read(into, rowsIn(outbox.Lanes(m.pool)), "outbox_parked_events")
	m.read(into, rowsIn(inbox.Lanes(m.pool)), "inbox_parked_messages")
	m.read(into, func(ctx context.Context) ([]float64, error) {
		age, err := m.snapshots.oldest(ctx)
		return []float64{age.Seconds()}, err
	}, "postgres_oldest_snapshot_seconds")
}

// read publishes what f reads under these names, -1 where it cannot be read.
func (m *measured) read(into chan<- prometheus.Metric, f func(context.Context) ([]float64, error), names ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), measureMax)
	defer cancel()
	values, err := f(ctx)
	for i, name := range names {
		v := -1.0
		if err == nil {
			v = values[i]
		}
		into <- prometheus.MustNewConstMetric(m.gauge[name], prometheus.GaugeValue, v)
	}
}

func rowsIn(lanes parking.Lanes) func(context.Context) ([]float64, error) {
	return func(ctx context.Context) ([]float64, error) {
		n, err := lanes.Waiting(ctx)
		return []float64{float64(n)}, err
	}
}
