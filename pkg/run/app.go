package run

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"example.com/billing/pkg/progress"
)

// stopTimeout bounds a whole orderly stop.
const stopTimeout = 9 * time.Second

// App is the parts of a running service. Add parts from the bottom up; they end from the top down. Not safe for concurrent
// use.
type App struct {
	Log     *slog.Logger
	Metrics *prometheus.Registry

	ctx    context.Context // ends when the service has to stop
	cancel context.CancelCauseFunc
	stops  []stop
	hosts  hosts // of databases
	loops  progress.Loops
}

type stop struct {
	name string
	f    func(ctx context.Context) error
}

// NewApp makes an app that has to stop when ctx ends.
func NewApp(ctx context.Context, log *slog.Logger) *App {
	a := &App{Log: log, Metrics: prometheus.NewRegistry()}
	a.Metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	a.ctx, a.cancel = context.WithCancelCause(ctx)
	return a
}

// Context ends when the app has to stop.
func (a *App) Context() context.Context { return a.ctx }

// OnStop has f called when the app stops, after everything added later has ended.
func (a *App) OnStop(name string, f func(ctx context.Context) error) {
	a.stops = append(a.stops, stop{name, f})
}

// Go runs a part in the background. Its context ends when it is its turn to stop; an error before that stops the app.
func (a *App) Go(name string, f func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(a.ctx))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f(ctx); err != nil && ctx.Err() == nil {
			a.cancel(fmt.Errorf("%s: %w", name, err))
		}
	})
	a.OnStop(name, func(until context.Context) error {
		cancel()
		return await(until, wg.Wait)
	})
}

// Limits of a loop's turn: the service is not ready while one lasts for longer, and not alive after aliveTimes as long.
const (
	loopLimit  = time.Minute
	aliveTimes = 5
)

// Loop runs a loop in the background, as Go does. It says by progress.Beat when a turn begins: a service with a loop that stands
// still is not ready.
func (a *App) Loop(name string, loop func(ctx context.Context) error) {
	l := a.NewLoop(name)
	a.Go(name, func(ctx context.Context) error { return l.Run(ctx, loop) })
}

// NewLoop adds a loop that the caller runs.
func (a *App) NewLoop(name string) *progress.Loop { return a.loops.Add(name, loopLimit) }

// Progress is the check that no loop stands still.
func (a *App) Progress(context.Context) error { return a.loops.Stuck(1) }

// Alive is the check that no loop has stood still for so long that only a new process can help.
func (a *App) Alive(context.Context) error { return a.loops.Stuck(aliveTimes) }

// Retry runs f until it succeeds, with a growing pause up to 5 s, or the app has to stop.
func (a *App) Retry(ctx context.Context, what string, f func(context.Context) error) error {
	b := backoff.NewExponentialBackOff()
	b.MaxInterval = 5 * time.Second
	_, err := backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, f(ctx) },
		backoff.WithBackOff(b), backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(err error, again time.Duration) {
			a.Log.Warn(what+" failed", "error", err, "again_in", again)
		}))
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// Listen opens a TCP listener that closes when the app stops.
func (a *App) Listen(addr string) (net.Listener, error) {
	var lc net.ListenConfig
	return lc.Listen(a.ctx, "tcp", addr)
}

// Serve serves gRPC on an address. At the stop, calls under way get 5 s to end.
func (a *App) Serve(addr string, server *grpc.Server, h *health.Server) error {
	l, err := a.Listen(addr)
	if err != nil {
		return fmt.Errorf("serve gRPC: %w", err)
	}
	a.Log.Info("serving gRPC", "addr", l.Addr().String())
	a.Go("gRPC server", func(context.Context) error { return server.Serve(l) })
	a.OnStop("gRPC calls", func(ctx context.Context) error {
		h.Shutdown()
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if await(ctx, server.GracefulStop) != nil {
			server.Stop()
		}
		return nil
	})
	return nil
}

// ServeHTTP serves a handler on an address. At the stop, requests under way get 5 s to end.
func (a *App) ServeHTTP(name, addr string, h http.Handler) (net.Addr, error) {
	l, err := a.Listen(addr)
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", name, err)
	}
	a.Log.Info("serving "+name, "addr", l.Addr().String())
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 20 * time.Second, IdleTimeout: 2 * time.Minute}
	a.Go(name+" server", func(context.Context) error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	a.OnStop(name+" requests", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			return server.Close()
		}
		return nil
	})
	return l.Addr(), nil
}

// ServeMetrics serves /metrics, and profiles if the settings say so, unless there is no address for them.
func (a *App) ServeMetrics(c Common) error {
	if c.MetricsAddr == "" {
		if c.Profiles {
			return errors.New("profiles are served at the metrics address, and there is none")
		}
		return nil
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(a.Metrics, promhttp.HandlerOpts{}))
	if c.Profiles {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	_, err := a.ServeHTTP("metrics", c.MetricsAddr, mux)
	return err
}

// Check says what is missing for the service to work, or nil.
type Check func(ctx context.Context) error

// Watch sets the health of a name by its checks, every second; the empty name is the whole server.
func (a *App) Watch(h *health.Server, name string, checks map[string]Check) {
	h.SetServingStatus(name, healthv1.HealthCheckResponse_NOT_SERVING)
	a.Go("health "+name, func(ctx context.Context) error {
		serving := false
		for {
			now := a.check(ctx, checks, serving)
			if now != serving && ctx.Err() == nil {
				serving = now
				status := healthv1.HealthCheckResponse_NOT_SERVING
				if serving {
					status = healthv1.HealthCheckResponse_SERVING
					a.Log.Info("ready", "for", cmp.Or(name, "everything"))
				}
				h.SetServingStatus(name, status)
			}
			select {
			case <-time.After(pollInterval(serving)):
			case <-ctx.Done():
				return nil
			}
		}
	})
}

// pollInterval: a service that is not ready looks more often.
func pollInterval(serving bool) time.Duration {
	if serving {
		return time.Second
	}
	return 100 * time.Millisecond
}

func (a *App) check(ctx context.Context, checks map[string]Check, was bool) bool {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	ok := true
	for name, check := range checks {
		if err := check(ctx); err != nil {
			ok = false
			if was {
				a.Log.Warn("not ready", "part", name, "error", err)
			}
		}
	}
	return ok
}

// Wait blocks until the app has to stop, then ends its parts in order. It returns why it had to stop, if that was an error.
func (a *App) Wait() error {
	<-a.ctx.Done()
	cause := context.Cause(a.ctx)
	if errors.Is(cause, context.Canceled) {
		cause = nil
	}
	if cause != nil {
		a.Log.Error("stopping", "cause", cause)
	} else {
		a.Log.Info("stopping")
	}
	return errors.Join(cause, a.Close())
}

// Close ends the parts in order. Call it when starting failed halfway; Wait does it otherwise.
func (a *App) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	var errs []error
	for i := len(a.stops) - 1; i >= 0; i-- {
		s := a.stops[i]
		if err := s.f(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", s.name, err))
		}
	}
	a.stops = nil
	a.cancel(nil)
	return errors.Join(errs...)
}

// await runs f, giving up waiting when ctx ends.
func await(ctx context.Context, f func()) error {
	done := make(chan struct{})
	go func() { f(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
