package edge

import (
	"context"
	"maps"

	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc"

	"example.com/billing/pkg/pgwritable"
	"example.com/billing/pkg/rpc"
	"example.com/billing/pkg/run"
	outboxv1 "example.com/billing/proto/gen/go/billing/outbox/v1"
)

// Serving is what a service shows to the network.
type Serving struct {
	Service  string // account, transaction or saga
	Addr     string
	Common   run.Common
	Pool     *pgxpool.Pool
	Checks   map[string]run.Check
	Register func(grpc.ServiceRegistrar)
}

// Accepting is the name whose health says that the service takes requests. It does so without Kafka: what it accepts goes
// out when Kafka is back. The health of the whole server says that everything works.
const Accepting = "accepting"

// TakesWrites is the health of a database: it answers, and it takes writes.
func TakesWrites(pool *pgxpool.Pool) run.Check {
	return func(ctx context.Context) error { return pgwritable.Check(ctx, pool) }
}

// Alive is the name whose health says that no loop of the process has stood still for minutes. One that is not is to be
// started anew.
const Alive = "alive"

// Serve serves the service's API, outbox stats, health and metrics until the app has to stop, and stops it.
func Serve(app *run.App, s Serving) error {
	catalog, err := Catalog()
	if err != nil {
		return err
	}
	server, err := rpc.NewServer(rpc.ServerConfig{Log: app.Log, Catalog: catalog, Metrics: app.Metrics})
	if err != nil {
		return err
	}
	s.Register(server)
	outboxv1.RegisterOutboxServiceServer(server, &OutboxServer{Service: s.Service, Pool: s.Pool})
	if err := app.ServeMetrics(s.Common); err != nil {
		return err
	}
	checks := maps.Clone(s.Checks)
	if checks == nil {
		checks = map[string]run.Check{}
	}
	if whole := checks[History]; whole != nil {
		app.Watch(server.Health, History, map[string]run.Check{History: whole})
		delete(checks, History)
	}
	checks["progress"] = app.Progress
	app.Watch(server.Health, "", checks)
	app.Watch(server.Health, Alive, map[string]run.Check{"progress": app.Alive})
	app.Watch(server.Health, Accepting, map[string]run.Check{"postgres": TakesWrites(s.Pool), "progress": app.Progress})
	if err := app.Serve(s.Addr, server.Server, server.Health); err != nil {
		return err
	}
	return app.Wait()
}
