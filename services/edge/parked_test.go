package edge_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/inbox"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/outbox"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/rpc"
	outboxv1 "example.com/billing/proto/gen/go/billing/outbox/v1"
	"example.com/billing/services/edge"
)

// refuser is a Kafka that takes no message, each for its own sake.
type refuser struct{}

func (refuser) Publish(_ context.Context, batch []kafka.Message) (int, error) {
	return 0, &kafka.RefusedError{Topic: batch[0].Topic, Err: errors.New("too large")}
}

// parkedThings is a service with two events parked on their way out and three messages on their way in.
func parkedThings(t *testing.T) *edge.OutboxServer {
	t.Helper()
	pool := pgtest.Pool(t)
	if err := errors.Join(migrate.Up(t.Context(), pool, espg.Migrations, espg.MigrationsTable),
		migrate.Up(t.Context(), pool, inbox.Migrations, inbox.MigrationsTable)); err != nil {
		t.Fatal(err)
	}
	st := es.Stream{Type: "Account", ID: uuid.NewString()}
	events := make([]es.Event, 2)
	for n := range events {
		events[n] = es.Event{ID: uuid.NewString(), Type: "Happened", Stream: st, Version: int64(n + 1), At: time.UnixMilli(1), CorrelationID: "c", Data: []byte(`{}`)}
	}
	if err := espg.New(pool, espg.Options{}).Append(t.Context(), es.Append{Stream: st, Events: events}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	relay := outbox.NewRelay(outbox.Config{
		Pool: pool, Publisher: refuser{}, Prefix: "billing", Log: slog.New(slog.DiscardHandler), RetryMax: time.Millisecond, PollInterval: 5 * time.Millisecond,
	})
	ended := make(chan struct{})
	go func() { defer close(ended); _ = relay.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	pgtest.Eventually(t, "both are parked", func() bool {
		n, err := outbox.Lanes(pool).Waiting(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return n == 2
	})
	box := inbox.New(inbox.Config{Pool: pool, Log: slog.New(slog.DiscardHandler)})
	handle := box.Subscribe(inbox.Subscription{Name: "accounts", Source: "Account", Handle: func(context.Context, []kafka.Message) error {
		return fmt.Errorf("what is this: %w", inbox.ErrUnreadable)
	}})
	var batch []kafka.Message
	for n := range int64(3) {
		batch = append(batch, kafka.Message{Topic: "t", Offset: n, Key: []byte("k"), Value: []byte("broken"), Headers: []kafka.Header{{Key: "eventType", Value: []byte("Happened")}}})
	}
	if err := handle(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	return &edge.OutboxServer{Service: "account", Pool: pool}
}

func TestParkedOverTheAPI(t *testing.T) {
	s := parkedThings(t)
	list := func(direction, token string, size int32) *outboxv1.ListParkedResponse {
		t.Helper()
		res, err := s.ListParked(t.Context(), &outboxv1.ListParkedRequest{Direction: direction, PageToken: token, PageSize: size})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	all := list("", "", 0)
	if len(all.GetParked()) != 5 || all.GetNextPageToken() != "" {
		t.Fatalf("%v", all)
	}
	for direction, n := range map[string]int{"outgoing": 2, "incoming": 3} {
		for _, p := range list(direction, "", 0).GetParked() {
			n--
			if p.GetDirection() != direction || p.GetStatus() != "parked" || p.GetEventType() != "Happened" || p.GetAggregateType() != "Account" ||
				(p.GetSubscription() == "accounts") != (direction == "incoming") || (p.GetLastError() == "") != (p.GetAttempts() == 0) || p.GetDecidedAt() != nil {
				t.Errorf("%v", p)
			}
		}
		if n != 0 {
			t.Errorf("%s: %d too few", direction, n)
		}
	}
	// Page by page both directions come as one list.
	var paged []string
	for token, more := "", true; more; more = token != "" {
		res := list("", token, 2)
		for _, p := range res.GetParked() {
			paged = append(paged, p.GetId())
		}
		token = res.GetNextPageToken()
	}
	var whole []string
	for _, p := range all.GetParked() {
		whole = append(whole, p.GetId())
	}
	if !slices.Equal(paged, whole) {
		t.Errorf("by pages %v, as a whole %v", paged, whole)
	}
	st, err := s.GetOutboxStats(t.Context(), &outboxv1.GetOutboxStatsRequest{Service: "account"})
	if err != nil || st.GetParkedOutgoing() != 2 || st.GetParkedIncoming() != 3 || st.GetParkedLanes() != 2 || st.GetOldestParkedMs() <= 0 || st.GetPending() != 0 || st.GetDelivered() != 0 {
		t.Errorf("%v, %v", st, err)
	}
}

func TestDecisionsOnTheParked(t *testing.T) {
	s := parkedThings(t)
	ctx := rpc.WithCaller(t.Context(), rpc.Caller{Actor: "ann"})
	of := func(direction string) []*outboxv1.ParkedEvent {
		res, err := s.ListParked(ctx, &outboxv1.ListParkedRequest{Direction: direction})
		if err != nil {
			t.Fatal(err)
		}
		return res.GetParked()
	}
	in, out := of("incoming"), of("outgoing")
	for range 2 { // a repeat is harmless
		res, err := s.RequeueParked(ctx, &outboxv1.RequeueParkedRequest{Id: in[1].GetId(), Reason: "mended"})
		p := res.GetParked()
		if err != nil || p.GetId() != in[1].GetId() || p.GetStatus() != "requeued" || p.GetDecidedBy() != "ann" || p.GetDecidedReason() != "mended" || p.GetDecidedAt() == nil {
			t.Errorf("%v, %v", p, err)
		}
	}
	for _, p := range of("incoming") {
		if p.GetStatus() != "requeued" {
			t.Errorf("of the same lane: %v", p)
		}
	}
	if _, err := s.RequeueParked(ctx, &outboxv1.RequeueParkedRequest{Id: out[0].GetId(), Reason: "the topic takes more"}); err != nil {
		t.Error(err)
	}
	_, err := s.DiscardParked(ctx, &outboxv1.DiscardParkedRequest{Id: in[0].GetId(), Reason: "too late"})
	if e := rpc.ErrorOf(err); e == nil || e.Reason != "NOT_DISCARDABLE" {
		t.Errorf("discard what is on its way: %v", err)
	}
	if _, err := s.Pool.Exec(ctx, `UPDATE inbox_parked SET status = 'parked'`); err != nil { // refused again
		t.Fatal(err)
	}
	res, err := s.DiscardParked(ctx, &outboxv1.DiscardParkedRequest{Service: "account", Id: in[0].GetId(), Reason: "nobody wrote it"})
	if p := res.GetParked(); err != nil || p.GetStatus() != "discarded" || p.GetDecidedReason() != "nobody wrote it" || p.GetDoneAt() == nil || p.GetDirection() != "incoming" {
		t.Errorf("%v, %v", p, err)
	}
	if _, err := s.Pool.Exec(ctx, `UPDATE inbox_parked SET done_at = clock_timestamp() WHERE id = $1`, in[2].GetId()); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ service, id, reason, want string }{
		"another service":   {"saga", in[0].GetId(), "why", "SERVICE_NOT_FOUND"},
		"no id":             {"", "", "why", "INVALID_ARGUMENT"},
		"no UUID":           {"", "one", "why", "INVALID_ARGUMENT"},
		"no reason":         {"", in[0].GetId(), "", "INVALID_ARGUMENT"},
		"unknown":           {"account", uuid.NewString(), "why", "PARKED_NOT_FOUND"},
		"outgoing":          {"", out[1].GetId(), "why", "NOT_DISCARDABLE"},
		"handled after all": {"", in[2].GetId(), "why", "NOT_DISCARDABLE"},
	} {
		_, discard := s.DiscardParked(ctx, &outboxv1.DiscardParkedRequest{Service: c.service, Id: c.id, Reason: c.reason})
		_, requeue := s.RequeueParked(ctx, &outboxv1.RequeueParkedRequest{Service: c.service, Id: c.id, Reason: c.reason})
		if e := rpc.ErrorOf(discard); e == nil || e.Reason != c.want {
			t.Errorf("%s: discard: %v", name, discard)
		}
		if e := rpc.ErrorOf(requeue); c.want != "NOT_DISCARDABLE" && (e == nil || e.Reason != c.want) {
			t.Errorf("%s: requeue: %v", name, requeue)
		}
	}
	_, err = s.ListParked(ctx, &outboxv1.ListParkedRequest{Direction: "up"})
	if e := rpc.ErrorOf(err); e == nil || e.Reason != rpc.ReasonInvalidArgument {
		t.Errorf("got %v", err)
	}
	_, err = s.ListParked(ctx, &outboxv1.ListParkedRequest{PageToken: "!"})
	if e := rpc.ErrorOf(err); e == nil || e.Reason != rpc.ReasonInvalidArgument {
		t.Errorf("got %v", err)
	}
}
