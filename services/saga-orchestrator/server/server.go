// Package server puts the saga orchestrator together: what runs, and on what.
package server

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/failpoint"
	"example.com/billing/pkg/run"
	"example.com/billing/pkg/saga"
	sagapg "example.com/billing/pkg/saga/postgres"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/edge"
	orchestrator "example.com/billing/services/saga-orchestrator"
	"example.com/billing/services/saga-orchestrator/api"
	"example.com/billing/services/saga-orchestrator/clients"
)

// Config is the service's settings.
type Config struct {
	Addr              string `name:"addr" env:"BILLING_SAGA_ADDR" default:"127.0.0.1:9103" help:"Where to serve gRPC."`
	PostgresDSN       string `name:"postgres-dsn" env:"BILLING_POSTGRES_DSN" required:"" help:"The service's own database."`
	AccountTarget     string `name:"account-target" env:"BILLING_ACCOUNT_TARGET" default:"127.0.0.1:9101" help:"The account service, as a gRPC target."`
	TransactionTarget string `name:"transaction-target" env:"BILLING_TRANSACTION_TARGET" default:"127.0.0.1:9102" help:"The transaction service, as a gRPC target."`
	ActiveMax         int    `name:"active-max" env:"BILLING_SAGA_ACTIVE_MAX" default:"10000" help:"Sagas this instance works on at the same time; 1 = strictly one after the other."`
	edge.KafkaSettings
	run.Common
}

// linger is how long a saga's event waits for others on its way to Kafka: it tells whoever listens of an end.
const linger = 25 * time.Millisecond

// Run runs the service until ctx ends.
func Run(ctx context.Context, cfg Config) (err error) {
	app := run.NewApp(ctx, cfg.Logger("saga"))
	defer func() {
		if err != nil {
			_ = app.Close() // the error that stopped the start matters more
		}
	}()
	pool, err := edge.Database(app, cfg.PostgresDSN, sagapg.Migrations, sagapg.MigrationsTable)
	if err != nil {
		return err
	}
	events := espg.New(pool, espg.Options{})
	store := sagapg.New(pool, events, orchestrator.EndedEvent)
	accountConn, err := edge.Connect(app, cfg.AccountTarget)
	if err != nil {
		return err
	}
	transactionConn, err := edge.Connect(app, cfg.TransactionTarget)
	if err != nil {
		return err
	}
	services := clients.New(accountConn, transactionConn)
	app.OnStop("requests to the services", services.Close)

	registry, err := saga.NewRegistry(orchestrator.Definitions()...)
	if err != nil {
		return err
	}
	ended := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "saga_ended_total", Help: "Sagas that ended, by type and status."}, []string{"type", "status"})
	engine, err := saga.NewEngine(saga.Config{
		Registry: registry, Actions: services.Actions(), Registers: services.Registers(), Reports: services.Reports(),
		Store: store, Log: app.Log, ActiveMax: cfg.ActiveMax,
		OnEnd: func(s saga.State) { ended.WithLabelValues(s.SagaType, string(s.Status)).Inc() },
	})
	if err != nil {
		return err
	}
	triggers := &api.TopicTriggers{Engine: engine, Store: store, Transactions: transactionv1.NewSettlementServiceClient(transactionConn), Log: app.Log}
	refused := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "saga_triggers_refused_total", Help: "Triggers from Kafka whose transaction was not pending or does not exist, each as often as it was tried.",
	}, func() float64 { return float64(triggers.Refused()) })
	for _, c := range append(engineMetrics(engine, cfg.ActiveMax), ended, refused) {
		if err := app.Metrics.Register(c); err != nil {
			return fmt.Errorf("metrics: %w", err)
		}
	}
	app.OnStop("sagas", engine.Stop)
	app.Loop("saga recovery", engine.Run)

	var bus cqrs.EventBus
	bus.OnSaga("sagas", orchestrator.TransactionType, registry.Triggers(), func(ctx context.Context, events []es.Event) error {
		failpoint.Hit("saga.before_start")
		err := triggers.Handle(ctx, events)
		failpoint.Hit("saga.after_start")
		return err
	})
	checks, err := edge.Stream{
		Service: "saga", Aggregate: orchestrator.AggregateType, Sources: []string{orchestrator.TransactionType}, Kafka: cfg.KafkaSettings,
		Pool: pool, Events: &edge.Events{Store: events, Tables: events}, Linger: linger, Bus: &bus,
	}.Start(app)
	if err != nil {
		return err
	}
	server := api.New(engine, store, registry, transactionv1.NewTransactionServiceClient(transactionConn), edge.NewWatches(app.Context()))
	return edge.Serve(app, edge.Serving{
		Service: "saga", Addr: cfg.Addr, Common: cfg.Common, Pool: pool, Checks: checks, Register: server.Register,
	})
}

// engineMetrics are what the engine tells of itself.
func engineMetrics(engine *saga.Engine, activeMax int) []prometheus.Collector {
	gauge := func(name, help string, value func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(value()) })
	}
	counter := func(name, help string, value func(saga.Stats) int64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(value(engine.Stats())) })
	}
	return []prometheus.Collector{
		gauge("saga_active", "Sagas being worked on by this process.", engine.Active),
		gauge("saga_active_max", "Sagas that this process works on at the same time at most.", func() int { return activeMax }),
		gauge("saga_unanswered", "Actions of this process that have no answer and are asked again now; sagas that sleep are not counted.",
			func() int { return int(engine.Stats().Unanswered) }),
		counter("saga_naps_total", "Times that a saga was put to sleep since an action had no answer: one that waits naps once a minute.",
			func(s saga.Stats) int64 { return s.Naps }),
		counter("saga_reported_again_total", "Last reports of ended sagas that were sent again: the transaction had come back as pending.",
			func(s saga.Stats) int64 { return s.ReportedAgain }),
	}
}
