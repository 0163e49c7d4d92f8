package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	eventv1 "example.com/billing/proto/gen/go/billing/event/v1"
	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

const (
	watchersMax       = 10_000                // watches that one gateway serves at a time
	watchOpenTimeout  = time.Second           // a service that has said nothing for so long has nothing against the request
	watchSettleTime   = 50 * time.Millisecond // after a service's headers: a refusal has them too, and comes right behind them
	watchWriteTimeout = 10 * time.Second      // a client that takes nothing for so long is gone
	heartbeatInterval = 15 * time.Second
	lastEventID       = "Last-Event-ID"
)

// A watch is one kind of stream, answered as server-sent events.
type watch struct {
	open func(ctx context.Context, id string, after *int32) (*stream, error)
	ends bool // a stream that ends has said everything; else it was cut off
}

// stream is an open stream of a service.
type stream struct {
	header func() (metadata.MD, error) // blocks until the service has sent its headers, or ended without
	next   func() (happening, error)
}

// happening is one event of a stream.
type happening struct {
	id   int32
	kind string
	data proto.Message
}

// watches are the public streams, by the document's operations.
func watches(cfg Config) map[string]operation {
	accounts, transactions := accountv1.NewAccountServiceClient(cfg.Account), transactionv1.NewTransactionServiceClient(cfg.Transaction)
	sagas := sagav1.NewSagaServiceClient(cfg.Saga)
	return map[string]operation{
		"AccountService_WatchAccount": {watch: &watch{open: func(ctx context.Context, id string, after *int32) (*stream, error) {
			s, err := accounts.WatchAccount(ctx, &accountv1.WatchAccountRequest{AccountId: id, After: after})
			return opened(s, err, func(r *accountv1.WatchAccountResponse) happening { return recorded(r.GetEvent()) })
		}}},
		"TransactionService_WatchTransaction": {watch: &watch{open: func(ctx context.Context, id string, after *int32) (*stream, error) {
			s, err := transactions.WatchTransaction(ctx, &transactionv1.WatchTransactionRequest{TransactionId: id, After: after})
			return opened(s, err, func(r *transactionv1.WatchTransactionResponse) happening { return recorded(r.GetEvent()) })
		}}},
		"SagaService_WatchSaga": {watch: &watch{ends: true, open: func(ctx context.Context, id string, after *int32) (*stream, error) {
			s, err := sagas.WatchSaga(ctx, &sagav1.WatchSagaRequest{SagaId: id, After: after})
			return opened(s, err, func(r *sagav1.WatchSagaResponse) happening {
				return happening{r.GetEntry().GetId(), r.GetEntry().GetType(), r.GetEntry()}
			})
		}}},
	}
}

func recorded(e *eventv1.RecordedEvent) happening {
	return happening{e.GetVersion(), e.GetEventType(), e}
}

func opened[R any](s grpc.ServerStreamingClient[R], err error, read func(*R) happening) (*stream, error) {
	if err != nil {
		return nil, err
	}
	return &stream{header: s.Header, next: func() (happening, error) {
		r, err := s.Recv()
		if err != nil {
			return happening{}, err
		}
		return read(r), nil
	}}, nil
}

// serveWatch answers with what a stream brings, as server-sent events, until it ends, the client goes away or the process is
// about to stop. What goes wrong before the first byte is a problem document; after it the answer ends, and the client comes
// back with the id of the last event it has.
func (g *gateway) serveWatch(w *recorder, r *http.Request, watch *watch, id string, head bool) {
	after, failure := afterOf(r)
	if failure != nil {
		g.problem(w, r, failure)
		return
	}
	defer g.watchers.Add(-1)
	if g.watchers.Add(1) > watchersMax {
		g.problem(w, r, rpc.Fail(reasonOverloaded, "Too many watches are open already.").After(heartbeatInterval))
		return
	}
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(r.Context(), rpc.CallerFrom(r.Context()).Metadata()))
	defer cancel()
	s, err := watch.open(ctx, id, after)
	if err != nil {
		g.onError(ctx, nil, nil, w, r, err)
		return
	}
	news := pump(ctx, s)
	first := g.first(ctx, news)
	switch {
	case errors.Is(first.err, io.EOF) && watch.ends:
		w.WriteHeader(http.StatusNoContent) // tells an EventSource not to come back
		return
	case first.err != nil && !errors.Is(first.err, io.EOF):
		g.onError(ctx, nil, nil, w, r, first.err)
		return
	}
	out := newEventStream(w, g.marshaler)
	defer out.end()
	if err := out.begin(); err != nil || head {
		return
	}
	g.follow(ctx, out, first, news)
}

// afterOf is where the client wants to go on. The header is what a browser sends when it comes back by itself.
func afterOf(r *http.Request) (*int32, *rpc.Error) {
	field, value := "after", r.URL.Query().Get("after")
	switch sent := r.Header.Values(lastEventID); {
	case len(sent) > 1:
		return nil, rpc.Invalid(rpc.Violation{Field: lastEventID, Rule: "once", Value: strings.Join(sent, ",")})
	case len(sent) == 1:
		field, value = lastEventID, sent[0]
	case value == "":
		return nil, nil
	}
	n, ok := integer(value)
	if !ok || n < 0 {
		return nil, rpc.Invalid(rpc.Violation{Field: field, Rule: "integer", Value: value})
	}
	return new(int32(n)), nil //nolint:gosec // integer reads 32 bits
}

// received is what a stream brought: an event, or how it ended; neither = its headers.
type received struct {
	event happening
	err   error
}

// pump reads the stream until it ends or ctx does.
func pump(ctx context.Context, s *stream) <-chan received {
	news := make(chan received)
	pass := func(r received) bool {
		select {
		case news <- r:
			return true
		case <-ctx.Done():
			return false
		}
	}
	go func() {
		if header, _ := s.header(); len(header) > 0 && !pass(received{}) { // its error comes again with the first event
			return
		}
		for {
			event, err := s.next()
			if !pass(received{event, err}) || err != nil {
				return
			}
		}
	}()
	return news
}

// first is what the stream brings first, which decides the answer's status; nothing where it only waits for events.
func (g *gateway) first(ctx context.Context, news <-chan received) received {
	late := time.NewTimer(watchOpenTimeout)
	defer late.Stop()
	for {
		select {
		case r := <-news:
			if r.err != nil || r.event.data != nil {
				return r
			}
			late.Reset(watchSettleTime)
		case <-late.C:
			return received{}
		case <-g.stopping:
			return received{err: rpc.Fail(rpc.ReasonUnavailable, "The gateway is about to stop.").After(time.Second)}
		case <-ctx.Done():
			return received{err: ctx.Err()}
		}
	}
}

// follow writes what comes until there is a reason to end.
func (g *gateway) follow(ctx context.Context, out *eventStream, r received, news <-chan received) {
	heartbeat := time.NewTicker(heartbeatInterval)
	defer heartbeat.Stop()
	for {
		if r.err != nil {
			return
		}
		if r.event.data != nil && out.event(r.event) != nil {
			return
		}
		select {
		case r = <-news:
		case <-heartbeat.C:
			if out.comment("still here") != nil {
				return
			}
			r = received{}
		case <-g.stopping:
			return
		case <-ctx.Done():
			return
		}
	}
}

// eventStream writes server-sent events, each at once.
type eventStream struct {
	w         http.ResponseWriter
	control   *http.ResponseController
	marshaler *marshaler
}

func newEventStream(w http.ResponseWriter, m *marshaler) *eventStream {
	return &eventStream{w: w, control: http.NewResponseController(w), marshaler: m}
}

// begin sends the headers, and how soon to come back after a cut.
func (s *eventStream) begin() error {
	h := s.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Accel-Buffering", "no") // nginx would hold the events back
	return s.write("retry: 1000\n\n")
}

func (s *eventStream) event(e happening) error {
	data, err := s.marshaler.Marshal(e.data)
	if err != nil {
		return err
	}
	return s.write(fmt.Sprintf("id: %d\nevent: %s\ndata: %s\n\n", e.id, e.kind, data))
}

func (s *eventStream) comment(text string) error { return s.write(": " + text + "\n\n") }

func (s *eventStream) write(text string) error {
	_ = s.control.SetWriteDeadline(time.Now().Add(watchWriteTimeout)) // where it cannot be set, the client's end is noticed later
	if _, err := io.WriteString(s.w, text); err != nil {
		return err
	}
	return s.control.Flush()
}

// end takes the deadline off the connection, which may serve other requests.
func (s *eventStream) end() { _ = s.control.SetWriteDeadline(time.Time{}) }
