package inbox

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/parking"
)

// Advisory locks. Who parks keeps out who requeues, so that no message is left behind; who hands out keeps out another
// instance, so that a lane is handed out by one.
const (
	lockParking = `SELECT pg_advisory_xact_lock(1248, 1)`
	tryHandOut  = `SELECT pg_try_advisory_xact_lock(1248, 2)`
)

// Lanes is the inbox's parked messages, for who looks after them.
func Lanes(pool *pgxpool.Pool) parking.Lanes {
	return parking.Lanes{
		Pool: pool, Table: "inbox_parked", Key: "subscription, topic, sha256(key), key", Subscription: "subscription", EventID: "event_id", Lock: lockParking,
	}
}

// clearUpTo tells where each partition of a batch goes on if nothing is parked: where nothing was when this process last looked, and it
// has had every message since. Whoever had a partition meanwhile and parked something has moved its offset. ok is false where that is
// not so: then it has to be looked.
func (i *Inbox) clearUpTo(s Subscription, batch []kafka.Message) (next map[partition]int64, ok bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	next, ok = map[partition]int64{}, true
	for _, m := range batch {
		p := partition{s.Name, m.Topic, m.Partition}
		at, known := next[p]
		if !known {
			at, known = i.clear[p]
		}
		ok = ok && known && m.Offset == at
		next[p] = m.Offset + 1
	}
	return next, ok
}

// goOn notes how far partitions are known to be clear.
func (i *Inbox) goOn(next map[partition]int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	maps.Copy(i.clear, next)
}

// stop forgets what was known of a subscription: something of it is parked.
func (i *Inbox) stop(s Subscription) {
	i.mu.Lock()
	defer i.mu.Unlock()
	maps.DeleteFunc(i.clear, func(p partition, _ int64) bool { return p.subscription == s.Name })
}

// anyParked tells whether lanes of a subscription are not through.
func (i *Inbox) anyParked(ctx context.Context, s Subscription) (some bool, err error) {
	err = i.Pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM inbox_parked WHERE subscription = $1 AND done_at IS NULL)`, s.Name).Scan(&some)
	return some, espg.Classify("look for parked lanes", err)
}

// parkedKeys tells which keys of a batch of one topic belong to parked lanes.
func (i *Inbox) parkedKeys(ctx context.Context, s Subscription, batch []kafka.Message) (map[string]bool, error) {
	seen := map[string]bool{}
	keys, hashes := make([][]byte, 0, len(batch)), make([][]byte, 0, len(batch))
	for _, m := range batch {
		if !seen[string(m.Key)] {
			hash := sha256.Sum256(m.Key)
			seen[string(m.Key)], keys, hashes = true, append(keys, keyOf(m)), append(hashes, hash[:])
		}
	}
	rows, err := i.Pool.Query(ctx, `SELECT DISTINCT key FROM inbox_parked
		WHERE subscription = $1 AND topic = $2 AND sha256(key) = ANY($3::bytea[]) AND key = ANY($4::bytea[]) AND done_at IS NULL`,
		s.Name, batch[0].Topic, hashes, keys)
	if err != nil {
		return nil, espg.Classify("read parked lanes", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	parked := make(map[string]bool, len(found))
	for _, key := range found {
		parked[string(key)] = true
	}
	return parked, espg.Classify("read parked lanes", err)
}

// ofLane selects what of the lane $1, $2, $3 is not through: by the key's hash, which is what is indexed, and by the key.
const ofLane = `subscription = $1 AND topic = $2 AND sha256(key) = sha256($3::bytea) AND key = $3 AND done_at IS NULL`

// keyOf is a message's key as it is stored: no key is an empty one.
func keyOf(m kafka.Message) []byte {
	if m.Key == nil {
		return []byte{}
	}
	return m.Key
}

// park stores lanes. A message that was stored before stays as it is, unless it was handled since: then it failed again. What
// waits behind a lane has the lane's status: behind one on its way it goes with it.
func (i *Inbox) park(ctx context.Context, s Subscription, lanes []lane) error {
	if len(lanes) == 0 {
		return nil
	}
	err := pgx.BeginFunc(ctx, i.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, lockParking); err != nil {
			return err
		}
		b := &pgx.Batch{}
		for _, l := range lanes {
			for n, m := range l.messages {
				attempts, failure := 0, (*string)(nil)
				if n == 0 && l.err != nil {
					text := parking.Text(l.err.Error())
					attempts, failure = l.attempts, &text
				}
				i.queue(b, s, m, attempts, failure)
			}
		}
		return tx.SendBatch(ctx, b).Close()
	})
	if err != nil {
		return espg.Classify(fmt.Sprintf("park messages of %s", s.Name), err)
	}
	for _, l := range lanes {
		if l.err != nil {
			m := l.messages[0]
			i.Log.Error("inbox: a message that cannot be handled is parked, with all behind it of its key", "subscription", s.Name,
				"topic", m.Topic, "partition", m.Partition, "offset", m.Offset, "attempts", l.attempts, "error", l.err)
		}
	}
	return nil
}

func (i *Inbox) queue(b *pgx.Batch, s Subscription, m kafka.Message, attempts int, failure *string) {
	names, values := make([][]byte, len(m.Headers)), make([][]byte, len(m.Headers))
	for n, h := range m.Headers {
		names[n], values[n] = []byte(h.Key), h.Value
	}
	eventID, eventType, streamID, version := describe(m)
	b.Queue(`INSERT INTO inbox_parked AS p (subscription, topic, key, partition, message_offset, value, header_names, header_values, sent_at,
			event_id, event_type, stream_type, stream_id, version, attempts, last_error, parked_at, status)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, clock_timestamp(),
			coalesce((SELECT status FROM inbox_parked WHERE `+ofLane+` LIMIT 1),
				CASE WHEN $15 > 0 THEN 'parked' ELSE 'requeued' END))
		ON CONFLICT (subscription, topic, partition, message_offset, sent_at) DO UPDATE
			SET status = excluded.status, attempts = p.attempts + excluded.attempts, last_error = excluded.last_error, done_at = NULL
			WHERE p.status = 'requeued' AND p.done_at IS NOT NULL AND excluded.attempts > 0`,
		s.Name, m.Topic, keyOf(m), m.Partition, m.Offset, m.Value, names, values, storable(m.Time), eventID, eventType, s.Source, streamID, version, attempts, failure)
}

// The times that every reader of the database can take.
var (
	earliest = time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)
	latest   = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
)

// storable is a message's time as it is stored: a producer may write any number of milliseconds, and the message is parked all
// the same.
func storable(at time.Time) time.Time {
	switch {
	case at.Before(earliest):
		return earliest
	case at.After(latest):
		return latest
	}
	return at
}

// describe says for people what a message is, as far as it can be read.
func describe(m kafka.Message) (eventID *string, eventType, streamID string, version int64) {
	if e, err := es.Decode(m.Value); err == nil {
		id := parking.Text(e.ID)
		return &id, parking.Text(e.Type), parking.Text(e.Stream.ID), e.Version
	}
	if v, err := strconv.ParseInt(m.Header("aggregateVersion"), 10, 64); err == nil && v >= 0 {
		version = v // else 0: it says nothing
	}
	return nil, parking.Text(m.Header("eventType")), parking.Text(string(m.Key)), version
}

// stored is a parked message.
type stored struct {
	id      string
	message kafka.Message
}

// requeuedLane is a lane that a person sent on its way.
type requeuedLane struct {
	subscription, topic string
	key                 []byte
}

// requeuedLanes returns up to n of the lanes on their way that this process can handle, in order, those behind a lane.
func (i *Inbox) requeuedLanes(ctx context.Context, names []string, behind requeuedLane, n int) ([]requeuedLane, error) {
	rows, err := i.Pool.Query(ctx, `SELECT DISTINCT subscription, topic, key FROM inbox_parked
		WHERE done_at IS NULL AND status = 'requeued' AND subscription = ANY($1) AND (subscription, topic, key) > ($2, $3, $4)
		ORDER BY subscription, topic, key LIMIT $5`, names, behind.subscription, behind.topic, behind.key, n)
	if err != nil {
		return nil, espg.Classify("read requeued lanes", err)
	}
	lanes, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l requeuedLane, err error) {
		err = row.Scan(&l.subscription, &l.topic, &l.key)
		return l, err
	})
	return lanes, espg.Classify("read requeued lanes", err)
}

// messagesOf returns a lane's next messages. The lane's rows have one status; that nothing behind a parked one is handed out is
// checked all the same.
func (i *Inbox) messagesOf(ctx context.Context, l requeuedLane) ([]stored, error) {
	rows, err := i.Pool.Query(ctx, `SELECT id::text, status, partition, message_offset, value, header_names, header_values, sent_at FROM inbox_parked
		WHERE `+ofLane+` ORDER BY partition, message_offset LIMIT $4`,
		l.subscription, l.topic, l.key, i.BatchMax)
	if err != nil {
		return nil, espg.Classify("read requeued messages", err)
	}
	var (
		out           []stored
		held          bool
		id, status    string
		partition     int32
		offset        int64
		value         []byte
		names, values [][]byte
		at            time.Time
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &status, &partition, &offset, &value, &names, &values, &at}, func() error {
		if held = held || status != parking.Requeued; held {
			return nil
		}
		m := kafka.Message{Topic: l.topic, Partition: partition, Offset: offset, Key: l.key, Value: value, Time: at}
		for n := range names {
			m.Headers = append(m.Headers, kafka.Header{Key: string(names[n]), Value: values[n]})
		}
		out = append(out, stored{id: id, message: m})
		value, names, values = nil, nil, nil // the next row gets arrays of its own
		return nil
	})
	return out, espg.Classify("read requeued messages", err)
}

// settle notes which messages of a lane are handled; failed, unless empty, is the one that was not, and has the lane wait again.
func (i *Inbox) settle(ctx context.Context, l requeuedLane, handled []string, failed string, cause error) error {
	err := pgx.BeginFunc(ctx, i.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, lockParking); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE inbox_parked SET done_at = clock_timestamp() WHERE id = ANY($1::uuid[]) AND done_at IS NULL`, handled); err != nil {
			return err
		}
		if failed == "" {
			return nil
		}
		_, err := tx.Exec(ctx, `UPDATE inbox_parked SET status = 'parked', attempts = attempts + CASE WHEN id = $4 THEN 1 ELSE 0 END,
			       last_error = CASE WHEN id = $4 THEN $5 ELSE last_error END
			WHERE `+ofLane, l.subscription, l.topic, l.key, failed, parking.Text(cause.Error()))
		return err
	})
	return espg.Classify("settle requeued messages", err)
}
