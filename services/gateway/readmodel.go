package gateway

import (
	"context"

	"example.com/billing/pkg/rpc"
	readmodelv1 "example.com/billing/proto/gen/go/billing/readmodel/v1"

	"google.golang.org/grpc/metadata"
)

// readModels asks the service that has the read model which the path names.
type readModels struct {
	// Unsafe, as grpc-go calls it, has no stand-ins: a method of the contract that nobody wrote does not compile.
	readmodelv1.UnsafeReadModelServiceServer
	byName map[string]readmodelv1.ReadModelServiceClient
}

func newReadModels(cfg Config) *readModels {
	return &readModels{byName: map[string]readmodelv1.ReadModelServiceClient{
		"accounts":     readmodelv1.NewReadModelServiceClient(cfg.Account),
		"transactions": readmodelv1.NewReadModelServiceClient(cfg.Transaction),
	}}
}

func (r *readModels) find(ctx context.Context, name string) (context.Context, readmodelv1.ReadModelServiceClient, error) {
	client, ok := r.byName[name]
	if !ok {
		return nil, nil, rpc.Fail(reasonReadModel, "There is no read model %s; there are accounts and transactions.", shorten(name))
	}
	return metadata.NewOutgoingContext(ctx, rpc.CallerFrom(ctx).Metadata()), client, nil
}

// RebuildReadModel passes the order on, and the answer or error back.
func (r *readModels) RebuildReadModel(ctx context.Context, req *readmodelv1.RebuildReadModelRequest) (*readmodelv1.RebuildReadModelResponse, error) {
	ctx, client, err := r.find(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return client.RebuildReadModel(ctx, req)
}

// GetRebuild passes the question on, and the answer or error back.
func (r *readModels) GetRebuild(ctx context.Context, req *readmodelv1.GetRebuildRequest) (*readmodelv1.GetRebuildResponse, error) {
	ctx, client, err := r.find(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return client.GetRebuild(ctx, req)
}
