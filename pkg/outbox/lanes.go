package outbox

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/parking"
)

// Lanes is the outbox's parked events, for who looks after them. The lock is the checkpoint's row, which the relay takes
// before it parks.
func Lanes(pool *pgxpool.Pool) parking.Lanes {
	return parking.Lanes{
		Pool: pool, Table: "outbox_parked", Key: "stream_type, stream_id", Subscription: "''", EventID: "id",
		Lock: "SELECT FROM outbox_relay FOR UPDATE",
	}
}

// laneIsParked says of an event e whether its lane has events that are not through.
const laneIsParked = `EXISTS (SELECT FROM outbox_parked w WHERE w.stream_id = e.stream_id AND w.stream_type = e.stream_type AND w.done_at IS NULL)`

// parkRows parks the events at the positions $1. That at $2 was refused $3 times, by $4; the others wait behind their lanes,
// with the lanes' status: what comes behind a lane on its way goes with it. One that was through before is published once more,
// from a checkpoint that was set back.
const parkRows = `INSERT INTO outbox_parked AS p (id, position, stream_type, stream_id, version, event_type, attempts, last_error, parked_at, status)
	SELECT e.event_id, e.position, e.stream_type, e.stream_id, e.version, e.event_type, CASE WHEN e.position = $2 THEN $3::int ELSE 0 END,
	       CASE WHEN e.position = $2 THEN $4::text END, clock_timestamp(),
	       coalesce((SELECT w.status FROM outbox_parked w WHERE w.stream_id = e.stream_id AND w.stream_type = e.stream_type AND w.done_at IS NULL LIMIT 1), 'parked')
	FROM es_event e WHERE e.position = ANY($1::bigint[])
	ON CONFLICT (position) DO UPDATE SET status = excluded.status, attempts = p.attempts + excluded.attempts, last_error = excluded.last_error, done_at = NULL
	WHERE p.done_at IS NOT NULL`

// requeued returns the events that a person sent on their way again, each lane in order.
func (t table) requeued(ctx context.Context, prefix string, limit int) ([]event, error) {
	rows, err := t.pool.Query(ctx, `SELECT position, e.stream_type, e.stream_id, e.version, e.event_type, correlation_id, payload, false
		FROM outbox_parked p JOIN es_event e USING (position) WHERE p.done_at IS NULL AND p.status = 'requeued' ORDER BY position LIMIT $1`, limit)
	if err != nil {
		return nil, espg.Classify("read requeued events", err)
	}
	events, err := scanEvents(rows, prefix)
	return events, espg.Classify("read requeued events", err)
}

// parkAgain has the whole lane of a requeued event wait again.
const parkAgain = `UPDATE outbox_parked SET status = 'parked', attempts = attempts + CASE WHEN position = $1 THEN 1 ELSE 0 END,
	       last_error = CASE WHEN position = $1 THEN $2 ELSE last_error END
	WHERE done_at IS NULL AND (stream_id, stream_type) = (SELECT stream_id, stream_type FROM outbox_parked WHERE position = $1)`

// park parks a refused event; the checkpoint passes it as it passes what waits behind it.
func (r *Relay) park(ctx context.Context, l *lease, position int64, attempts int, cause error) error {
	err := r.table.change(ctx, *l, 0, r.owner, r.LeaseTTL, func(b *pgx.Batch) {
		b.Queue(parkRows, []int64{position}, position, attempts, parking.Text(cause.Error()))
		b.Queue(`UPDATE outbox_relay SET refused_position = 0, refused_attempts = 0, failed = 0`)
	})
	if err == nil {
		r.parked = true
		r.Log.Error("outbox: an event that Kafka refuses is parked, with all behind it in its stream", "position", position, "attempts", attempts, "error", cause)
	}
	return err
}

// anyParked tells whether there are lanes that are not through.
func (t table) anyParked(ctx context.Context) (some bool, err error) {
	err = t.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM outbox_parked WHERE done_at IS NULL)`).Scan(&some)
	return some, espg.Classify("look for parked events", err)
}

// resend publishes requeued lanes. One that is refused again is parked again at once: a person is watching.
func (r *Relay) resend(ctx context.Context, l *lease) (moved bool, err error) {
	if time.Since(r.looked) < r.PollInterval {
		return false, nil
	}
	if r.parked, err = r.table.anyParked(ctx); err != nil || !r.parked {
		r.looked = time.Now()
		return false, err
	}
	events, err := r.table.requeued(ctx, r.Prefix, r.BatchMax)
	if err != nil || len(events) == 0 {
		r.looked = time.Now()
		return false, err
	}
	acked, cause := r.Publisher.Publish(ctx, messages(events, l.incarnation))
	refused := refusedOf(events, cause)
	if acked > 0 || refused != nil {
		err := r.table.change(ctx, *l, acked, r.owner, r.LeaseTTL, func(b *pgx.Batch) {
			b.Queue(`UPDATE outbox_parked SET done_at = clock_timestamp() WHERE position = ANY($1) AND done_at IS NULL`, positions(events[:acked]))
			if refused != nil {
				b.Queue(parkAgain, refused.position, parking.Text(cause.Error()))
			}
		})
		if err != nil {
			return false, errors.Join(cause, err)
		}
	}
	if cause != nil && refused == nil && ctx.Err() == nil {
		if r.ahead > 0 { // a success before the failure
			if err := r.save(ctx, l, nil); err != nil {
				return false, errors.Join(cause, err)
			}
		}
		_, err := r.table.failed(ctx, l.epoch, len(events)-acked, 0, cause)
		return false, errors.Join(cause, err)
	}
	return true, nil
}

// refusedOf is the event that an error says was refused for its own sake; nil = the error is about something else.
func refusedOf(events []event, cause error) *event {
	var refused *kafka.RefusedError
	if !errors.As(cause, &refused) || refused.Index < 0 || refused.Index >= len(events) {
		return nil
	}
	return &events[refused.Index]
}

func positions(events []event) []int64 {
	out := make([]int64, len(events))
	for i, e := range events {
		out[i] = e.position
	}
	return out
}
