package inprocess

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/rpc"
	"example.com/billing/test/drive"
)

// conn calls the servers registered on it, without a network.
type conn map[string]func(ctx context.Context, decode func(any) error) (any, error)

// RegisterService is grpc.ServiceRegistrar's.
func (c conn) RegisterService(d *grpc.ServiceDesc, server any) {
	for _, m := range d.Methods {
		c["/"+d.ServiceName+"/"+m.MethodName] = func(ctx context.Context, decode func(any) error) (any, error) {
			return m.Handler(server, ctx, decode, nil)
		}
	}
}

// Invoke is grpc.ClientConnInterface's. Refusals come out as they do over gRPC: as a status with their reason.
func (c conn) Invoke(ctx context.Context, method string, req, res any, opts ...grpc.CallOption) error {
	h := &header{}
	ctx = grpc.NewContextWithServerTransportStream(rpc.WithCaller(ctx, rpc.CallerFrom(context.Background())), h)
	got, err := c[method](ctx, func(into any) error {
		proto.Merge(into.(proto.Message), req.(proto.Message))
		return nil
	})
	for _, o := range opts {
		if o, ok := o.(grpc.HeaderCallOption); ok {
			*o.HeaderAddr = h.MD
		}
	}
	if err != nil {
		return withReason(err)
	}
	proto.Merge(res.(proto.Message), got.(proto.Message))
	return nil
}

func withReason(err error) error {
	var own *rpc.Error
	if errors.As(err, &own) {
		return drive.Refusal(own.Reason, err.Error())
	}
	if r := es.RefusalOf(err); r != nil {
		return drive.Refusal(r.Reason, err.Error())
	}
	return drive.Refusal("", err.Error())
}

// NewStream is grpc.ClientConnInterface's; nothing here streams.
func (c conn) NewStream(_ context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, fmt.Errorf("%s: no streams here", method)
}

// header takes an answer's headers.
type header struct{ metadata.MD }

func (*header) Method() string { return "" }

func (h *header) SetHeader(md metadata.MD) error {
	h.MD = metadata.Join(h.MD, md)
	return nil
}

func (h *header) SendHeader(md metadata.MD) error { return h.SetHeader(md) }

func (*header) SetTrailer(metadata.MD) error { return nil }
