package sweep

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	"example.com/billing/pkg/batch"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	"example.com/billing/services/transaction"
)

// orchestrator starts a saga for each event it is sent.
type orchestrator struct{ got []string }

func (o *orchestrator) EnsureSaga(
	_ context.Context, in *sagav1.EnsureSagaRequest, _ ...grpc.CallOption,
) (*sagav1.EnsureSagaResponse, error) {
	for _, b := range in.GetEvents() {
		e, err := es.Decode(b)
		if err != nil {
			return nil, err
		}
		o.got = append(o.got, fmt.Sprint(e.Stream.ID, e.Version))
	}
	return &sagav1.EnsureSagaResponse{Started: int32(len(in.GetEvents()))}, nil
}

// A sweep loads the first events of many transactions in one call, and sends them in order.
func TestASweepLoadsItsTransactionsInOneCall(t *testing.T) {
	const pending = 300
	store := memory.New()
	var ids, want []string
	for range pending {
		st := es.Stream{Type: transaction.AggregateType, ID: uuid.NewString()}
		a := es.Append{Stream: st}
		for v := range int64(2) {
			a.Events = append(a.Events, es.Event{
				ID: uuid.NewString(), Type: "Happened", Stream: st, Version: v + 1, At: time.Now(), Data: []byte(`{}`),
			})
		}
		if err := store.Append(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		ids, want = append(ids, st.ID), append(want, fmt.Sprint(st.ID, 1))
	}
	calls, saga := 0, &orchestrator{}
	s := Sweep{
		Pending: func(_ context.Context, _ time.Duration, after string, limit int) ([]string, error) {
			if after != "" {
				return nil, nil
			}
			return ids[:min(limit, len(ids))], nil
		},
		LoadEach: func(ctx context.Context, spans []es.Span) ([]batch.Result[[]es.Event], error) {
			calls++
			return store.LoadEach(ctx, spans)
		},
		Saga: saga, Log: slog.New(slog.DiscardHandler),
	}
	started, err := s.once(t.Context())
	if err != nil || started != pending || calls != 1 {
		t.Errorf("%d sagas were started in %d calls (%v), want %d in 1", started, calls, err, pending)
	}
	if fmt.Sprint(saga.got) != fmt.Sprint(want) {
		t.Errorf("the orchestrator was sent\n%v, want\n%v", saga.got, want)
	}
}
