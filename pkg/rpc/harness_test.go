package rpc_test

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	"example.com/billing/pkg/rpc"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/emptypb"
)

type mapped struct {
	name, code, title string
	http              int32
}

var testReasons = []mapped{
	{"INVALID_ARGUMENT", "INVALID_ARGUMENT", "The request is malformed.", 400},
	{"SEAT_TAKEN", "FAILED_PRECONDITION", "The seat is taken.", 422},
	{"OVERLOADED", "RESOURCE_EXHAUSTED", "Too many requests.", 429},
	{"UNAVAILABLE", "UNAVAILABLE", "Not available.", 503},
	{"DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", "Too late.", 504},
	{"CANCELLED", "CANCELLED", "Cancelled.", 499},
	{"INTERNAL", "INTERNAL", "Broken.", 500},
}

// describe builds an enum Reason with a mapping option on each value, as protoc would.
func describe(t *testing.T, reasons []mapped) (protoreflect.EnumDescriptor, protoreflect.ExtensionType) {
	t.Helper()
	options := &descriptorpb.FileDescriptorProto{
		Name: proto.String("test/mapping.proto"), Package: proto.String("test"), Syntax: proto.String("proto3"),
		Dependency: []string{"google/protobuf/descriptor.proto"},
		MessageType: []*descriptorpb.DescriptorProto{{Name: proto.String("Mapping"), Field: []*descriptorpb.FieldDescriptorProto{
			field("code", 1, descriptorpb.FieldDescriptorProto_TYPE_STRING, ""),
			field("http", 2, descriptorpb.FieldDescriptorProto_TYPE_INT32, ""),
			field("title", 3, descriptorpb.FieldDescriptorProto_TYPE_STRING, ""),
		}}},
		Extension: []*descriptorpb.FieldDescriptorProto{
			field("mapping", 50001, descriptorpb.FieldDescriptorProto_TYPE_MESSAGE, ".google.protobuf.EnumValueOptions"),
		},
	}
	options.Extension[0].TypeName = proto.String(".test.Mapping")
	file, err := protodesc.NewFile(options, protoregistry.GlobalFiles)
	if err != nil {
		t.Fatal(err)
	}
	mapping := dynamicpb.NewExtensionType(file.Extensions().ByName("mapping"))
	enum := &descriptorpb.EnumDescriptorProto{
		Name:  proto.String("Reason"),
		Value: []*descriptorpb.EnumValueDescriptorProto{{Name: proto.String("REASON_UNSPECIFIED"), Number: proto.Int32(0)}},
	}
	for i, r := range reasons {
		value := &descriptorpb.EnumValueDescriptorProto{Name: proto.String("REASON_" + r.name), Number: proto.Int32(int32(i + 1))}
		if r.code != "" {
			message := dynamicpb.NewMessage(file.Messages().ByName("Mapping"))
			fields := message.Descriptor().Fields()
			message.Set(fields.ByName("code"), protoreflect.ValueOfString(r.code))
			message.Set(fields.ByName("http"), protoreflect.ValueOfInt32(r.http))
			message.Set(fields.ByName("title"), protoreflect.ValueOfString(r.title))
			value.Options = &descriptorpb.EnumValueOptions{}
			proto.SetExtension(value.Options, mapping, message)
		}
		enum.Value = append(enum.Value, value)
	}
	described, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("test/reason.proto"), Package: proto.String("test"), Syntax: proto.String("proto3"),
		EnumType: []*descriptorpb.EnumDescriptorProto{enum},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return described.Enums().ByName("Reason"), mapping
}

func field(name string, number int32, kind descriptorpb.FieldDescriptorProto_Type, extendee string) *descriptorpb.FieldDescriptorProto {
	f := &descriptorpb.FieldDescriptorProto{
		Name: proto.String(name), Number: proto.Int32(number), Type: kind.Enum(),
		Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
	}
	if extendee != "" {
		f.Extendee = proto.String(extendee)
	}
	return f
}

func testCatalog(t *testing.T) *rpc.Catalog {
	t.Helper()
	enum, mapping := describe(t, testReasons)
	catalog, err := rpc.NewCatalog("test", enum, mapping)
	if err != nil {
		t.Fatal(err)
	}
	return catalog
}

// logged collects what a server writes to its log.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type handler func(context.Context) error

// serve runs a server whose method test.Echo/Call and stream test.Echo/Watch do what handle says.
func serve(t *testing.T, handle handler, metrics prometheus.Registerer) (*grpc.ClientConn, *logged) {
	t.Helper()
	out := &logged{}
	server, err := rpc.NewServer(rpc.ServerConfig{
		Log:     slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Catalog: testCatalog(t), Metrics: metrics,
	})
	if err != nil {
		t.Fatal(err)
	}
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Echo", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Call", Handler: func(_ any, ctx context.Context, dec func(any) error, around grpc.UnaryServerInterceptor) (any, error) {
			in := new(emptypb.Empty)
			if err := dec(in); err != nil {
				return nil, err
			}
			return around(ctx, in, &grpc.UnaryServerInfo{FullMethod: "/test.Echo/Call"}, func(ctx context.Context, _ any) (any, error) {
				if err := handle(ctx); err != nil {
					return nil, err
				}
				return new(emptypb.Empty), nil
			})
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "Watch", ServerStreams: true, Handler: func(_ any, ss grpc.ServerStream) error {
			if err := ss.RecvMsg(new(emptypb.Empty)); err != nil {
				return err
			}
			return handle(ss.Context())
		}}},
	}, struct{}{})
	listener := bufconn.Listen(1 << 20)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	conn, err := rpc.Dial("passthrough:///test", grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return listener.DialContext(ctx)
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn, out
}

func call(ctx context.Context, conn *grpc.ClientConn, opts ...grpc.CallOption) error {
	return conn.Invoke(ctx, "/test.Echo/Call", new(emptypb.Empty), new(emptypb.Empty), opts...)
}

func watch(ctx context.Context, conn *grpc.ClientConn) error {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{StreamName: "Watch", ServerStreams: true}, "/test.Echo/Watch")
	if err != nil {
		return err
	}
	if err := stream.SendMsg(new(emptypb.Empty)); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return stream.RecvMsg(new(emptypb.Empty))
}
