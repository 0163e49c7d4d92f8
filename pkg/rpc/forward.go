package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // for what is not forwarded
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// NewForwarder makes a server that sends every call on to another one, bytes, metadata, deadline and answer as they are, but for those of
// services registered on it. to returns the connection for a call, or an error with its status.
func NewForwarder(to func(ctx context.Context) (*grpc.ClientConn, error)) *grpc.Server {
	return grpc.NewServer(
		grpc.ForceServerCodecV2(frames{encoding.GetCodecV2("proto")}),
		grpc.MaxRecvMsgSize(DefaultMessageBytesMax),
		grpc.UnknownServiceHandler(func(_ any, from grpc.ServerStream) error { return forward(from, to) }),
	)
}

func forward(from grpc.ServerStream, to func(ctx context.Context) (*grpc.ClientConn, error)) error {
	method, ok := grpc.MethodFromServerStream(from)
	if !ok {
		return status.Error(codes.Internal, "a call without a method")
	}
	conn, err := to(from.Context())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(from.Context())
	defer cancel() // ends the call where this side gives up
	sent, _ := metadata.FromIncomingContext(ctx)
	stream, err := conn.NewStream(metadata.NewOutgoingContext(ctx, sent.Copy()), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method,
		grpc.ForceCodecV2(frames{}), grpc.MaxCallRecvMsgSize(DefaultMessageBytesMax))
	if err != nil {
		return err
	}
	asked := make(chan error, 1)
	go func() { asked <- forwardRequests(from, stream) }()
	if err := forwardAnswers(stream, from); err != nil {
		if status.Code(err) == codes.Canceled && from.Context().Err() == nil { // the connection was given up, and nobody else
			return status.Error(codes.Unavailable, "the connection to the server that calls are sent on to was given up")
		}
		return err
	}
	cancel()
	select {
	case err := <-asked:
		if err != nil && status.Code(err) != codes.Canceled {
			return err
		}
	default: // the caller has not ended its side, and need not
	}
	return nil
}

func forwardRequests(from grpc.ServerStream, to grpc.ClientStream) error {
	for {
		var f frame
		err := from.RecvMsg(&f)
		if errors.Is(err, io.EOF) {
			return to.CloseSend()
		}
		if err == nil {
			err = to.SendMsg(&f)
		}
		f.free()
		if errors.Is(err, io.EOF) {
			return nil // the answer says why
		}
		if err != nil {
			return err
		}
	}
}

func forwardAnswers(from grpc.ClientStream, to grpc.ServerStream) error {
	defer func() { to.SetTrailer(from.Trailer()) }()
	for first := true; ; first = false {
		var f frame
		err := from.RecvMsg(&f)
		if first {
			if header, headerErr := from.Header(); headerErr == nil && len(header) > 0 {
				if sendErr := to.SendHeader(header); sendErr != nil {
					return sendErr
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = to.SendMsg(&f)
		}
		f.free()
		if err != nil {
			return err
		}
	}
}

// frame is a message as bytes.
type frame struct{ data mem.BufferSlice }

func (f *frame) free() { f.data.Free() }

// frames leaves messages that are only forwarded as they are.
type frames struct{ encoding.CodecV2 }

func (c frames) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*frame); ok {
		f.data.Ref()
		return f.data, nil
	}
	if c.CodecV2 == nil {
		return nil, fmt.Errorf("forward: %T", v)
	}
	return c.CodecV2.Marshal(v)
}

func (c frames) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*frame); ok {
		data.Ref()
		f.data = data
		return nil
	}
	if c.CodecV2 == nil {
		return fmt.Errorf("forward: %T", v)
	}
	return c.CodecV2.Unmarshal(data, v)
}

func (frames) Name() string { return "proto" }
