package edge_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/durationpb"

	"example.com/billing/pkg/job"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/projection"
	"example.com/billing/pkg/rpc"
	readmodelv1 "example.com/billing/proto/gen/go/billing/readmodel/v1"
	"example.com/billing/services/edge"
)

// readModels serves one model, that work rebuilds.
func readModels(t *testing.T, work job.Work) *edge.ReadModels {
	t.Helper()
	pool := pgtest.Pool(t)
	if err := migrate.Up(t.Context(), pool, job.Migrations, job.MigrationsTable); err != nil {
		t.Fatal(err)
	}
	jobs := job.New(pool, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = jobs.Close(context.Background()) })
	return &edge.ReadModels{Jobs: jobs, Models: map[string]job.Work{"accounts": work}}
}

func TestRebuildOverTheAPI(t *testing.T) {
	goOn := make(chan error)
	s := readModels(t, func(ctx context.Context, run *job.Run) error {
		if err := <-goOn; err != nil {
			return err
		}
		done := projection.Rebuilt{Events: 10, EventsTotal: 10, Rows: 4, Repaired: 3, Behind: 1, Checksum: "abc"}
		return pgx.BeginFunc(ctx, run.Conn, func(tx pgx.Tx) error { return run.Finish(ctx, tx, done) })
	})
	get := func() *readmodelv1.Rebuild {
		res, err := s.GetRebuild(t.Context(), &readmodelv1.GetRebuildRequest{Name: "accounts"})
		if err != nil {
			t.Fatal(err)
		}
		return res.GetRebuild()
	}
	rebuild := func(wait time.Duration) *readmodelv1.Rebuild {
		res, err := s.RebuildReadModel(t.Context(), &readmodelv1.RebuildReadModelRequest{Name: "accounts", Wait: durationpb.New(wait)})
		if err != nil {
			t.Fatal(err)
		}
		return res.GetRebuild()
	}
	if r := get(); r.GetStatus() != "never" || r.GetName() != "accounts" || r.GetStartedAt() != nil {
		t.Errorf("%v", r)
	}
	for range 2 { // the second finds the first
		if r := rebuild(0); r.GetStatus() != "running" || r.GetStartedAt() == nil || r.GetEndedAt() != nil {
			t.Errorf("%v", r)
		}
	}
	goOn <- nil
	if _, err := s.Jobs.Wait(t.Context(), "rebuild accounts", time.Minute); err != nil {
		t.Fatal(err)
	}
	if r := get(); r.GetStatus() != "switched" || r.GetEvents() != 10 || r.GetEventsTotal() != 10 || r.GetRows() != 4 || r.GetRepairedRows() != 3 ||
		r.GetBehindRows() != 1 || r.GetChecksum() != "abc" || r.GetEventsPerSecond() == 0 || r.GetEndedAt() == nil || r.Error != nil {
		t.Errorf("%v", r)
	}
	go func() { goOn <- errors.New("the disk is full") }()
	if r := rebuild(edge.WaitMax); r.GetStatus() != "failed" || r.GetError() != "the disk is full" {
		t.Errorf("%v", r)
	}
}

func TestAnUnknownReadModel(t *testing.T) {
	s := readModels(t, nil)
	_, rebuild := s.RebuildReadModel(t.Context(), &readmodelv1.RebuildReadModelRequest{Name: "sagas"})
	_, get := s.GetRebuild(t.Context(), &readmodelv1.GetRebuildRequest{})
	for _, err := range []error{rebuild, get} {
		if e := rpc.ErrorOf(err); e == nil || e.Reason != "READ_MODEL_NOT_FOUND" {
			t.Errorf("got %v", err)
		}
	}
}

func TestWait(t *testing.T) {
	for name, tc := range map[string]struct {
		given    *durationpb.Duration
		metadata string
		want     time.Duration
		bad      bool
	}{
		"neither":               {nil, "", edge.JobWait, false},
		"in the request":        {durationpb.New(0), "7s", 0, false},
		"in the metadata":       {nil, "7s", 7 * time.Second, false},
		"too long":              {durationpb.New(31 * time.Second), "", 0, true},
		"negative":              {durationpb.New(-1), "", 0, true},
		"no duration":           {nil, "soon", 0, true},
		"too long, in metadata": {nil, "31s", 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			var v rpc.Fields
			got := edge.Wait(rpc.WithCaller(t.Context(), rpc.Caller{Wait: tc.metadata}), &v, tc.given, edge.JobWait)
			if (v.Err() != nil) != tc.bad || !tc.bad && got != tc.want {
				t.Errorf("got %v, %v", got, v.Err())
			}
		})
	}
}
