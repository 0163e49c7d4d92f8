package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// interceptor is what happens around every request of a server.
type interceptor struct {
	log       *slog.Logger
	catalog   *Catalog
	durations *prometheus.HistogramVec // nil = not measured
}

func newInterceptor(cfg ServerConfig) (*interceptor, error) {
	i := &interceptor{log: cfg.Log, catalog: cfg.Catalog}
	if cfg.Metrics == nil {
		return i, nil
	}
	i.durations = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "rpc_server_duration_seconds",
		Help:    "Time from a request's arrival to its answer, by method and gRPC code.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	}, []string{"method", "code"})
	err := cfg.Metrics.Register(i.durations)
	var twice prometheus.AlreadyRegisteredError
	if errors.As(err, &twice) { // several servers of one process share a registry
		existing, ok := twice.ExistingCollector.(*prometheus.HistogramVec)
		if !ok {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
		i.durations, err = existing, nil
	}
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return i, nil
}

func (i *interceptor) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if grpcsOwn(info.FullMethod) {
		return handler(ctx, req)
	}
	ctx, caller, start := i.begin(ctx)
	_ = grpc.SetHeader(ctx, metadata.Pairs(keyCorrelationID, caller.CorrelationID)) // fails only after the headers were sent
	var resp any
	err := i.guarded(func() (err error) {
		resp, err = handler(ctx, req)
		return err
	})
	if err = i.end(ctx, info.FullMethod, caller, start, err); err != nil {
		return nil, err
	}
	return resp, nil
}

func (i *interceptor) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if grpcsOwn(info.FullMethod) {
		return handler(srv, ss)
	}
	ctx, caller, start := i.begin(ss.Context())
	_ = ss.SetHeader(metadata.Pairs(keyCorrelationID, caller.CorrelationID))
	err := i.guarded(func() error { return handler(srv, &serverStream{ServerStream: ss, ctx: ctx}) })
	return i.end(ctx, info.FullMethod, caller, start, err)
}

// serverStream is a stream whose context has the caller.
type serverStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context has the caller.
func (s *serverStream) Context() context.Context { return s.ctx }

// grpcsOwn names the services that gRPC brings: their codes mean what the protocol says, and nobody asks for their durations.
func grpcsOwn(method string) bool { return strings.HasPrefix(method, "/grpc.") }

func (i *interceptor) begin(ctx context.Context) (context.Context, Caller, time.Time) {
	caller := incoming(ctx)
	return WithCaller(ctx, caller), caller, time.Now()
}

// panicked is a panic as an error; the stack is for the log.
type panicked struct {
	value any
	stack []byte
}

func (p *panicked) Error() string { return fmt.Sprintf("panic: %v", p.value) }

func (i *interceptor) guarded(handle func() error) (err error) {
	defer func() {
		if value := recover(); value != nil {
			err = &panicked{value: value, stack: debug.Stack()}
		}
	}()
	return handle()
}

// end turns the handler's error into what leaves, writes the log and the measurement.
func (i *interceptor) end(ctx context.Context, method string, caller Caller, start time.Time, err error) error {
	took := time.Since(start)
	code := codes.OK
	var st *status.Status
	if err != nil {
		st = i.catalog.statusOf(ctx, caller.CorrelationID, err)
		code = st.Code()
	}
	if i.durations != nil {
		i.durations.WithLabelValues(method, CodeName(code)).Observe(took.Seconds())
	}
	attrs := []slog.Attr{
		slog.String("method", method), slog.String("code", CodeName(code)), slog.Duration("took", took),
		slog.String("correlationId", caller.CorrelationID), slog.String("actor", caller.Actor),
	}
	level := slog.LevelDebug
	if err != nil {
		attrs = append(attrs, slog.Any("err", err))
		if code == codes.Internal {
			level = slog.LevelError
		}
		var p *panicked
		if errors.As(err, &p) {
			attrs = append(attrs, slog.String("stack", string(p.stack)))
		}
	}
	i.log.LogAttrs(ctx, level, "rpc", attrs...)
	if st == nil {
		return nil
	}
	return st.Err()
}
