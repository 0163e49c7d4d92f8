// Package run starts and stops a service: settings, logs, metrics, health, and parts that end in the reverse of the order
// they began in.
package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/alecthomas/kong"

	"example.com/billing/pkg/dsn"
)

// Common are the settings of every service.
type Common struct {
	LogLevel    slog.Level `name:"log-level" env:"BILLING_LOG_LEVEL" default:"INFO" help:"debug, info, warn or error."`
	LogFormat   string     `name:"log-format" env:"BILLING_LOG_FORMAT" default:"json" enum:"json,text" help:"json or text, to standard error."`
	MetricsAddr string     `name:"metrics-addr" env:"BILLING_METRICS_ADDR" help:"Where to serve Prometheus metrics over HTTP; empty = off."`
	Profiles    bool       `name:"profiles" env:"BILLING_PROFILES" help:"Serve pprof profiles too, at /debug/pprof/ of the metrics address."`
	LogTo       io.Writer  `kong:"-"` // nil = standard error
}

// Logger makes the service's logger.
func (c Common) Logger(service string) *slog.Logger {
	o := &slog.HandlerOptions{Level: c.LogLevel}
	out := c.LogTo
	if out == nil {
		out = os.Stderr
	}
	var h slog.Handler = slog.NewJSONHandler(out, o)
	if c.LogFormat == "text" {
		h = slog.NewTextHandler(out, o)
	}
	return slog.New(h).With("service", service)
}

// gcPercent trades memory, of which the services need little, for time: at Go's own 100 the collector takes an eighth of it. The
// variable GOGC of the environment wins.
const gcPercent = 400

// Main is a command's main function: it reads the settings into cfg from flags and environment, runs until SIGINT,
// SIGTERM or SIGHUP, and exits with 1 on an error.
func Main[C any](name, description string, cfg *C, body func(ctx context.Context, cfg C) error) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	kong.Parse(cfg, kong.Name(name), kong.Description(description), kong.UsageOnError(),
		kong.Writers(os.Stdout, dsn.Hide(os.Stderr, os.Args[1:])))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := body(ctx, *cfg); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		stop()
		os.Exit(1) //nolint:gocritic // stop has been called
	}
}
