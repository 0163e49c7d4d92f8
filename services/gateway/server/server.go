// Package server puts the gateway together: what runs, and on what.
package server

import (
	"context"

	"google.golang.org/grpc"

	"example.com/billing/pkg/run"
	"example.com/billing/services/edge"
	"example.com/billing/services/gateway"
)

// Config is the gateway's settings.
type Config struct {
	Addr              string `name:"addr" env:"BILLING_HTTP_ADDR" default:"127.0.0.1:8080" help:"Where to serve REST."`
	AccountTarget     string `name:"account-target" env:"BILLING_ACCOUNT_TARGET" default:"127.0.0.1:9101" help:"The account service, as a gRPC target."`
	TransactionTarget string `name:"transaction-target" env:"BILLING_TRANSACTION_TARGET" default:"127.0.0.1:9102" help:"The transaction service, as a gRPC target."`
	SagaTarget        string `name:"saga-target" env:"BILLING_SAGA_TARGET" default:"127.0.0.1:9103" help:"The saga orchestrator, as a gRPC target."`
	run.Common
}

// Run runs the gateway until ctx ends.
func Run(ctx context.Context, cfg Config) (err error) {
	app := run.NewApp(ctx, cfg.Logger("gateway"))
	defer func() {
		if err != nil {
			_ = app.Close() // the error that stopped the start matters more
		}
	}()
	catalog, err := edge.Catalog()
	if err != nil {
		return err
	}
	var conns [3]*grpc.ClientConn
	for i, target := range []string{cfg.AccountTarget, cfg.TransactionTarget, cfg.SagaTarget} {
		if conns[i], err = edge.Connect(app, target); err != nil {
			return err
		}
	}
	handler, err := gateway.New(gateway.Config{
		Account: conns[0], Transaction: conns[1], Saga: conns[2], Catalog: catalog, Log: app.Log,
		Stopping: app.Context().Done(),
	})
	if err != nil {
		return err
	}
	if err := app.ServeMetrics(cfg.Common); err != nil {
		return err
	}
	if _, err := app.ServeHTTP("REST", cfg.Addr, handler); err != nil {
		return err
	}
	return app.Wait()
}
