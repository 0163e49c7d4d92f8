package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	eskafka "example.com/billing/pkg/es/kafka"
	"example.com/billing/pkg/es/memory"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/outbox"
	"example.com/billing/pkg/run"
)

// The event stores that a service can run on, beside those that were registered.
const (
	StorePostgres = "postgres"
	StoreKafka    = "kafka"
	StoreMemory   = "memory"
)

// EventStoreSettings say where a service's events are.
type EventStoreSettings struct {
	EventStore    string `name:"event-store" env:"BILLING_EVENT_STORE" default:"postgres" help:"Where the events are: postgres, kafka, memory (for trying out), or a store that was registered."`
	EventStoreDir string `name:"event-store-dir" env:"BILLING_EVENT_STORE_DIR" default:"event-store" help:"Where an event store keeps files of its own: the Kafka store's state, which it can make again."`
	Advertise     string `name:"advertise" env:"BILLING_ADVERTISE" help:"Where other instances reach this one, host:port, if the event store has one leader; empty = where it serves, at the address that the database sees."`
}

// OpenStore opens an event store of another make. dir is the service's setting BILLING_EVENT_STORE_DIR.
type OpenStore func(ctx context.Context, dir string, log *slog.Logger) (es.Store, error)

var registered = map[string]OpenStore{
	StoreMemory: func(context.Context, string, *slog.Logger) (es.Store, error) { return memory.New(), nil },
}

// RegisterEventStore gives an event store a name that BILLING_EVENT_STORE can say: the extension point for stores of other makes, called before a
// service runs. A store that passes estest.TestStore will do; where it has a Close(context.Context) error, that is called at the end. It
// panics where the name is taken.
func RegisterEventStore(name string, open OpenStore) {
	if _, taken := registered[name]; taken || name == "" || name == StorePostgres || name == StoreKafka {
		panic(fmt.Sprintf("register event store %q: the name is taken", name))
	}
	registered[name] = open
}

// Events is a service's open event store. Where it is not the service's database, that holds a copy of the events.
type Events struct {
	es.Store
	Tables  *espg.Store   // the database's tables of events: the store itself, or its copy
	Replica *espg.Replica // keeps the copy; nil = the database is the store
	Log     *eskafka.Store
}

// EventStore is what it takes to open one.
type EventStore struct {
	EventStoreSettings
	Kafka     KafkaSettings
	Aggregate string // type of aggregate the service owns
	Addr      string // where the service will serve
	Pool      *pgxpool.Pool
	Inline    func(*pgx.Batch, []es.Event) error // tables that never lag behind the database's events
}

// Open opens the event store, and has the database follow it. Where the store has one leader it waits until this process is: until the app has to
// stop, if need be, which is an error.
func (s EventStore) Open(app *run.App) (*Events, error) {
	e := &Events{Tables: espg.New(s.Pool, espg.Options{Inline: s.Inline})}
	if err := e.Tables.CatchUp(app.Context()); err != nil {
		return nil, err
	}
	name := s.EventStore
	switch open := registered[s.EventStore]; {
	case s.EventStore == StorePostgres:
		e.Store = e.Tables
		return e, e.Tables.RefuseCopy(app.Context())
	case s.EventStore == StoreKafka:
		if err := s.lead(app, e); err != nil {
			return nil, err
		}
		name += " " + e.Log.Name()
	case open == nil:
		names := append(slices.Collect(maps.Keys(registered)), StorePostgres, StoreKafka)
		slices.Sort(names)
		return nil, fmt.Errorf("event store %q: it must be one of %s", s.EventStore, strings.Join(names, ", "))
	default:
		store, err := open(app.Context(), s.EventStoreDir, app.Log)
		if err != nil {
			return nil, fmt.Errorf("open event store %s: %w", s.EventStore, err)
		}
		if c, ok := store.(interface {
			Close(ctx context.Context) error
		}); ok {
			app.OnStop("event store", c.Close)
		}
		e.Store = store
	}
	e.Replica = espg.NewReplica(espg.ReplicaConfig{To: e.Tables, From: e.Store, Name: name, Published: e.Log != nil, Log: app.Log})
	if err := e.Replica.Begin(app.Context()); err != nil {
		return nil, err
	}
	app.Go("copy of the events", e.Replica.Run)
	return e, nil
}

// lead opens the Kafka store and waits until this process leads it.
func (s EventStore) lead(app *run.App, e *Events) error {
	prefix, err := s.Kafka.Prefix()
	if err != nil {
		return err
	}
	cfg := kafka.Config{Brokers: s.Kafka.Brokers, ClientID: prefix + "-events", Log: app.Log}
	topic := eskafka.Topic(outbox.Topic(prefix, s.Aggregate), s.Kafka.Replication)
	standby := &Standby{Pool: s.Pool, Addr: s.Addr}
	err = app.Retry(app.Context(), "open the event log", func(ctx context.Context) error {
		err := kafka.EnsureTopics(ctx, cfg, topic)
		if err == nil {
			e.Log, err = eskafka.Open(ctx, eskafka.Options{Kafka: cfg, Topic: topic.Name, Dir: s.EventStoreDir, Turn: standby.Turn, Log: app.Log})
		}
		return err
	})
	if err != nil {
		return err
	}
	e.Store = e.Log
	app.OnStop("event log", e.Log.Close)
	standby.Meanwhile = e.Log.Follow
	if standby.Advertise, err = s.advertised(app.Context()); err != nil {
		return err
	}
	if err := standby.Await(app); err != nil {
		return err
	}
	app.Go("event log", e.Log.Lead)
	select {
	case <-e.Log.Leading():
		return nil
	case <-app.Context().Done():
		return context.Cause(app.Context())
	}
}

// advertised is where other instances reach this one: as the settings say, else at the address it serves at, which on all addresses is the one that
// the database sees.
func (s EventStore) advertised(ctx context.Context) (string, error) {
	if s.Advertise != "" {
		return s.Advertise, nil
	}
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		return "", fmt.Errorf("address %q: %w", s.Addr, err)
	}
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return s.Addr, nil
	}
	err = s.Pool.QueryRow(ctx, `SELECT coalesce(host(inet_client_addr()), '127.0.0.1')`).Scan(&host)
	return net.JoinHostPort(host, port), espg.Classify("find this instance's address", err)
}

// Fresh returns once the database has all events that the store had when it was called.
func (e *Events) Fresh(ctx context.Context) error {
	if e.Replica == nil {
		return nil
	}
	return e.Replica.Await(ctx)
}

// Notify tells the copy that this process has committed events.
func (e *Events) Notify([]es.Event) {
	if e.Replica != nil {
		e.Replica.Wake()
	}
}

// Decode reads an event's JSON, quickly where this process committed it a while ago.
func (e *Events) Decode(b []byte) (es.Event, error) {
	if d, ok := e.Store.(interface {
		Decode(b []byte) (es.Event, error)
	}); ok {
		return d.Decode(b)
	}
	return es.Decode(b)
}

// Behind has a projection show nothing that the database's own events do not have yet: what compares the two would find the list ahead.
func (e *Events) Behind(handle func(ctx context.Context, events []es.Event) error) func(ctx context.Context, events []es.Event) error {
	if e.Replica == nil {
		return handle
	}
	return func(ctx context.Context, events []es.Event) error {
		versions := map[es.Stream]int64{}
		for _, x := range events {
			versions[x.Stream] = max(versions[x.Stream], x.Version)
		}
		if err := e.committed(ctx, versions); err != nil {
			return err
		}
		if err := e.Replica.AwaitVersions(ctx, versions); err != nil {
			return err
		}
		return handle(ctx, events)
	}
}

// errNotCommitted is of events on the topic that the store does not have: asking again does not help, so their lanes are parked.
var errNotCommitted = errors.New("nobody has committed it")

// committed wants the store to have these versions.
func (e *Events) committed(ctx context.Context, versions map[es.Stream]int64) error {
	if _, err := e.End(ctx); err != nil { // behind the commit that is under way, which may be theirs
		return err
	}
	streams := slices.Collect(maps.Keys(versions))
	heads, err := e.Heads(ctx, streams)
	if err != nil {
		return err
	}
	for i, h := range heads {
		if want := versions[streams[i]]; h.Version < want {
			return fmt.Errorf("version %d of %s: %w", want, streams[i], errNotCommitted)
		}
	}
	return nil
}
