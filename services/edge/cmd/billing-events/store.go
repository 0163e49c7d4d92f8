package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/dsn"
	"example.com/billing/pkg/es"
	eskafka "example.com/billing/pkg/es/kafka"
	"example.com/billing/pkg/es/ops"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/migrate"
)

// logTo is where the parts say what happens.
var logTo = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))

// store is one that a command line names.
type store struct {
	pool  *pgxpool.Pool // of a database
	kafka kafka.Config  // of a log
	topic string
}

// find reads a store's name. It connects to a database, and looks whether it answers.
func find(ctx context.Context, name string) (*store, error) {
	u, err := dsn.URL(name)
	switch {
	case err != nil:
		return nil, fmt.Errorf("store %s: %w", dsn.Name(name), err)
	case u.Scheme == "postgres" || u.Scheme == "postgresql":
		pool, err := connect(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("store %s: %w", dsn.Name(name), err)
		}
		return &store{pool: pool}, nil
	case u.Scheme == "kafka" && u.Host != "" && strings.Trim(u.Path, "/") != "":
		return &store{kafka: kafka.Config{Brokers: strings.Split(u.Host, ","), ClientID: "billing-events", Log: logTo}, topic: strings.Trim(u.Path, "/")}, nil
	}
	return nil, fmt.Errorf("store %s: it must be postgres://… or kafka://BROKER[,BROKER…]/TOPIC", dsn.Name(name))
}

// connect opens a pool on a database that answers.
func connect(ctx context.Context, name string) (*pgxpool.Pool, error) {
	cfg, err := dsn.Parse(name)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, err
	}
	return pool, nil
}

func (s *store) close() {
	if s.pool != nil {
		s.pool.Close()
	}
}

// log is the store to be read.
func (s *store) log() ops.Log {
	if s.pool != nil {
		return espg.New(s.pool, espg.Options{})
	}
	return eskafka.Reader{Kafka: s.kafka, Topic: s.topic}
}

// stream yields the events of one stream.
func (s *store) stream(ctx context.Context, st es.Stream, after int64) iter.Seq2[es.Event, error] {
	return func(yield func(es.Event, error) bool) {
		if s.pool == nil {
			for e, err := range s.log().ReadAll(ctx, st.Type, es.From{}) {
				if (err != nil || e.Stream == st && e.Version > after) && !yield(e, err) {
					return
				}
			}
			return
		}
		from := espg.New(s.pool, espg.Options{})
		heads, err := from.Heads(ctx, []es.Stream{st})
		if err != nil {
			yield(es.Event{}, err)
			return
		}
		es.Between(ctx, from, st, after, heads[0].Version)(yield)
	}
}

// follow yields what there is, and what comes.
func (s *store) follow(ctx context.Context, aggregateType string, from es.From) iter.Seq2[es.Event, error] {
	if s.pool == nil {
		return eskafka.Reader{Kafka: s.kafka, Topic: s.topic}.Follow(ctx, aggregateType, from)
	}
	source := espg.New(s.pool, espg.Options{})
	return func(yield func(es.Event, error) bool) {
		if !from.Since.IsZero() {
			end, err := source.End(ctx)
			if err != nil {
				yield(es.Event{}, err)
				return
			}
			for e, err := range source.ReadAll(ctx, "", from) {
				if err != nil {
					yield(es.Event{}, err)
					return
				}
				end = e.Position - 1
				break
			}
			from.After = max(from.After, end)
		}
		for events, err := range es.Subscribe(ctx, source, aggregateType, from.After, es.SubscribeOptions{}) {
			if err != nil {
				yield(es.Event{}, err)
				return
			}
			for _, e := range events {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// imported is a database that events are copied to.
type imported struct {
	*espg.Store
	follows string
}

// Import has events published as they are elsewhere, or not at all: a copy is no occasion to publish everything again.
func (i imported) Import(ctx context.Context, events []es.Event) error {
	return i.Store.Import(ctx, events, espg.ImportOptions{Published: true, Follows: i.follows})
}

// asTarget prepares a database that no service runs on. What is copied from a log follows it, until it is promoted.
func (s *store) asTarget(ctx context.Context, from *store) (ops.Target, error) {
	if err := migrate.Up(ctx, s.pool, espg.Migrations, espg.MigrationsTable); err != nil {
		return nil, err
	}
	var serving bool
	err := s.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM outbox_relay WHERE leased_until > clock_timestamp()) OR EXISTS (SELECT FROM es_leader WHERE leased_until > clock_timestamp() AND leased_until <> 'infinity')`).Scan(&serving)
	if err != nil {
		return nil, espg.Classify("ask whether a service runs on the database", err)
	}
	if serving {
		return nil, errors.New("a service runs on the database: stop it first (one that was killed is seen for 5 s)")
	}
	to := imported{Store: espg.New(s.pool, espg.Options{})}
	if from.pool == nil {
		to.follows = "copied from " + from.topic
		if _, err := s.pool.Exec(ctx, `UPDATE es_log SET follows = $1 WHERE es_end() = 0`, to.follows); err != nil {
			return nil, espg.Classify("note what is followed", err)
		}
	}
	return to, nil
}

// target opens the store to be written to.
func (s *store) target(ctx context.Context, from *store, replication int16) (_ ops.Target, done func() error, err error) {
	if s.pool != nil {
		to, err := s.asTarget(ctx, from)
		return to, func() error { return nil }, err
	}
	if err := kafka.EnsureTopics(ctx, s.kafka, eskafka.Topic(s.topic, replication)); err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "billing-events-")
	if err != nil {
		return nil, nil, err
	}
	to, err := eskafka.Open(ctx, eskafka.Options{Kafka: s.kafka, Topic: s.topic, Dir: dir, Log: logTo})
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	leading, cancel := context.WithCancel(ctx)
	led := make(chan error, 1)
	go func() { led <- to.Lead(leading) }()
	done = func() error {
		cancel()
		return errors.Join(<-led, to.Close(context.WithoutCancel(ctx)), os.RemoveAll(dir))
	}
	select {
	case <-to.Leading():
		return to, done, nil
	case err := <-led:
		led <- nil
		return nil, nil, errors.Join(err, done())
	case <-ctx.Done():
		return nil, nil, errors.Join(ctx.Err(), done())
	}
}
