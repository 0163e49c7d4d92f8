package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/ops"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/outbox"
	"example.com/billing/services/edge"
)

// topicArgs name a service's database and its topics.
type topicArgs struct {
	Store   string   `arg:"" help:"The service's database."`
	Types   []string `arg:"" help:"Types of aggregates whose topics are looked at, such as Account."`
	Brokers []string `name:"kafka-brokers" env:"BILLING_KAFKA_BROKERS" required:"" help:"Kafka brokers, host:port, comma separated."`
	Prefix  string   `name:"topic-prefix" env:"BILLING_TOPIC_PREFIX" default:"billing" help:"Beginning of the topics' names, as the services have it."`
}

// comparison is a database beside its topics.
type comparison struct {
	store  *store
	log    *espg.Store
	topics ops.Topics
	found  map[string]int // by kind of difference
	beyond outbox.Place   // highest place of what is lost
}

// open connects to the database, and asks for its history.
func (a topicArgs) open(ctx context.Context) (*comparison, error) {
	s, err := find(ctx, a.Store)
	if err != nil {
		return nil, err
	}
	c, err := a.compare(ctx, s)
	if err != nil {
		s.close()
	}
	return c, err
}

func (a topicArgs) compare(ctx context.Context, s *store) (*comparison, error) {
	if s.pool == nil {
		return nil, fmt.Errorf("store %q: it must be postgres://…: a log is its topic", a.Store)
	}
	prefix, err := edge.KafkaSettings{TopicPrefix: a.Prefix}.Prefix()
	if err != nil {
		return nil, err
	}
	c := &comparison{store: s, log: espg.New(s.pool, espg.Options{}), found: map[string]int{}}
	incarnation, err := c.log.Incarnation(ctx)
	if err != nil {
		return nil, err
	}
	all, err := c.log.Incarnations(ctx)
	c.topics = ops.Topics{
		Kafka:  kafka.Config{Brokers: a.Brokers, ClientID: "billing-events", Log: logTo},
		Prefix: prefix, Types: a.Types, Incarnation: incarnation,
		Void: func(m kafka.Message) bool {
			p, ok := outbox.PlaceOf(m)
			void := ok && p.Void(all)
			if void && p.Position > c.beyond.Position {
				c.beyond = p
			}
			return void
		},
	}
	return c, err
}

// run prints the differences, a line each, and publishes what is missing if it is told to.
func (c *comparison) run(ctx context.Context, republish bool) error {
	if republish {
		if err := c.log.RefuseCopy(ctx); err != nil {
			return fmt.Errorf("republish: %w", err)
		}
	}
	dir, err := os.MkdirTemp("", "billing-events-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var missing []es.Event
	publish := func() error {
		err := ops.Republish(ctx, c.topics, missing)
		missing = missing[:0]
		return err
	}
	err = ops.Diff(ctx, c.store.log(), c.topics, dir, func(d ops.Difference) error {
		c.found[d.Kind]++
		if _, err := fmt.Fprintln(out, line(d, c.topics.Prefix)); err != nil {
			return err
		}
		if !republish || d.Kind != ops.Missing {
			return nil
		}
		const pageMax = 500
		if missing = append(missing, d.Event); len(missing) < pageMax {
			return nil
		}
		return publish()
	}, say)
	if err == nil {
		err = publish()
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d missing, %d changed, %d unknown, %d lost\n", c.found[ops.Missing], c.found[ops.Changed], c.found[ops.Unknown], c.found[ops.Lost])
	if republish && c.found[ops.Missing] > 0 {
		fmt.Fprintf(out, "%d published\n", c.found[ops.Missing])
	}
	return nil
}

type diffCmd struct {
	topicArgs
	Republish bool `help:"Publish what is missing."`
}

var errDiffer = errors.New("the topics are not what is committed")

// Run prints the differences, a line each. What was lost with an older history is told, and is no difference: it stays on its topic.
func (c *diffCmd) Run(ctx context.Context) error {
	d, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer d.store.close()
	if err := d.run(ctx, c.Republish); err != nil {
		return err
	}
	if d.found[ops.Changed]+d.found[ops.Unknown] > 0 || d.found[ops.Missing] > 0 && !c.Republish {
		return errDiffer
	}
	return nil
}

// line is a difference as it is printed.
func line(d ops.Difference, prefix string) string {
	if d.Kind == ops.Unknown || d.Kind == ops.Lost {
		return fmt.Sprintf("%s %s: %s", d.Kind, d.Event.ID, d.Where)
	}
	e := d.Event
	return fmt.Sprintf("%s %s: position %d, version %d of %s, %s, belongs to %s", d.Kind, e.ID, e.Position, e.Version, e.Stream, e.Type, outbox.Topic(prefix, e.Stream.Type))
}

type recoverCmd struct {
	topicArgs
	DryRun bool `help:"Only tell what is lost and what would be published."`
}

// Run tells what the database lost with an older history, publishes what its topics lack of the present one, and notes that an operator
// has seen the loss. Run it once for each service.
func (c *recoverCmd) Run(ctx context.Context) error {
	d, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer d.store.close()
	if err := d.run(ctx, !c.DryRun); err != nil {
		return err
	}
	if d.beyond.Position > 0 { // no process that lived through the change may have known it
		if err := d.log.NoteKnown(ctx, d.beyond.Incarnation, d.beyond.Position); err != nil {
			return err
		}
	}
	lost, err := d.log.Unrecovered(ctx)
	if err != nil {
		return err
	}
	for _, i := range lost {
		fmt.Fprintf(out, "incarnation %d began behind position %d on %s: the events at positions %d to %d of the history before it are lost\n",
			i.Number, i.FromPosition, i.NoticedAt.Format("2006-01-02T15:04:05Z"), i.FromPosition+1, i.KnownTo)
	}
	switch {
	case len(lost) == 0:
		fmt.Fprintln(out, "nothing is lost that was not recovered from before")
		return nil
	case c.DryRun:
		fmt.Fprintln(out, "dry run: nothing was published or noted")
		return nil
	}
	fmt.Fprintln(out, "recovered; lists heal by themselves within two minutes, sagas of transactions that are pending again within 15 s")
	return d.log.Recovered(ctx, d.topics.Incarnation)
}
