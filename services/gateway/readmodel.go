package gateway

import (
	"context"

	"example.com/billing/pkg/rpc"
	readmodelv1 "example.com/billing/proto/gen/go/billing/readmodel/v1"
)

// readModels asks the service that has the read model which the path names.
type readModels struct {
	// Unsafe, as grpc-go calls it, has no stand-ins: a method of the contract that nobody wrote does not compile.
	readmodelv1.UnsafeReadModelServiceServer
	named[readmodelv1.ReadModelServiceClient]
}

func newReadModels(cfg Config) *readModels {
	return &readModels{named: named[readmodelv1.ReadModelServiceClient]{
		clients: map[string]readmodelv1.ReadModelServiceClient{
			"accounts":     readmodelv1.NewReadModelServiceClient(cfg.Account),
			"transactions": readmodelv1.NewReadModelServiceClient(cfg.Transaction),
		},
		unknown: func(name string) error {
			return rpc.Fail(reasonReadModel, "There is no read model %s; there are accounts and transactions.", name)
		},
	}}
}

// RebuildReadModel passes the order on, and the answer or error back.
func (r *readModels) RebuildReadModel(ctx context.Context, req *readmodelv1.RebuildReadModelRequest) (*readmodelv1.RebuildReadModelResponse, error) {
	return pass(ctx, r.named, req.GetName(), readmodelv1.ReadModelServiceClient.RebuildReadModel, req)
}

// GetRebuild passes the question on, and the answer or error back.
func (r *readModels) GetRebuild(ctx context.Context, req *readmodelv1.GetRebuildRequest) (*readmodelv1.GetRebuildResponse, error) {
	return pass(ctx, r.named, req.GetName(), readmodelv1.ReadModelServiceClient.GetRebuild, req)
}
