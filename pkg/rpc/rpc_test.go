package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"example.com/billing/pkg/rpc"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

type refusal struct{}

func (refusal) Error() string                     { return "refused" }
func (refusal) Refused() (reason, message string) { return "SEAT_TAKEN", "Seat 4 is taken." }

func TestErrors(t *testing.T) {
	foreign, err := status.New(codes.NotFound, "no such thing").WithDetails(
		&errdetails.ErrorInfo{Reason: "SEAT_TAKEN", Domain: "test", Metadata: map[string]string{"correlationId": "c-0"}})
	if err != nil {
		t.Fatal(err)
	}
	broken, err := status.New(codes.Internal, rpc.BrokenMessage("c-0")).WithDetails(
		&errdetails.ErrorInfo{Reason: "INTERNAL", Domain: "test", Metadata: map[string]string{"correlationId": "c-0"}})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		err     error
		code    codes.Code
		reason  string
		message string // "" = not compared
		retry   time.Duration
	}{
		{"reason", rpc.Fail("SEAT_TAKEN", "Seat %d is taken.", 4), codes.FailedPrecondition, "SEAT_TAKEN", "Seat 4 is taken.", 0},
		{"wrapped", fmt.Errorf("book: %w", rpc.Fail("SEAT_TAKEN", "Taken.")), codes.FailedPrecondition, "SEAT_TAKEN", "Taken.", 0},
		{"cause stays", rpc.Fail("SEAT_TAKEN", "Taken.").Because(errors.New("secret")), codes.FailedPrecondition, "SEAT_TAKEN", "Taken.", 0},
		{"not utf-8", rpc.Fail("SEAT_TAKEN", "a\xffb"), codes.FailedPrecondition, "SEAT_TAKEN", "a\uFFFDb", 0},
		{"retry", rpc.Fail("OVERLOADED", "Later.").After(3 * time.Second), codes.ResourceExhausted, "OVERLOADED", "Later.", 3 * time.Second},
		{"refusal", fmt.Errorf("decide: %w", refusal{}), codes.FailedPrecondition, "SEAT_TAKEN", "Seat 4 is taken.", 0},
		{"deadline", fmt.Errorf("load: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "DEADLINE_EXCEEDED", "", 0},
		{"cancelled", context.Canceled, codes.Canceled, "CANCELLED", "", 0},
		{"ours from downstream", fmt.Errorf("ask: %w", foreign.Err()), codes.NotFound, "SEAT_TAKEN", "no such thing", 0},
		{"ours broken downstream", fmt.Errorf("ask: %w", broken.Err()), codes.Internal, "INTERNAL", rpc.BrokenMessage("c-1"), 0},
		{"downstream gone", status.Error(codes.Unavailable, "dial 10.0.0.1: secret"), codes.Unavailable, "UNAVAILABLE", "", time.Second},
		{"connection closed", status.Error(codes.Canceled, "the client connection is closing"), codes.Unavailable, "UNAVAILABLE", "", time.Second},
		{"downstream late", status.Error(codes.DeadlineExceeded, "secret"), codes.DeadlineExceeded, "DEADLINE_EXCEEDED", "", 0},
		{"downstream other", status.Error(codes.NotFound, "secret"), codes.Internal, "INTERNAL", "", 0},
		{"unknown reason", rpc.Fail("NO_SUCH", "secret"), codes.Internal, "INTERNAL", "", 0},
		{"anything", errors.New("secret"), codes.Internal, "INTERNAL", "", 0},
	}
	for _, tt := range tests {
		for kind, do := range map[string]func(context.Context, *grpc.ClientConn) error{
			"unary":  func(ctx context.Context, conn *grpc.ClientConn) error { return call(ctx, conn) },
			"stream": watch,
		} {
			t.Run(tt.name+"/"+kind, func(t *testing.T) {
				conn, log := serve(t, func(context.Context) error { return tt.err }, nil)
				ctx := rpc.WithCaller(t.Context(), rpc.Caller{CorrelationID: "c-1", Actor: "ann"})
				got := do(ctx, conn)
				back := rpc.ErrorOf(got)
				if status.Code(got) != tt.code || back.Reason != tt.reason || back.RetryAfter != tt.retry {
					t.Errorf("got %v %q after %v, want %v %q after %v", status.Code(got), back.Reason, back.RetryAfter, tt.code, tt.reason, tt.retry)
				}
				if tt.message != "" && back.Message != tt.message {
					t.Errorf("message %q, want %q", back.Message, tt.message)
				}
				if strings.Contains(got.Error(), "secret") {
					t.Errorf("leaked: %v", got)
				}
				if !errors.Is(back, got) {
					t.Error("ErrorOf lost the cause")
				}
				if want := `"level":"ERROR"`; (tt.code == codes.Internal) != strings.Contains(log.String(), want) {
					t.Errorf("log: %s", log)
				}
				assertCorrelation(t, got, "c-1") // also where a service behind this one answered under another id
				if strings.Contains(got.Error(), "c-0") || tt.name == "ours broken downstream" && !strings.Contains(log.String(), "c-0") {
					t.Errorf("the other call's id belongs into the log, not into the answer: %v", got)
				}
			})
		}
	}
}

func assertCorrelation(t *testing.T, err error, want string) {
	t.Helper()
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			if info.GetMetadata()["correlationId"] != want || info.GetDomain() != "test" {
				t.Errorf("info %v, want correlation id %s", info, want)
			}
			return
		}
	}
	t.Error("no ErrorInfo")
}

func TestPanic(t *testing.T) {
	conn, log := serve(t, func(context.Context) error { panic("secret seat") }, nil)
	for _, err := range []error{call(t.Context(), conn), watch(t.Context(), conn)} {
		if rpc.ErrorOf(err).Reason != rpc.ReasonInternal || strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v", err)
		}
	}
	if !strings.Contains(log.String(), "secret seat") || !strings.Contains(log.String(), "rpc_test.go") {
		t.Errorf("the log has neither panic nor stack: %s", log)
	}
}

func TestViolationsAreLossless(t *testing.T) {
	want := []rpc.Violation{
		{Field: "a", Rule: "required"},
		{Field: "b", Rule: "max_length:3", Value: "four"},
		{Field: "c", Rule: "one_of:x: y,z", Value: ": odd: value"},
		{Field: "d", Rule: "uuid", Value: strings.Repeat("é", 128)},
		{Field: "e", Rule: "text", Value: "a\uFFFDb\x00"},
	}
	conn, _ := serve(t, func(context.Context) error {
		return rpc.Invalid(want[0], want[1], want[2],
			rpc.Violation{Field: "d", Rule: "uuid", Value: strings.Repeat("é", 500)},
			rpc.Violation{Field: "e", Rule: "text", Value: "a\xffb\x00"})
	}, nil)
	got := rpc.ErrorOf(call(t.Context(), conn))
	if got.Reason != rpc.ReasonInvalidArgument || !reflect.DeepEqual(got.Violations, want) {
		t.Errorf("got %+v", got)
	}
}

func TestCaller(t *testing.T) {
	var seen rpc.Caller
	conn, _ := serve(t, func(ctx context.Context) error {
		seen = rpc.CallerFrom(ctx)
		return nil
	}, nil)
	tests := []struct {
		name string
		md   []string
		want rpc.Caller
	}{
		{"defaults", nil, rpc.Caller{Actor: "anonymous", TenantID: "default"}},
		{"given", []string{"x-correlation-id", "c-1", "x-actor", "Ann B", "idempotency-key", "k", "x-wait", "5s", "x-tenant-id", "other"},
			rpc.Caller{CorrelationID: "c-1", Actor: "Ann B", TenantID: "default", IdempotencyKey: "k", Wait: "5s"}},
		{"spaces", []string{"x-correlation-id", "c 1"}, rpc.Caller{Actor: "anonymous", TenantID: "default"}},
		{"long", []string{"x-correlation-id", strings.Repeat("c", 129), "x-actor", strings.Repeat("a", 129)}, rpc.Caller{Actor: "anonymous", TenantID: "default"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var header metadata.MD
			if err := call(metadata.AppendToOutgoingContext(t.Context(), tt.md...), conn, grpc.Header(&header)); err != nil {
				t.Fatal(err)
			}
			if got := header.Get("x-correlation-id"); len(got) != 1 || got[0] != seen.CorrelationID {
				t.Errorf("came back as %v, was %q", got, seen.CorrelationID)
			}
			got := seen
			if tt.want.CorrelationID == "" {
				if _, ok := rpc.CanonicalUUID(got.CorrelationID); !ok {
					t.Errorf("correlation id %q", got.CorrelationID)
				}
				got.CorrelationID = ""
			}
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestCallerTravelsOn(t *testing.T) {
	var seen rpc.Caller
	back, _ := serve(t, func(ctx context.Context) error {
		seen = rpc.CallerFrom(ctx)
		return nil
	}, nil)
	front, _ := serve(t, func(ctx context.Context) error { return call(ctx, back) }, nil)
	caller := rpc.Caller{CorrelationID: "c-1", Actor: "ann", IdempotencyKey: "k", Wait: "1s"}
	if err := call(metadata.NewOutgoingContext(t.Context(), caller.Metadata()), front); err != nil {
		t.Fatal(err)
	}
	if want := (rpc.Caller{CorrelationID: "c-1", Actor: "ann", TenantID: "default"}); seen != want {
		t.Errorf("got %+v, want %+v", seen, want)
	}
}

func TestWaitFor(t *testing.T) {
	for in, want := range map[string]time.Duration{"": 0, "0s": 0, "1.5s": 1500 * time.Millisecond, "30s": 30 * time.Second} {
		if got, err := (rpc.Caller{Wait: in}).WaitFor(30 * time.Second); err != nil || got != want {
			t.Errorf("%q: got %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"5", "-1s", "31s", "soon"} {
		_, err := rpc.Caller{Wait: in}.WaitFor(30 * time.Second)
		if e := rpc.ErrorOf(err); e == nil || e.Violations[0].Field != "wait" {
			t.Errorf("%q: got %v", in, err)
		}
	}
}

func TestMetricsAndGRPCsOwnServices(t *testing.T) {
	metrics := prometheus.NewRegistry()
	conn, _ := serve(t, func(context.Context) error { return refusal{} }, metrics)
	second, _ := serve(t, func(context.Context) error { return nil }, metrics) // shares the registry
	_, _ = call(t.Context(), conn), call(t.Context(), second)
	health := healthv1.NewHealthClient(conn)
	if got, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil || got.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", got, err)
	}
	if _, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "x"}); status.Code(err) != codes.NotFound {
		t.Errorf("unknown service: %v", err)
	}
	if n, err := testutil.GatherAndCount(metrics, "rpc_server_duration_seconds"); err != nil || n != 2 {
		t.Errorf("%d series, %v; want one for FAILED_PRECONDITION and one for OK", n, err)
	}
}

func TestDialRepeatsOnlyWithoutConnection(t *testing.T) {
	conn, _ := serve(t, func(context.Context) error { return nil }, nil)
	if err := call(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	var asked, dialled atomic.Int32
	gone, _ := serve(t, func(context.Context) error {
		asked.Add(1)
		return rpc.Fail(rpc.ReasonUnavailable, "Not now.")
	}, nil)
	if err := call(t.Context(), gone); status.Code(err) != codes.Unavailable || asked.Load() != 1 {
		t.Errorf("asked %d times: %v", asked.Load(), err)
	}
	listener := bufconn.Listen(1 << 20)
	server, err := rpc.NewServer(rpc.ServerConfig{Log: discard(), Catalog: testCatalog(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	go func() { _ = server.Serve(listener) }()
	late, err := rpc.Dial("passthrough:///late", grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		if dialled.Add(1) == 1 {
			return nil, errors.New("not yet")
		}
		return listener.DialContext(ctx)
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = late.Close() }()
	if _, err := healthv1.NewHealthClient(late).Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil {
		t.Errorf("a server that comes a moment later: %v", err)
	}
}
