package edge

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"example.com/billing/pkg/cqrs"
	eskafka "example.com/billing/pkg/es/kafka"
	"example.com/billing/pkg/inbox"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/outbox"
	"example.com/billing/pkg/run"
)

// KafkaSettings are the settings of a service that talks to Kafka.
type KafkaSettings struct {
	Brokers     []string `name:"kafka-brokers" env:"BILLING_KAFKA_BROKERS" required:"" help:"Kafka brokers, host:port, comma separated."`
	Partitions  int32    `name:"kafka-partitions" env:"BILLING_KAFKA_PARTITIONS" default:"6" help:"Partitions of each topic. Never changes once the topics exist."`
	TopicPrefix string   `name:"topic-prefix" env:"BILLING_TOPIC_PREFIX" default:"billing" help:"Beginning of the names of topics and consumer groups. Two systems on one Kafka need two. The same for all services; never changes once the topics exist."`
	Replication int16    `name:"kafka-replication" env:"BILLING_KAFKA_REPLICATION" default:"-1" help:"Replicas of each topic; -1 = the broker's default."`
}

// Prefix begins the names of this system's topics, consumer groups and clients. It refuses one that Kafka cannot have as
// the beginning of a topic's name.
func (k KafkaSettings) Prefix() (string, error) {
	if k.TopicPrefix == "" {
		return TopicPrefix, nil
	}
	if !prefixPattern.MatchString(k.TopicPrefix) {
		return "", fmt.Errorf("BILLING_TOPIC_PREFIX %q: it must be 1 to 64 of a-z, 0-9, - and ., and begin and end with a letter or a digit", k.TopicPrefix)
	}
	return k.TopicPrefix, nil
}

// prefixPattern has no _, which Kafka's metrics cannot tell from a dot.
var prefixPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?$`)

// Stream is what stands between a service's store and Kafka: its topics, its relay, its consumers.
type Stream struct {
	Service   string   // account, transaction or saga
	Aggregate string   // type of aggregate the service owns
	Sources   []string // types of aggregates it listens to
	Kafka     KafkaSettings
	Pool      *pgxpool.Pool
	Events    *Events
	Linger    time.Duration // how long an event waits for others on its way to Kafka; 0 where somebody waits for it
	Bus       *cqrs.EventBus
}

// Start runs the stream's parts in the background; a Kafka that is not there yet is waited for, and the service accepts
// commands meanwhile. The checks it returns tell when everything works.
func (s Stream) Start(app *run.App) (map[string]run.Check, error) {
	prefix, err := s.Kafka.Prefix()
	if err != nil {
		return nil, err
	}
	cfg := kafka.Config{Brokers: s.Kafka.Brokers, ClientID: prefix + "-" + s.Service, Log: app.Log}
	box := inbox.New(inbox.Config{Pool: s.Pool, Log: app.Log})
	past, err := watchHistory(app, s.Events.Tables, s.Events.Replica != nil)
	if err != nil {
		return nil, err
	}
	own := outbox.Topic(prefix, s.Aggregate)
	s.Bus.Void = func(m kafka.Message) bool { return m.Topic == own && past.isVoid(m) }
	consumers, err := s.Bus.Consumers(cfg, prefix, s.Service, box, s.Events.Decode)
	if err != nil {
		return nil, err
	}
	producer, err := kafka.NewProducer(cfg)
	if err != nil {
		return nil, err
	}
	app.OnStop("kafka producer", func(context.Context) error { return producer.Close() })
	client, err := kafka.Dial(cfg)
	if err != nil {
		return nil, err
	}
	app.OnStop("kafka client", func(context.Context) error { return client.Close() })
	outgoing := s.Events.Tables
	relay := outbox.NewRelay(outbox.Config{
		Pool: s.Pool, Publisher: producer, Prefix: prefix, Committed: outgoing.Committed(), Recent: outgoing.Recent, Linger: s.Linger, Log: app.Log,
	})
	if err := app.Metrics.Register(newMeasured(s.Pool)); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	if err := measureLosses(app.Metrics, consumers); err != nil {
		return nil, err
	}
	relaying, handingOut := app.NewLoop("outbox relay"), app.NewLoop("requeued messages")
	app.Go("kafka", func(ctx context.Context) error {
		err := app.Retry(ctx, "set up Kafka topics", func(ctx context.Context) error { return kafka.EnsureTopics(ctx, cfg, s.topics(prefix)...) })
		if err != nil {
			return nil //nolint:nilerr // only the end of the service ends the retries
		}
		var g errgroup.Group
		if s.Events.Log == nil { // else the log is the topic
			g.Go(func() error { return relaying.Run(ctx, relay.Run) })
		}
		g.Go(func() error { return handingOut.Run(ctx, box.Run) })
		for _, c := range consumers {
			g.Go(func() error { return c.Run(ctx) })
		}
		return g.Wait()
	})
	return map[string]run.Check{
		"postgres": TakesWrites(s.Pool),
		History:    past.whole,
		"kafka":    client.Healthy,
		"consumers": func(context.Context) error {
			for _, c := range consumers {
				if !c.Ready() {
					return errors.New("a consumer has no place in its group yet")
				}
			}
			return nil
		},
	}, nil
}

func (s Stream) topics(prefix string) []kafka.Topic {
	var topics []kafka.Topic
	for _, source := range append([]string{s.Aggregate}, s.Sources...) {
		t := kafka.Topic{Name: outbox.Topic(prefix, source), Partitions: s.Kafka.Partitions, Replication: s.Kafka.Replication}
		if source == s.Aggregate && s.Events.Log != nil {
			t = eskafka.Topic(t.Name, t.Replication)
		}
		topics = append(topics, t)
	}
	return topics
}

// measureLosses publishes how often consumers found that their topic had lost messages.
func measureLosses(metrics prometheus.Registerer, consumers []*kafka.Consumer) error {
	err := metrics.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "consumer_lost_total", Help: "How often a partition was found to have lost messages that had not been handled.",
	}, func() float64 {
		n := int64(0)
		for _, c := range consumers {
			n += c.Losses()
		}
		return float64(n)
	}))
	if err != nil {
		return fmt.Errorf("register consumer_lost_total: %w", err)
	}
	return nil
}
