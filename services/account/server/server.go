// Package server puts the account service together: what runs, and on what.
package server

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/job"
	"example.com/billing/pkg/run"
	"example.com/billing/services/account"
	"example.com/billing/services/account/api"
	"example.com/billing/services/account/books"
	"example.com/billing/services/account/clients"
	"example.com/billing/services/account/readmodel"
	"example.com/billing/services/account/reconcile"
	"example.com/billing/services/edge"
)

// Config is the service's settings.
type Config struct {
	Addr              string `name:"addr" env:"BILLING_ACCOUNT_ADDR" default:"127.0.0.1:9101" help:"Where to serve gRPC."`
	PostgresDSN       string `name:"postgres-dsn" env:"BILLING_POSTGRES_DSN" required:"" help:"The service's own database."`
	TransactionTarget string `name:"transaction-target" env:"BILLING_TRANSACTION_TARGET" default:"127.0.0.1:9102" help:"The transaction service, as a gRPC target."`
	edge.CurrencySettings
	edge.KafkaSettings
	edge.EventStoreSettings
	run.Common
}

// linger is how long an event waits for others on its way to Kafka: it is for the read model, and for whoever listens.
const linger = 25 * time.Millisecond

// Run runs the service until ctx ends.
func Run(ctx context.Context, cfg Config) (err error) {
	app := run.NewApp(ctx, cfg.Logger("account"))
	defer func() {
		if err != nil {
			_ = app.Close() // the error that stopped the start matters more
		}
	}()
	pool, err := edge.Database(app, cfg.PostgresDSN, readmodel.Migrations, "account_migration")
	if err != nil {
		return err
	}
	currencies, err := cfg.Catalogue()
	if err != nil {
		return err
	}
	watches := edge.NewWatches(app.Context())
	store, err := edge.EventStore{
		EventStoreSettings: cfg.EventStoreSettings, Kafka: cfg.KafkaSettings, Aggregate: account.AggregateType, Addr: cfg.Addr, Pool: pool, Inline: inline,
	}.Open(app)
	if app.Context().Err() != nil {
		return app.Wait()
	}
	if err != nil {
		return err
	}
	secret, err := store.Tables.Secret(app.Context())
	if err != nil {
		return err
	}
	transactionConn, err := edge.Connect(app, cfg.TransactionTarget)
	if err != nil {
		return err
	}
	executor, err := es.NewExecutor(account.Decider(), store.Store, es.ExecutorOptions{Notify: func(events []es.Event) {
		watches.Hub.Notify(events)
		store.Notify(events)
	}})
	if err != nil {
		return err
	}
	if store.Replica == nil { // else nobody else commits
		app.Loop("others' commits", func(ctx context.Context) error {
			return store.Tables.TellOfOthers(ctx, app.Log, func() bool { return executor.Used() || watches.Hub.Waiting() > 0 }, func(events []es.Event) {
				executor.Forget(events)
				watches.Hub.Notify(events)
			})
		})
	}
	app.OnStop("commands", executor.Close)

	accounts := readmodel.New(pool)
	jobs, background, err := edge.Background(app, cfg.PostgresDSN)
	if err != nil {
		return err
	}
	models := &edge.ReadModels{Jobs: jobs, Models: map[string]job.Work{"accounts": accounts.Rebuild(espg.New(background, espg.Options{}))}}
	var bus cqrs.EventBus
	projection := accounts.Projection(store.Load)
	bus.OnProjection("accounts", account.AggregateType, store.Behind(projection.Handle))
	// From the database's own events, which a list is never ahead of.
	if err := edge.Heal(app, "accounts", store.Tables, accounts.Healer(projection, store.Tables.Load, app.Log)); err != nil {
		return err
	}
	checks, err := edge.Stream{
		Service: "account", Aggregate: account.AggregateType, Kafka: cfg.KafkaSettings,
		Pool: pool, Events: store, Linger: linger, Bus: &bus,
	}.Start(app)
	if err != nil {
		return err
	}
	transactions := clients.NewTransactions(transactionConn)
	closing := &api.Closing{Executor: executor, Open: transactions.OpenOf, Accounts: accounts.Closing, Log: app.Log}
	app.Loop("closing of accounts", closing.Run)
	app.Loop("roll-up of the books", func(ctx context.Context) error {
		return run.Every(ctx, books.RollUpEvery, app.Log, "roll up the books", func(ctx context.Context) error { return books.RollUpAll(ctx, background) })
	})
	server := api.New(api.Parts{
		Executor: executor, Store: store.Store, Fresh: store.Fresh, Watches: watches, Accounts: accounts, Pool: pool, Currencies: currencies, Secret: secret,
		Closing: closing, Reconciler: reconcile.New(background, jobs, transactions, store.Fresh),
	})
	return edge.Serve(app, edge.Serving{
		Service: "account", Addr: cfg.Addr, Common: cfg.Common, Pool: pool, Checks: checks,
		Register: func(r grpc.ServiceRegistrar) { server.Register(r); models.Register(r) },
	})
}

// inline keeps what must never lag behind the events: the books, and the accounts that are closing.
func inline(b *pgx.Batch, events []es.Event) error {
	if err := books.Inline(b, events); err != nil {
		return err
	}
	return readmodel.Inline(b, events)
}
