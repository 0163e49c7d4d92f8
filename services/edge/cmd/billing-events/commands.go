package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"time"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/ops"
	espg "example.com/billing/pkg/es/postgres"
)

// out is where answers go.
var out io.Writer = os.Stdout

// say tells of the progress.
func say(what string, events int64) { fmt.Fprintf(os.Stderr, "%s %d\n", what, events) }

// shown is an event as it is printed: its place, and its JSON as it is stored.
type shown struct {
	Position   int64           `json:"position"`
	RecordedAt time.Time       `json:"recordedAt"`
	Event      json.RawMessage `json:"event"`
}

func show(events iter.Seq2[es.Event, error], limit int64) error {
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	n := int64(0)
	for e, err := range events {
		if err != nil {
			return err
		}
		payload, err := e.Encode()
		if err == nil {
			err = enc.Encode(shown{e.Position, e.RecordedAt, payload})
		}
		if err != nil {
			return err
		}
		if n++; n == limit {
			break
		}
	}
	return nil
}

type readCmd struct {
	Store string `arg:"" help:"Where to read."`
	Type  string `arg:"" help:"Type of the aggregate, such as Account."`
	ID    string `arg:"" name:"id" help:"Its id."`
	After int64  `help:"Only events above this version."`
	Limit int64  `help:"At most so many; 0 = all."`
}

// Run prints a stream.
func (c *readCmd) Run(ctx context.Context) error {
	s, err := find(ctx, c.Store)
	if err != nil {
		return err
	}
	defer s.close()
	return show(s.stream(ctx, es.Stream{Type: c.Type, ID: c.ID}, c.After), c.Limit)
}

type followCmd struct {
	Store string    `arg:"" help:"Where to read."`
	Type  string    `arg:"" optional:"" help:"Type of the aggregates, such as Account; none = all."`
	After int64     `help:"Only events above this position."`
	Since time.Time `help:"Only events recorded at or after this time, as 2006-01-02T15:04:05Z."`
	Limit int64     `help:"Stop after so many; 0 = never."`
	Once  bool      `help:"Stop at the newest event."`
}

// Run prints events until it is interrupted.
func (c *followCmd) Run(ctx context.Context) error {
	s, err := find(ctx, c.Store)
	if err != nil {
		return err
	}
	defer s.close()
	from := es.From{After: c.After, Since: c.Since}
	if c.Once {
		return show(s.log().ReadAll(ctx, c.Type, from), c.Limit)
	}
	return show(s.follow(ctx, c.Type, from), c.Limit)
}

type digestCmd struct {
	Store string `arg:"" help:"Where to read."`
	End   int64  `help:"Only up to this position; 0 = all."`
}

// Run prints a digest.
func (c *digestCmd) Run(ctx context.Context) error {
	s, err := find(ctx, c.Store)
	if err != nil {
		return err
	}
	defer s.close()
	d, err := ops.DigestOf(ctx, s.log(), c.End, say)
	if err == nil {
		_, err = fmt.Fprintln(out, d)
	}
	return err
}

type copyCmd struct {
	From        string `arg:"" help:"What is copied."`
	To          string `arg:"" help:"Where to. What it has must be the beginning of what is copied."`
	Replication int16  `name:"kafka-replication" env:"BILLING_KAFKA_REPLICATION" default:"-1" help:"Replicas of a log that is created; -1 = the broker's default."`
}

// Run copies and verifies.
func (c *copyCmd) Run(ctx context.Context) (err error) {
	from, err := find(ctx, c.From)
	if err != nil {
		return err
	}
	defer from.close()
	to, err := find(ctx, c.To)
	if err != nil {
		return err
	}
	defer to.close()
	target, done, err := to.target(ctx, from, c.Replication)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	if from.pool != nil && to.pool != nil {
		if err := copySecret(ctx, from, to); err != nil {
			return err
		}
	}
	d, err := ops.Copy(ctx, from.log(), target, say)
	if err == nil {
		_, err = fmt.Fprintln(out, "copied and verified:", d)
	}
	return err
}

// copySecret takes the key along that ids are derived with from idempotency keys, to a database that has no events yet.
func copySecret(ctx context.Context, from, to *store) error {
	secret, err := espg.New(from.pool, espg.Options{}).Secret(ctx)
	if err == nil {
		_, err = to.pool.Exec(ctx, `UPDATE es_log SET secret = $1 WHERE es_end() = 0`, secret)
	}
	return espg.Classify("copy the secret", err)
}
