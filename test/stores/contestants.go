package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/IBM/sarama"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	eskafka "example.com/billing/pkg/es/kafka"
	"example.com/billing/pkg/es/memory"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/migrate"
)

func contestants(dsn string, brokers []string, log *slog.Logger) []contestant {
	cfg := kafka.Config{Brokers: brokers, ClientID: "stores", Log: log}
	return []contestant{
		{"plain pgx", "", func(ctx context.Context, _ string) (writer, func() error, error) { return openPlainPostgres(ctx, dsn) }},
		{"plain sarama", "", func(ctx context.Context, _ string) (writer, func() error, error) { return openPlainKafka(ctx, cfg) }},
		{"memory", "", func(context.Context, string) (writer, func() error, error) {
			return stored{memory.New()}, func() error { return nil }, nil
		}},
		{"Postgres", "plain pgx", func(ctx context.Context, _ string) (writer, func() error, error) { return openPostgres(ctx, dsn) }},
		{"Kafka", "plain sarama", func(ctx context.Context, dir string) (writer, func() error, error) { return openKafka(ctx, cfg, dir) }},
	}
}

// stored writes to a store: each event an append of its own, one group.
type stored struct{ store es.Store }

func (s stored) write(ctx context.Context, events []es.Event) error {
	items := make([][]es.Append, len(events))
	for i, e := range events {
		items[i] = []es.Append{{Stream: e.Stream, Expected: e.Version - 1, Events: []es.Event{e}}}
	}
	return errors.Join(s.store.AppendBatch(ctx, items)...)
}

func openPostgres(ctx context.Context, dsn string) (writer, func() error, error) {
	pool, err := pgxpool.New(ctx, dsn)
	if err != nil {
		return nil, nil, err
	}
	if err := migrate.Up(ctx, pool, espg.Migrations, espg.MigrationsTable); err != nil {
		pool.Close()
		return nil, nil, err
	}
	return stored{espg.New(pool, espg.Options{})}, func() error { pool.Close(); return nil }, nil
}

func openKafka(ctx context.Context, cfg kafka.Config, dir string) (writer, func() error, error) {
	const topic = "stores.events"
	if err := kafka.EnsureTopics(ctx, cfg, eskafka.Topic(topic, 0)); err != nil {
		return nil, nil, err
	}
	s, err := eskafka.Open(ctx, eskafka.Options{Kafka: cfg, Topic: topic, Dir: dir, Log: cfg.Log})
	if err != nil {
		return nil, nil, err
	}
	lead, stop := context.WithCancel(ctx)
	led := make(chan error, 1)
	go func() { led <- s.Lead(lead) }()
	end := func() error { stop(); return errors.Join(<-led, s.Close(context.WithoutCancel(ctx))) }
	select {
	case <-s.Leading():
		return stored{s}, end, nil
	case <-ctx.Done():
		return nil, nil, errors.Join(ctx.Err(), end())
	}
}

// plainPostgres inserts the same bytes into a table of the same columns and indexes, a transaction for a group.
type plainPostgres struct{ conn *pgx.Conn }

func openPlainPostgres(ctx context.Context, dsn string) (writer, func() error, error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, nil, err
	}
	_, err = conn.Exec(ctx, `CREATE TABLE plain (position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, event_id uuid NOT NULL UNIQUE, stream_id text COLLATE "C" NOT NULL,
		version bigint NOT NULL, payload bytea NOT NULL, UNIQUE (stream_id, version))`)
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close(ctx))
	}
	return plainPostgres{conn}, func() error { return conn.Close(context.WithoutCancel(ctx)) }, nil
}

func (p plainPostgres) write(ctx context.Context, events []es.Event) error {
	var (
		ids, streams []string
		versions     []int64
		payloads     [][]byte
	)
	for _, e := range events {
		payload, err := e.Encode()
		if err != nil {
			return err
		}
		ids, streams, versions, payloads = append(ids, e.ID), append(streams, e.Stream.ID), append(versions, e.Version), append(payloads, payload)
	}
	_, err := p.conn.Exec(ctx, `INSERT INTO plain (event_id, stream_id, version, payload) SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bytea[])`,
		ids, streams, versions, payloads)
	return err
}

// plainKafka produces the same bytes to one partition, acknowledged by all replicas, without a transaction.
type plainKafka struct{ producer sarama.SyncProducer }

const plainTopic = "stores.plain"

func openPlainKafka(ctx context.Context, cfg kafka.Config) (writer, func() error, error) {
	if err := kafka.EnsureTopics(ctx, cfg, eskafka.Topic(plainTopic, 0)); err != nil {
		return nil, nil, err
	}
	c := sarama.NewConfig()
	c.Version = sarama.V3_6_0_0
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Producer.Return.Successes = true
	producer, err := sarama.NewSyncProducer(cfg.Brokers, c)
	if err != nil {
		return nil, nil, fmt.Errorf("producer: %w", err)
	}
	return plainKafka{producer}, producer.Close, nil
}

func (p plainKafka) write(_ context.Context, events []es.Event) error {
	messages := make([]*sarama.ProducerMessage, len(events))
	for i, e := range events {
		payload, err := e.Encode()
		if err != nil {
			return err
		}
		messages[i] = &sarama.ProducerMessage{Topic: plainTopic, Key: sarama.StringEncoder(e.Stream.ID), Value: sarama.ByteEncoder(payload)}
	}
	return p.producer.SendMessages(messages)
}
