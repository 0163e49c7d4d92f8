package main

import (
	"context"
	"fmt"
	"time"

	"example.com/billing/test/chaos/auditor"
)

// drainedMs is how old the oldest event that waits may be while the backlog counts as drained.
const drainedMs = 1000

// outage is what was seen while Kafka was away under load.
type outage struct {
	away      time.Duration
	accepted  int            // requests accepted meanwhile
	refused   int            // by rules
	oldestMs  map[string]int // by service: the highest oldestPendingMs that stats told
	pending   map[string]int // by service: the most events that waited
	looks     int            // answers of stats
	returning time.Duration  // from its start to the broker's first answer
	drained   time.Duration  // from the broker's first answer until no service had an old event waiting, under load
}

// kafkaAway kills Kafka, leaves it away, and waits until the backlog is gone. The load goes on all the time.
func kafkaAway(ctx context.Context, c *cluster, j *journal, away time.Duration) (o outage, err error) {
	o = outage{away: away, oldestMs: map[string]int{}, pending: map[string]int{}}
	accepted, refused := j.count(auditor.Accepted), j.count(auditor.Refused)
	if err := c.kafka.Kill(); err != nil {
		return o, err
	}
	for end := time.Now().Add(away); time.Now().Before(end) && wait(ctx, time.Second/4); {
		_, _ = o.look(ctx, c) // one look that fails is none
	}
	if ctx.Err() != nil {
		return o, ctx.Err()
	}
	o.accepted, o.refused = j.count(auditor.Accepted)-accepted, j.count(auditor.Refused)-refused
	began := time.Now()
	if err := c.kafka.Start(); err != nil {
		return o, err
	}
	o.returning = time.Since(began)
	began = time.Now()
	for wait(ctx, lookEvery) {
		if oldest, err := o.look(ctx, c); err == nil && oldest < drainedMs {
			break
		}
		if time.Since(began) > recoverMax {
			return o, fmt.Errorf("the backlog of %s without Kafka is not drained after %s: %v wait", away, recoverMax, o.pending)
		}
	}
	o.drained = time.Since(began)
	return o, ctx.Err()
}

// look reads the three services' stats through the gateway, and returns the age of the oldest event that waits.
func (o *outage) look(ctx context.Context, c *cluster) (oldest int, err error) {
	for _, service := range []string{"account", "transaction", "saga"} {
		s, err := stats(ctx, c, service)
		if err != nil {
			return 0, err
		}
		o.looks++
		o.oldestMs[service] = max(o.oldestMs[service], s.OldestPendingMs)
		o.pending[service] = max(o.pending[service], s.Pending)
		oldest = max(oldest, s.OldestPendingMs)
	}
	return oldest, nil
}

type outboxStats struct {
	Pending         int `json:"pending"`
	OldestPendingMs int `json:"oldestPendingMs"`
}

func stats(ctx context.Context, c *cluster, service string) (s outboxStats, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	err = c.get(ctx, "/api/v1/outbox/"+service+"/stats", &s)
	return s, err
}

// wrong says what of the outage was not as it should be.
func (o outage) wrong() (out []string) {
	if o.accepted == 0 {
		out = append(out, "no request was accepted while Kafka was away")
	}
	for service, ms := range o.oldestMs {
		// The transaction service has something waiting from the first request on; what follows from it waits for Kafka.
		if service == "transaction" && time.Duration(ms)*time.Millisecond < o.away/2 {
			out = append(out, fmt.Sprintf("Kafka was away for %s, and the stats of %s never told of an event older than %d ms", o.away, service, ms))
		}
	}
	if len(o.oldestMs) == 0 {
		out = append(out, "the stats could not be read while Kafka was away")
	}
	return out
}
