package rpc_test

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"example.com/billing/pkg/rpc"
)

// dialed serves a server in memory and returns a connection to it.
func dialed(t *testing.T, server *grpc.Server) *grpc.ClientConn {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:///test", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(rpc.DefaultMessageBytesMax)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// talker is a server with one stream, test.Talk/Say, that does what say says.
func talker(t *testing.T, say func(stream grpc.ServerStream) error) *grpc.ClientConn {
	t.Helper()
	server := grpc.NewServer(grpc.MaxRecvMsgSize(rpc.DefaultMessageBytesMax))
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Talk", HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{StreamName: "Say", ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error { return say(s) }}},
	}, struct{}{})
	return dialed(t, server)
}

func forwarderTo(t *testing.T, conn *grpc.ClientConn) *grpc.ClientConn {
	t.Helper()
	server := rpc.NewForwarder(func(context.Context) (*grpc.ClientConn, error) {
		if conn == nil {
			return nil, status.Error(codes.Unavailable, "nobody is there")
		}
		return conn, nil
	})
	healthv1.RegisterHealthServer(server, health.NewServer())
	return dialed(t, server)
}

func talk(t *testing.T, ctx context.Context, conn *grpc.ClientConn, words ...string) (grpc.ClientStream, error) {
	t.Helper()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Talk/Say")
	if err != nil {
		return nil, err
	}
	for _, w := range words {
		if err := stream.SendMsg(wrapperspb.String(w)); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
	}
	return stream, stream.CloseSend()
}

// What is sent on arrives as it was sent, in both directions.
func TestForward(t *testing.T) {
	big := strings.Repeat("x", 5<<20) // more than gRPC's own limit
	words := []string{"one", "", big, "zwölf"}
	conn := forwarderTo(t, talker(t, func(s grpc.ServerStream) error {
		sent, _ := metadata.FromIncomingContext(s.Context())
		deadline, ok := s.Context().Deadline()
		if !ok || time.Until(deadline) > time.Hour || !slices.Equal(sent.Get("key"), []string{"a", "b"}) || !slices.Equal(sent.Get("raw-bin"), []string{"\x00\xff"}) {
			return status.Errorf(codes.Internal, "sent %v until %v", sent, deadline)
		}
		if err := s.SendHeader(metadata.Pairs("head", "h1", "head", "h2")); err != nil {
			return err
		}
		s.SetTrailer(metadata.Pairs("tail", "t"))
		for {
			var m wrapperspb.StringValue
			err := s.RecvMsg(&m)
			if errors.Is(err, io.EOF) {
				st, err := status.New(codes.FailedPrecondition, "that is all").WithDetails(&errdetails.ErrorInfo{Reason: "ALL", Domain: "test"})
				if err != nil {
					return err
				}
				return st.Err()
			}
			if err == nil {
				err = s.SendMsg(&m)
			}
			if err != nil {
				return err
			}
		}
	}))
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "key", "a", "key", "b", "raw-bin", "\x00\xff"), 50*time.Minute)
	defer cancel()
	stream, err := talk(t, ctx, conn, words...)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range words {
		m := new(wrapperspb.StringValue)
		if err := stream.RecvMsg(m); err != nil || m.GetValue() != w {
			t.Fatalf("heard %.20q (%v), said %.20q", m.GetValue(), err, w)
		}
	}
	err = stream.RecvMsg(new(wrapperspb.StringValue))
	st, _ := status.FromError(err)
	if st.Code() != codes.FailedPrecondition || st.Message() != "that is all" || len(st.Details()) != 1 {
		t.Errorf("it ended with %v %v", err, st.Details())
	}
	header, err := stream.Header()
	if err != nil || !slices.Equal(header.Get("head"), []string{"h1", "h2"}) || !slices.Equal(stream.Trailer().Get("tail"), []string{"t"}) {
		t.Errorf("header %v (%v), trailer %v", header, err, stream.Trailer())
	}
	if res, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil || res.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("its own health: %v %v", res, err)
	}
}

// A caller that gives up ends the call at the other end; one that cannot be sent on is told so.
func TestForwardThatEnds(t *testing.T) {
	began, ended := make(chan struct{}), make(chan error, 1)
	to := talker(t, func(s grpc.ServerStream) error {
		close(began)
		<-s.Context().Done()
		ended <- s.Context().Err()
		return s.Context().Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := talk(t, ctx, forwarderTo(t, to), "x")
	if err != nil {
		t.Fatal(err)
	}
	<-began
	cancel()
	if err := stream.RecvMsg(new(wrapperspb.StringValue)); status.Code(err) != codes.Canceled {
		t.Errorf("the caller has given up: %v", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the other end has %v", err)
	}

	stream, err = talk(t, t.Context(), forwarderTo(t, nil), "x")
	if err == nil {
		err = stream.RecvMsg(new(wrapperspb.StringValue))
	}
	if status.Code(err) != codes.Unavailable || status.Convert(err).Message() != "nobody is there" {
		t.Errorf("nobody to send it on to: %v", err)
	}

	began = make(chan struct{})
	stream, err = talk(t, t.Context(), forwarderTo(t, to), "x")
	if err != nil {
		t.Fatal(err)
	}
	<-began
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(new(wrapperspb.StringValue)); status.Code(err) != codes.Unavailable {
		t.Errorf("the connection was given up: %v", err)
	}
}
