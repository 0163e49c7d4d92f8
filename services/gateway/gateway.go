// Package gateway is the system's REST face: it turns HTTP with JSON into calls of the public gRPC services, and every error
// into an RFC 9457 problem document. It knows the contracts and nothing of what stands behind them.
//
// What the OpenAPI document says is what is accepted: paths, methods and query parameters are checked against the document
// that is served, so neither can drift from the other.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync/atomic"
	"time"

	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	outboxv1 "example.com/billing/proto/gen/go/billing/outbox/v1"
	readmodelv1 "example.com/billing/proto/gen/go/billing/readmodel/v1"
	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

const (
	bodyBytesMax   = 1 << 20
	waitMax        = 30 * time.Second
	requestTimeout = 10 * time.Second // beyond what the caller wants to wait
)

// Config is what the gateway needs.
type Config struct {
	Account     grpc.ClientConnInterface // required: the account service
	Transaction grpc.ClientConnInterface // required: the transaction service
	Saga        grpc.ClientConnInterface // required: the saga orchestrator
	Catalog     *rpc.Catalog             // required: the reasons and their HTTP statuses
	Log         *slog.Logger             // required
	Stopping    <-chan struct{}          // optional: closed when the process is about to stop: /readyz says no, watches end
}

// gateway is the handler: one request goes through identify, route, prepare and the mux of grpc-gateway.
type gateway struct {
	log     *slog.Logger
	catalog *rpc.Catalog
	mux     *runtime.ServeMux
	routes  routes

	marshaler *marshaler
	stopping  <-chan struct{}
	watchers  atomic.Int64 // watches being served
}

// New makes the handler of the whole REST API with /healthz, /readyz and /openapi.json. It is safe for concurrent use.
func New(cfg Config) (http.Handler, error) {
	if cfg.Account == nil || cfg.Transaction == nil || cfg.Saga == nil || cfg.Catalog == nil || cfg.Log == nil {
		return nil, errors.New("new gateway: Account, Transaction, Saga, Catalog and Log are required")
	}
	for _, reason := range []string{
		reasonRouteNotFound, reasonMethodNotAllowed, reasonBodyTooLarge, reasonMediaType, reasonServiceNotFound, reasonReadModel, reasonOverloaded,
	} {
		if _, ok := cfg.Catalog.Lookup(reason); !ok {
			return nil, fmt.Errorf("new gateway: the catalog has no %s", reason)
		}
	}
	document, err := OpenAPI(cfg.Catalog)
	if err != nil {
		return nil, fmt.Errorf("new gateway: %w", err)
	}
	served, err := document.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("new gateway: openapi: %w", err)
	}
	g := &gateway{log: cfg.Log, catalog: cfg.Catalog, marshaler: newMarshaler(), stopping: cfg.Stopping}
	g.mux = runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, g.marshaler),
		runtime.WithErrorHandler(g.onError),
		runtime.WithRoutingErrorHandler(g.onRoutingError),
		runtime.WithMiddlewares(g.onlyChecked),
		runtime.WithForwardResponseOption(respond),
		runtime.WithMetadata(func(ctx context.Context, _ *http.Request) metadata.MD { return rpc.CallerFrom(ctx).Metadata() }),
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithOutgoingHeaderMatcher(outgoingHeader),
		runtime.WithOutgoingTrailerMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithDisableHTTPMethodOverride(),
		runtime.WithWriteContentLength(),
	)
	if err := register(g.mux, cfg); err != nil {
		return nil, fmt.Errorf("new gateway: %w", err)
	}
	special := watches(cfg)
	special["TransactionService_Batch"] = operation{
		serve: &batches{gateway: g, client: transactionv1.NewTransactionServiceClient(cfg.Transaction)}, bytesMax: batchBytesMax,
	}
	if g.routes, err = newRoutes(document, g.mux, special); err != nil {
		return nil, fmt.Errorf("new gateway: %w", err)
	}
	ready := &readiness{stopping: cfg.Stopping, services: map[string]grpc.ClientConnInterface{
		"account": cfg.Account, "transaction": cfg.Transaction, "saga": cfg.Saga,
	}}
	g.routes.add("/healthz", http.MethodGet, &operation{serve: static([]byte(`{"status":"ok"}`))})
	g.routes.add("/readyz", http.MethodGet, &operation{serve: ready})
	g.routes.add("/openapi.json", http.MethodGet, &operation{serve: static(served)})
	return g, nil
}

// register names every public service. The internal ones (postings, settlement, triggers) are not here and so cannot be reached.
func register(mux *runtime.ServeMux, cfg Config) error {
	ctx := context.Background() // the generated functions do not use it
	return errors.Join(
		accountv1.RegisterAccountServiceHandlerClient(ctx, mux, accountv1.NewAccountServiceClient(cfg.Account)),
		accountv1.RegisterBooksServiceHandlerClient(ctx, mux, accountv1.NewBooksServiceClient(cfg.Account)),
		transactionv1.RegisterTransactionServiceHandlerClient(ctx, mux, transactionv1.NewTransactionServiceClient(cfg.Transaction)),
		transactionv1.RegisterHoldServiceHandlerClient(ctx, mux, transactionv1.NewHoldServiceClient(cfg.Transaction)),
		sagav1.RegisterSagaServiceHandlerClient(ctx, mux, sagav1.NewSagaServiceClient(cfg.Saga)),
		outboxv1.RegisterOutboxServiceHandlerServer(ctx, mux, newOutboxes(cfg)),
		readmodelv1.RegisterReadModelServiceHandlerServer(ctx, mux, newReadModels(cfg)),
	)
}

// ServeHTTP gives the request its caller, answers it, and sees to it that a panic is answered too.
func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	caller := rpc.Caller{
		CorrelationID: rpc.CorrelationIDOr(r.Header.Get("X-Correlation-ID")),
		Actor:         rpc.ActorOr(r.Header.Get("X-Actor")),
		TenantID:      rpc.DefaultTenant,
	}
	r = r.WithContext(rpc.WithCaller(r.Context(), caller))
	out := &recorder{ResponseWriter: w}
	out.Header().Set("X-Correlation-ID", caller.CorrelationID)
	defer func() {
		g.log.LogAttrs(r.Context(), slog.LevelDebug, "http",
			slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Int("status", out.status),
			slog.Duration("took", time.Since(start)),
			slog.String("correlationId", caller.CorrelationID), slog.String("actor", caller.Actor))
	}()
	defer g.recover(out, r)
	g.serve(out, r)
}

func (g *gateway) recover(out *recorder, r *http.Request) {
	value := recover()
	if value == nil {
		return
	}
	if value == http.ErrAbortHandler { //nolint:errorlint // net/http compares it like this
		panic(value)
	}
	g.log.LogAttrs(r.Context(), slog.LevelError, "http panic",
		slog.Any("panic", value), slog.String("path", r.URL.Path), slog.String("stack", string(debug.Stack())),
		slog.String("correlationId", rpc.CallerFrom(r.Context()).CorrelationID))
	if out.status != 0 {
		panic(http.ErrAbortHandler) // part of an answer is out: cut it off rather than let it pass for whole
	}
	g.problem(out, r, rpc.Fail(rpc.ReasonInternal, ""))
}

func (g *gateway) serve(w *recorder, r *http.Request) {
	segments := segmentsOf(r.URL)
	found, op, err := g.routes.find(r.Method, r.URL.Path, segments)
	if found != nil {
		if r.Method == http.MethodOptions {
			w.Header().Set("Allow", found.allow())
			w.WriteHeader(http.StatusNoContent)
			return
		}
		if op == nil {
			w.Header().Set("Allow", found.allow())
		}
	}
	if err != nil {
		drain(w, r)
		g.problem(w, r, err)
		return
	}
	prepared, wait, failure := g.prepare(r, found, op, segments)
	if failure != nil {
		drain(w, r)
		g.problem(w, r, failure)
		return
	}
	if op.watch != nil {
		g.serveWatch(w, prepared, op.watch, found.value(segments), r.Method == http.MethodHead)
		return
	}
	ctx, cancel := context.WithTimeout(withRoute(prepared.Context(), found), wait+requestTimeout)
	defer cancel()
	op.serve.ServeHTTP(w, prepared.WithContext(ctx))
}

// static answers with JSON that does not change.
func static(body []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body)
	})
}
