// Package outbox moves committed events to Kafka: at least once, in the order of their positions.
//
// Events and their outbox row commit together (package es/postgres). The relay reads events behind its checkpoint, publishes
// them, and moves the checkpoint once Kafka has acknowledged them. A lease with an epoch keeps a second relay away, and
// refuses the late write of one that lost it.
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

	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
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
	Delivered     int64         // acknowledged events that the outbox still remembers
	Failed        int64         // pending events whose latest attempt failed
	Retries       int64         // attempts that failed since the last success
	LastError     string        // empty after a success
	OldestPending time.Duration // age of the oldest pending event
	ProcessedAt   time.Time     // when Kafka last acknowledged something; zero = never
}

// table is the outbox's rows in the service's database.
type table struct{ pool *pgxpool.Pool }

// ReadStats counts an outbox's events by delivery status, in one snapshot. The limits tell a planner that has no statistics
// that there is one row each; else it expects a million and compiles the query, for a third of a second.
func ReadStats(ctx context.Context, pool *pgxpool.Pool) (Stats, error) {
	var (
		s         Stats
		oldest    float64
		lastError *string
		processed *time.Time
	)
	err := pool.QueryRow(ctx, `
		SELECT l.position - r.position,
		       coalesce((SELECT sum(least(to_position, r.position) - from_position + 1) FROM outbox_batch WHERE from_position <= r.position), 0)::bigint,
		       least(r.failed, l.position - r.position), r.retries, r.last_error, r.processed_at,
		       coalesce((SELECT extract(epoch FROM clock_timestamp() - recorded_at) FROM es_event WHERE position = r.position + 1), 0)::float8
		FROM (SELECT position FROM es_log LIMIT 1) l, (SELECT * FROM outbox_relay LIMIT 1) r`).Scan(&s.Pending, &s.Delivered, &s.Failed, &s.Retries, &lastError, &processed, &oldest)
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

// lease is the right to publish, until it ends or another relay takes it.
type lease struct {
	epoch    int64
	position int64 // the checkpoint
}

// acquire takes or renews the lease for owner. ok is false while another owner's has not ended.
func (t table) acquire(ctx context.Context, owner string, ttl time.Duration) (l lease, ok bool, err error) {
	err = t.pool.QueryRow(ctx, `
		UPDATE outbox_relay SET owner = $1, leased_until = clock_timestamp() + $2::interval,
		       epoch = CASE WHEN owner = $1 THEN epoch ELSE epoch + 1 END
		WHERE owner = $1 OR leased_until < clock_timestamp() RETURNING epoch, position`, owner, ttl).Scan(&l.epoch, &l.position)
	if errors.Is(err, pgx.ErrNoRows) {
		return lease{}, false, nil
	}
	if err != nil {
		return lease{}, false, espg.Classify("acquire lease", err)
	}
	return l, true, nil
}

// release ends the lease, so that the next relay need not wait for it.
func (t table) release(ctx context.Context, epoch int64) error {
	_, err := t.pool.Exec(ctx, `UPDATE outbox_relay SET leased_until = 'epoch', owner = '' WHERE epoch = $1`, epoch)
	return err
}

// read returns the messages behind a checkpoint, in the order of their positions.
func (t table) read(ctx context.Context, prefix string, after int64, limit int) ([]kafka.Message, error) {
	rows, err := t.pool.Query(ctx, `SELECT position, stream_type, stream_id, version, event_type, correlation_id, payload
		FROM es_event WHERE position > $1 ORDER BY position LIMIT $2`, after, limit)
	if err != nil {
		return nil, espg.Classify("read events", err)
	}
	var (
		messages                               []kafka.Message
		last                                   = after
		position, version                      int64
		streamType, id, eventType, correlation string
		payload                                []byte
	)
	_, err = pgx.ForEachRow(rows, []any{&position, &streamType, &id, &version, &eventType, &correlation, &payload}, func() error {
		if position != last+1 {
			return fmt.Errorf("position %d follows %d", position, last)
		}
		last = position
		messages = append(messages, kafka.Message{
			Topic: Topic(prefix, streamType), Key: []byte(id), Value: payload,
			Headers: []kafka.Header{
				{Key: "eventType", Value: []byte(eventType)},
				{Key: "aggregateVersion", Value: []byte(strconv.FormatInt(version, 10))},
				{Key: "correlationId", Value: []byte(correlation)},
			},
		})
		payload = nil // the next row gets an array of its own
		return nil
	})
	if err != nil {
		return nil, espg.Classify("read events", err)
	}
	return messages, nil
}

// advance moves the checkpoint, unless the lease was lost.
func (t table) advance(ctx context.Context, epoch, position int64, owner string, ttl time.Duration) error {
	return t.fenced(t.pool.Exec(ctx, `UPDATE outbox_relay SET position = $2, processed_at = clock_timestamp(), retries = 0, failed = 0,
		last_error = NULL, leased_until = clock_timestamp() + $4::interval WHERE epoch = $1 AND owner = $3`, epoch, position, owner, ttl))
}

// failed records an attempt that failed.
func (t table) failed(ctx context.Context, epoch int64, events int, cause error) error {
	return t.fenced(t.pool.Exec(ctx, `UPDATE outbox_relay SET retries = retries + 1, failed = $2, last_error = left($3, 1000) WHERE epoch = $1`,
		epoch, events, cause.Error()))
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

// cleanup forgets delivered rows older than keep.
func (t table) cleanup(ctx context.Context, keep time.Duration) (int64, error) {
	tag, err := t.pool.Exec(ctx, `DELETE FROM outbox_batch WHERE created_at < clock_timestamp() - $1::interval
		AND to_position <= (SELECT position FROM outbox_relay)`, keep)
	if err != nil {
		return 0, espg.Classify("clean up outbox", err)
	}
	return tag.RowsAffected(), nil
}
