package edge

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/job"
	"example.com/billing/pkg/projection"
	"example.com/billing/pkg/rpc"
	"example.com/billing/pkg/run"
	readmodelv1 "example.com/billing/proto/gen/go/billing/readmodel/v1"
)

// ReadModels is a service's billing.readmodel.v1.ReadModelService. Safe for concurrent use.
type ReadModels struct {
	// Unsafe, as grpc-go calls it, has no stand-ins: a method of the contract that nobody wrote does not compile.
	readmodelv1.UnsafeReadModelServiceServer
	Jobs   *job.Jobs
	Models map[string]job.Work // how each is rebuilt, by name
}

// Register puts the service on a gRPC server.
func (s *ReadModels) Register(r grpc.ServiceRegistrar) {
	readmodelv1.RegisterReadModelServiceServer(r, s)
}

// RebuildReadModel begins a rebuild, unless one is under way, and waits for its end if the caller wants.
func (s *ReadModels) RebuildReadModel(ctx context.Context, req *readmodelv1.RebuildReadModelRequest) (*readmodelv1.RebuildReadModelResponse, error) {
	var v rpc.Fields
	wait := Wait(ctx, &v, req.GetWait(), JobWait)
	if err := v.Err(); err != nil {
		return nil, err
	}
	work, err := s.find(req.GetName())
	if err != nil {
		return nil, err
	}
	if _, err := s.Jobs.Start(ctx, rebuildJob(req.GetName()), work); err != nil {
		return nil, err
	}
	state, err := s.Jobs.Wait(ctx, rebuildJob(req.GetName()), wait)
	if err != nil {
		return nil, err
	}
	rebuild, err := rebuildToProto(req.GetName(), state)
	return &readmodelv1.RebuildReadModelResponse{Rebuild: rebuild}, err
}

// GetRebuild reads the latest rebuild.
func (s *ReadModels) GetRebuild(ctx context.Context, req *readmodelv1.GetRebuildRequest) (*readmodelv1.GetRebuildResponse, error) {
	if _, err := s.find(req.GetName()); err != nil {
		return nil, err
	}
	state, err := s.Jobs.Latest(ctx, rebuildJob(req.GetName()))
	if err != nil {
		return nil, err
	}
	rebuild, err := rebuildToProto(req.GetName(), state)
	return &readmodelv1.GetRebuildResponse{Rebuild: rebuild}, err
}

func (s *ReadModels) find(name string) (job.Work, error) {
	work, ok := s.Models[name]
	if !ok {
		return nil, rpc.Fail("READ_MODEL_NOT_FOUND", "This service has no read model %q; it has %s.", name, strings.Join(slices.Sorted(maps.Keys(s.Models)), ", "))
	}
	return work, nil
}

// Healer makes rows of a read model right that no message will repair: a *projection.Healer.
type Healer interface {
	Run(ctx context.Context) error
	Healed() int64
	Hurry()
}

// Heal runs a read model's healer until the app stops, and publishes how many rows it has made anew. It hurries once the database
// that has the events turns out to have another history.
func Heal(app *run.App, model string, store *espg.Store, h Healer) error {
	store.WatchIncarnations(func(espg.Incarnation) { h.Hurry() })
	err := app.Metrics.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "read_model_healed_total", Help: "Rows of a read model that were wrong and were made anew from the store.",
		ConstLabels: prometheus.Labels{"model": model},
	}, func() float64 { return float64(h.Healed()) }))
	if err != nil {
		return fmt.Errorf("register read_model_healed_total: %w", err)
	}
	app.Go("healing of "+model, h.Run)
	return nil
}

func rebuildJob(name string) string { return "rebuild " + name }

// rebuildStatus is what a rebuild calls the statuses of a job.
var rebuildStatus = map[string]string{job.Never: "never", job.Running: "running", job.Done: "switched", job.Failed: "failed"}

func rebuildToProto(name string, s job.State) (*readmodelv1.Rebuild, error) {
	var d projection.Rebuilt
	if s.Detail != nil {
		if err := json.Unmarshal(s.Detail, &d); err != nil {
			return nil, fmt.Errorf("read rebuild of %s: %w", name, err)
		}
	}
	p := &readmodelv1.Rebuild{
		Name: name, Status: rebuildStatus[s.Status], Events: Count(d.Events), EventsTotal: Count(d.EventsTotal), Rows: Count(d.Rows),
		RepairedRows: Count(d.Repaired), BehindRows: Count(d.Behind), Checksum: d.Checksum,
		StartedAt: Timestamp(s.StartedAt), EndedAt: Timestamp(s.EndedAt),
	}
	if took := s.SeenAt.Sub(s.StartedAt); took > 0 {
		p.EventsPerSecond = Count(int64(float64(d.Events) / took.Seconds()))
	}
	if s.Status == job.Failed {
		p.Error = &s.Error
	}
	return p, nil
}
