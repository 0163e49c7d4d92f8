// Package outbox moves committed events to Kafka: at least once, in the order of their positions.
//
// Events and their outbox row commit together (package es/postgres). The relay reads events behind its checkpoint, publishes
// them, and moves the checkpoint once Kafka has acknowledged them. A lease with an epoch keeps a second relay away, and
// refuses the late write of one that lost it.
//
// A lane is one stream. An event that Kafka refuses for its own sake is parked after some attempts, and with it whatever comes
// behind it in its lane, so that the other lanes flow on. A person requeues the lane: its events are sent in order, new ones
// still wait behind them, and once all are through the lane is like any other. An outage parks nothing.
package outbox

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/parking"
)

// ErrFenced is returned when another relay has taken the lease.
var ErrFenced = errors.New("another relay holds the lease")

// Topic is where the events of an aggregate type are published: billing.account.events.
func Topic(prefix, aggregateType string) string {
	return prefix + "." + strings.ToLower(aggregateType) + ".events"
}

// Stats is a snapshot of an outbox.
type Stats struct {
	Pending       int64         // events not yet acknowledged by Kafka
	Delivered     int64         // acknowledged events that the outbox still remembers; parked ones are neither pending nor delivered
	Failed        int64         // pending events whose latest attempt failed
	Retries       int64         // attempts that failed since the last success
	LastError     string        // empty after a success
	OldestPending time.Duration // age of the oldest pending event
	ProcessedAt   time.Time     // when Kafka last acknowledged something; zero = never
}

// table is the outbox's rows in the service's database.
type table struct{ pool *pgxpool.Pool }

// ReadStats counts an outbox's events by delivery status, in one snapshot. Positions have no gaps, so the checkpoint and the first
// batch that is left tell what was delivered, however many batches there are. An event that was recorded by a clock that was ahead
// has waited since Kafka last acknowledged one. The limit tells a planner that has no statistics that there is one row; else it
// expects a million and compiles the query, for a third of a second.
func ReadStats(ctx context.Context, pool *pgxpool.Pool) (Stats, error) {
	var (
		s         Stats
		oldest    float64
		lastError *string
		processed *time.Time
	)
	err := pool.QueryRow(ctx, `
		WITH r AS MATERIALIZED (SELECT * FROM outbox_relay LIMIT 1),
		l AS MATERIALIZED (SELECT coalesce((SELECT position FROM es_event ORDER BY position DESC LIMIT 1), 0) AS position),
		k AS MATERIALIZED (SELECT `+firstKept+` AS first FROM r)
		SELECT l.position - r.position,
		       greatest(coalesce(r.position - k.first + 1 - (SELECT count(*) FROM outbox_parked WHERE done_at IS NULL AND position >= k.first), 0), 0)::bigint,
		       least(r.failed, l.position - r.position), r.retries, r.last_error, r.processed_at,
		       coalesce((SELECT extract(epoch FROM clock_timestamp() - CASE WHEN recorded_at > clock_timestamp() THEN coalesce(r.processed_at, 'epoch') ELSE recorded_at END)
		         FROM es_event WHERE position = r.position + 1), 0)::float8
		FROM l, r, k`).Scan(&s.Pending, &s.Delivered, &s.Failed, &s.Retries, &lastError, &processed, &oldest)
	if err != nil {
		return Stats{}, espg.Classify("read outbox stats", err)
	}
	if lastError != nil {
		s.LastError = *lastError
	}
	if processed != nil {
		s.ProcessedAt = processed.UTC()
	}
	s.OldestPending = time.Duration(max(oldest, 0) * float64(time.Second))
	return s, nil
}

// firstKept is the first position of the batches that are left, null if none are, for relay row r. It is looked for from where the
// clean-up was last: the index before it is full of dead entries, for as long as any snapshot is open.
const firstKept = `coalesce((SELECT from_position FROM outbox_batch WHERE from_position >= r.kept_from ORDER BY from_position LIMIT 1),
	(SELECT from_position FROM outbox_batch ORDER BY from_position LIMIT 1))`

// lease is the right to publish, until it ends or another relay takes it.
type lease struct {
	epoch       int64
	position    int64 // the checkpoint
	incarnation int64 // of the database, that position and epoch belong to
}

// acquire takes or renews the lease for owner. ok is false while another owner's has not ended. A lease that ends
// later than its length from now was written by a clock that was ahead, and is void: the epoch keeps its owner out.
func (t table) acquire(ctx context.Context, owner string, ttl time.Duration) (l lease, ok bool, err error) {
	err = t.pool.QueryRow(ctx, `
		UPDATE outbox_relay SET owner = $1, leased_until = clock_timestamp() + $2::interval, leased_for = $2::interval,
		       epoch = CASE WHEN owner = $1 THEN epoch ELSE epoch + 1 END
		WHERE owner = $1 OR leased_until < clock_timestamp() OR leased_until > clock_timestamp() + leased_for + interval '1 second'
		RETURNING epoch, position, (SELECT max(number) FROM es_incarnation)`, owner, ttl).Scan(&l.epoch, &l.position, &l.incarnation)
	if errors.Is(err, pgx.ErrNoRows) {
		return lease{}, false, nil
	}
	if err != nil {
		return lease{}, false, espg.Classify("acquire lease", err)
	}
	return l, true, nil
}

// release ends the lease, so that the next relay need not wait for it.
func (t table) release(ctx context.Context, epoch int64, owner string) error {
	_, err := t.pool.Exec(ctx, `UPDATE outbox_relay SET leased_until = 'epoch', owner = '' WHERE epoch = $1 AND owner = $2`, epoch, owner)
	return err
}

// event is an event on its way.
type event struct {
	position int64
	message  kafka.Message
	waits    bool // its lane is parked
}

// The headers that say where an event stands in its database's log. A position is one of an incarnation: a consumer that knows where a
// later one began tells by them which events are not part of the log any more.
const (
	PositionHeader    = "position"
	IncarnationHeader = "incarnation"
)

// messages are the events as they are published.
func messages(events []event, incarnation int64) []kafka.Message {
	out := make([]kafka.Message, len(events))
	number := []byte(strconv.FormatInt(incarnation, 10))
	for i, e := range events {
		out[i] = e.message
		out[i].Headers = append(out[i].Headers,
			kafka.Header{Key: PositionHeader, Value: strconv.AppendInt(nil, e.position, 10)}, kafka.Header{Key: IncarnationHeader, Value: number})
	}
	return out
}

// read returns the events behind a checkpoint, in the order of their positions. There are none in another incarnation than the
// checkpoint's.
func (t table) read(ctx context.Context, prefix string, l lease, limit int) ([]event, error) {
	after := l.position
	rows, err := t.pool.Query(ctx, `SELECT position, stream_type, stream_id, version, event_type, correlation_id, payload, `+laneIsParked+`
		FROM es_event e WHERE position > $1 AND (SELECT max(number) FROM es_incarnation) = $3 ORDER BY position LIMIT $2`, after, limit, l.incarnation)
	if err != nil {
		return nil, espg.Classify("read events", err)
	}
	events, err := scanEvents(rows, prefix)
	for i, e := range events {
		if err == nil && e.position != after+int64(i)+1 {
			err = fmt.Errorf("position %d follows %d", e.position, after+int64(i))
		}
	}
	return events, espg.Classify("read events", err)
}

// committed is an event as its process remembers it; its lane is not parked.
func committed(prefix string, c espg.Committed) event {
	return event{position: c.Position, message: message(prefix, c.Stream.Type, c.Stream.ID, c.Version, c.Type, c.CorrelationID, c.Payload)}
}

// Message is an event as it is published from an incarnation of its database.
func Message(prefix string, e es.Event, incarnation int64) (kafka.Message, error) {
	payload, err := e.Encode()
	m := message(prefix, e.Stream.Type, e.Stream.ID, e.Version, e.Type, e.CorrelationID, payload)
	return messages([]event{{position: e.Position, message: m}}, incarnation)[0], err
}

// message is an event as it is published.
func message(prefix, streamType, id string, version int64, eventType, correlation string, payload []byte) kafka.Message {
	return kafka.Message{
		Topic: Topic(prefix, streamType), Key: []byte(id), Value: payload,
		Headers: []kafka.Header{
			{Key: "eventType", Value: []byte(eventType)},
			{Key: "aggregateVersion", Value: []byte(strconv.FormatInt(version, 10))},
			{Key: "correlationId", Value: []byte(correlation)},
		},
	}
}

// scanEvents reads rows of position, stream, version, type, correlation id, payload, and whether the lane is parked.
func scanEvents(rows pgx.Rows, prefix string) ([]event, error) {
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (event, error) {
		var (
			e                                      event
			version                                int64
			streamType, id, eventType, correlation string
			payload                                []byte
		)
		err := row.Scan(&e.position, &streamType, &id, &version, &eventType, &correlation, &payload, &e.waits)
		e.message = message(prefix, streamType, id, version, eventType, correlation, payload)
		return e, err
	})
}

// advance moves the checkpoint, unless the lease was lost, over acked events that Kafka has acknowledged, and parks the events at
// waiting, which are not behind it, each behind the others of its lane.
func (t table) advance(ctx context.Context, l lease, acked int, waiting []int64, owner string, ttl time.Duration) error {
	return t.change(ctx, l, acked, owner, ttl, func(b *pgx.Batch) {
		if len(waiting) > 0 {
			b.Queue(parkRows, waiting, 0, 0, "")
		}
	})
}

// change does what queue says and moves the checkpoint, in one transaction, unless the lease was lost or its incarnation has ended. The checkpoint's row is
// locked first: nobody requeues a lane meanwhile. Only where Kafka has acknowledged something, acked, do the stats tell of a success.
func (t table) change(ctx context.Context, l lease, acked int, owner string, ttl time.Duration, queue func(*pgx.Batch)) error {
	move := `UPDATE outbox_relay SET position = greatest(position, $2), leased_until = clock_timestamp() + $4::interval, leased_for = $4::interval`
	if acked > 0 {
		move += `, processed_at = clock_timestamp(), retries = 0, failed = 0, last_error = NULL`
	}
	move += ` WHERE epoch = $1 AND owner = $3 AND es_is_current($5)`
	b := &pgx.Batch{}
	queue(b)
	if b.Len() == 0 {
		return t.fenced(t.pool.Exec(ctx, move, l.epoch, l.position, owner, ttl, l.incarnation))
	}
	err := pgx.BeginFunc(ctx, t.pool, func(tx pgx.Tx) error {
		if err := t.fenced(tx.Exec(ctx, move, l.epoch, l.position, owner, ttl, l.incarnation)); err != nil {
			return err
		}
		return tx.SendBatch(ctx, b).Close()
	})
	if errors.Is(err, ErrFenced) {
		return err
	}
	return espg.Classify("write parked events", err)
}

// failed records an attempt that failed; refused is the position of the event that Kafka refused, 0 = it was an outage. It
// returns how often in a row that event was refused.
func (t table) failed(ctx context.Context, epoch int64, events int, refused int64, cause error) (attempts int, err error) {
	err = t.pool.QueryRow(ctx, `UPDATE outbox_relay SET retries = retries + 1, failed = $2, last_error = $3,
		       refused_attempts = CASE WHEN $4::bigint = 0 THEN refused_attempts WHEN refused_position = $4 THEN refused_attempts + 1 ELSE 1 END,
		       refused_position = CASE WHEN $4 = 0 THEN refused_position ELSE $4 END
		WHERE epoch = $1 RETURNING refused_attempts`, epoch, events, parking.Text(cause.Error()), refused).Scan(&attempts)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, ErrFenced
	}
	return attempts, espg.Classify("write checkpoint", err)
}

func (t table) fenced(tag interface{ RowsAffected() int64 }, err error) error {
	if err != nil {
		return espg.Classify("write checkpoint", err)
	}
	if tag.RowsAffected() == 0 {
		return ErrFenced
	}
	return nil
}

// cleanup forgets delivered rows older than keep, in the order of their positions, up to the first that stays: so many rows are
// read as are forgotten, and one more.
func (t table) cleanup(ctx context.Context, keep time.Duration) (int64, error) {
	var n int64
	err := t.pool.QueryRow(ctx, `
		WITH r AS MATERIALIZED (SELECT position, kept_from FROM outbox_relay LIMIT 1),
		stays AS MATERIALIZED (SELECT coalesce((SELECT from_position FROM outbox_batch, r
			WHERE from_position >= r.kept_from AND NOT (created_at < clock_timestamp() - $1::interval AND to_position <= r.position)
			ORDER BY from_position LIMIT 1), (SELECT position + 1 FROM r)) AS first),
		gone AS (DELETE FROM outbox_batch WHERE from_position >= (SELECT kept_from FROM r) AND from_position < (SELECT first FROM stays) RETURNING 1),
		mark AS (UPDATE outbox_relay SET kept_from = (SELECT first FROM stays) WHERE EXISTS (SELECT FROM gone))
		SELECT count(*) FROM gone`, keep).Scan(&n)
	return n, espg.Classify("clean up outbox", err)
}
