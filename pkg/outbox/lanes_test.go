package outbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/google/uuid"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/parking"
	"example.com/billing/pkg/pgtest"
)

// limited is a broker whose topics take up to 64 KiB: the real Kafka's if there is one, with a prefix of the test's own.
func limited(t *testing.T) (cfg kafka.Config, prefix string, limit func(bytes string)) {
	t.Helper()
	cfg, prefix = broker(t), "billing"
	if brokers := os.Getenv("BILLING_TEST_KAFKA_BROKERS"); brokers != "" {
		cfg.Brokers, prefix = strings.Split(brokers, ","), "outbox-"+uuid.NewString()
		if err := kafka.EnsureTopics(t.Context(), cfg, kafka.Topic{Name: Topic(prefix, "Account"), Partitions: 3}); err != nil {
			t.Fatal(err)
		}
	}
	conf := sarama.NewConfig()
	conf.Version = sarama.V3_6_0_0
	admin, err := sarama.NewClusterAdmin(cfg.Brokers, conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Close() })
	limit = func(bytes string) {
		if err := admin.IncrementalAlterConfig(sarama.TopicResource, Topic(prefix, "Account"), map[string]sarama.IncrementalAlterConfigsEntry{
			"max.message.bytes": {Operation: sarama.IncrementalAlterConfigsOperationSet, Value: &bytes},
		}, false); err != nil {
			t.Fatal(err)
		}
	}
	limit("65536")
	return cfg, prefix, limit
}

// A poison event parks one aggregate's lane; 1,000 others flow on; requeue delivers it in order.
func TestAPoisonEventParksItsLane(t *testing.T) {
	s, pool := open(t)
	cfg, prefix, limit := limited(t)
	producer, err := kafka.NewProducer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = producer.Close() })
	sick := es.Stream{Type: "Account", ID: uuid.NewString()}
	others := make([]es.Stream, 1000)
	for i := range others {
		others[i] = es.Stream{Type: "Account", ID: uuid.NewString()}
	}
	round := func(version int64, padding int) {
		commit(t, s, sick, version, padding)
		items := make([]es.Append, len(others))
		for i, st := range others {
			items[i] = es.Append{Stream: st, Expected: version - 1, Events: []es.Event{happened(st, version)}}
		}
		if err := s.Append(t.Context(), items...); err != nil {
			t.Fatal(err)
		}
	}
	round(1, 0)
	round(2, 100<<10) // the poison
	round(3, 0)
	relay(t, Config{Pool: pool, Publisher: producer, Prefix: prefix, Committed: s.Committed(), RetryMax: 10 * time.Millisecond})
	flowed := func(events int64) func() bool {
		return func() bool {
			c, st := waiting(t, pool), stats(t, pool)
			return st.Pending == 0 && st.Delivered+c.Rows == events
		}
	}
	pgtest.Eventually(t, "everything flowed or is parked", flowed(3*1001))
	rows := parked(t, pool)
	if c := waiting(t, pool); c.Rows != 2 || c.Lanes != 1 || len(rows) != 2 {
		t.Fatalf("%+v, %+v", c, rows)
	}
	for i, want := range []parking.Row{{Version: 2, Attempts: 5, Status: parking.Parked}, {Version: 3, Status: parking.Parked}} {
		r := rows[i]
		if r.AggregateID != sick.ID || r.AggregateType != "Account" || r.EventType != "Happened" || r.ID != r.EventID ||
			r.Version != want.Version || r.Attempts != want.Attempts || r.Status != want.Status || (r.LastError == "") != (want.Attempts == 0) {
			t.Errorf("%+v", r)
		}
	}
	if n, err := Lanes(pool).Waiting(t.Context()); n != 2 || err != nil {
		t.Errorf("%d wait: %v", n, err)
	}
	round(4, 0) // behind a parked lane
	pgtest.Eventually(t, "the next ones flowed or are parked", flowed(4*1001))

	if n := requeue(t, pool, rows[1].ID); n != 3 { // of any event of the lane
		t.Errorf("requeued %d events, want 3", n)
	}
	pgtest.Eventually(t, "it is refused and parked again", func() bool {
		r := parked(t, pool)
		return r[0].Attempts == 6 && r[0].Status == parking.Parked && r[2].Status == parking.Parked
	})
	limit("1000000")
	pgtest.Eventually(t, "it is through", func() bool {
		requeue(t, pool, rows[0].ID) // the limit takes a moment to be known to the broker
		return waiting(t, pool).Rows == 0
	})
	round(5, 0)
	pgtest.Eventually(t, "the lane is as any other", flowed(5*1001))
	if c := waiting(t, pool); c.Rows != 0 {
		t.Errorf("%+v", c)
	}
	inOrder(t, read(t, cfg, 5*1001, Topic(prefix, "Account")), 5*1001)
	if r := parked(t, pool)[0]; r.Status != parking.Requeued || r.DecidedBy != "ann" || r.Reason == "" || r.DecidedAt.IsZero() || r.DoneAt.IsZero() {
		t.Errorf("for the record: %+v", r)
	}
}

// Whatever is wrong with the cluster, and however long, parks nothing.
func TestAnOutageParksNothing(t *testing.T) {
	s, pool := open(t)
	var calls atomic.Int32
	causes := []error{
		sarama.ErrOutOfBrokers, context.DeadlineExceeded, sarama.ErrNotLeaderForPartition, sarama.ErrRequestTimedOut,
		sarama.ErrNotEnoughReplicas, errors.New("connection refused"), sarama.ErrTopicAuthorizationFailed,
	}
	const outage = 30
	r := &recorder{before: func(_ context.Context, batch []kafka.Message) (int, error) {
		if n := int(calls.Add(1)); n <= outage {
			return 0, fmt.Errorf("kafka: publish: %w", causes[n%len(causes)])
		}
		return len(batch), nil
	}}
	ids := happen(t, s, 3)
	start(t, Config{Pool: pool, Publisher: r, RetryMax: time.Millisecond})
	pgtest.Eventually(t, "all is delivered", func() bool { return stats(t, pool).Pending == 0 })
	if got := parked(t, pool); len(got) != 0 || !slices.Equal(r.published(), ids) {
		t.Errorf("parked %+v, published %d of %d", got, len(r.published()), len(ids))
	}
}

// A lane on its way that cannot go on because the cluster is away stays on its way; what is committed meanwhile goes with it.
func TestARequeuedLaneOutlivesAnOutage(t *testing.T) {
	s, pool := open(t)
	sick := es.Stream{Type: "Account", ID: uuid.NewString()}
	ids := []string{commit(t, s, sick, 1, 0)}
	const refusing, away, well = 0, 1, 2
	var state atomic.Int32
	var calls atomic.Int32
	r := &recorder{before: func(_ context.Context, batch []kafka.Message) (int, error) {
		calls.Add(1)
		switch state.Load() {
		case refusing:
			return 0, &kafka.RefusedError{Index: 0, Err: sarama.ErrInvalidRecord}
		case away:
			return 0, sarama.ErrOutOfBrokers
		}
		return len(batch), nil
	}}
	start(t, Config{Pool: pool, Publisher: r, RetryMax: time.Millisecond})
	pgtest.Eventually(t, "it is parked", func() bool { return waiting(t, pool).Rows == 1 })
	state.Store(away)
	requeue(t, pool, ids[0])
	seen := calls.Load()
	pgtest.Eventually(t, "it is tried many times", func() bool { return calls.Load() > seen+10 })
	if got := parked(t, pool)[0]; got.Status != parking.Requeued || got.Attempts != 5 || stats(t, pool).LastError == "" {
		t.Errorf("%+v", got)
	}
	ids = append(ids, commit(t, s, sick, 2, 0))
	state.Store(well)
	pgtest.Eventually(t, "both are through", func() bool { return waiting(t, pool).Rows == 0 && len(r.published()) >= 2 })
	if !slices.Equal(slices.Compact(r.published()), ids) {
		t.Errorf("published %v, want %v", r.published(), ids)
	}
}

// A lane on its way that takes many batches holds up no other lane, and what is new of it stays behind it.
func TestALongLaneOnItsWayHoldsUpNoOther(t *testing.T) {
	s, pool := open(t)
	sick, well := es.Stream{Type: "Account", ID: uuid.NewString()}, es.Stream{Type: "Account", ID: uuid.NewString()}
	const events, batch = 30, 3
	var lane, others []string
	for v := range int64(events) {
		lane = append(lane, commit(t, s, sick, v+1, 0))
	}
	exec(t, pool, `INSERT INTO outbox_parked (id, position, stream_type, stream_id, version, event_type, attempts, parked_at, status)
		SELECT event_id, position, stream_type, stream_id, version, event_type, 1, clock_timestamp(), 'requeued' FROM es_event`)
	exec(t, pool, `UPDATE outbox_relay SET position = $1`, events)
	r := &recorder{before: func(_ context.Context, batch []kafka.Message) (int, error) {
		if slices.Contains(eventIDs(batch), lane[0]) { // the lane's first batch is on its way
			lane = append(lane, commit(t, s, sick, events+1, 0))
			others = append(others, commit(t, s, well, 1, 0), commit(t, s, well, 2, 0))
		}
		return len(batch), nil
	}}
	start(t, Config{Pool: pool, Publisher: r, BatchMax: batch})
	pgtest.Eventually(t, "all is through", func() bool { return waiting(t, pool).Rows == 0 && len(r.published()) == events+3 })
	got := r.published()
	if at := slices.Index(got, others[0]); at > 2*batch {
		t.Errorf("the other lane's event went out as number %d", at+1)
	}
	ofLane := slices.DeleteFunc(got, func(id string) bool { return slices.Contains(others, id) })
	if !slices.Equal(ofLane, lane) {
		t.Errorf("published %v of the lane, want %v", ofLane, lane)
	}
}

// Only what Kafka acknowledged is a success: parking is none, nor is a resend that is refused.
func TestParkingIsNoSuccess(t *testing.T) {
	s, pool := open(t)
	sick := es.Stream{Type: "Account", ID: uuid.NewString()}
	poison := commit(t, s, sick, 1, 0)
	commit(t, s, sick, 2, 0)
	start(t, Config{Pool: pool, Publisher: picky(func() []string { return []string{poison} }), RetryMax: time.Millisecond})
	none := func(when string) {
		t.Helper()
		if st := stats(t, pool); !st.ProcessedAt.IsZero() || st.LastError == "" || st.Retries != 5 || st.Failed != 0 {
			t.Errorf("%s: %+v", when, st)
		}
	}
	pgtest.Eventually(t, "the lane is parked", func() bool { return waiting(t, pool).Rows == 2 })
	none("parked")
	requeue(t, pool, poison)
	pgtest.Eventually(t, "it is parked again", func() bool { r := parked(t, pool)[0]; return r.Attempts == 6 && r.Status == parking.Parked })
	none("refused again")
	happen(t, s, 1)
	pgtest.Eventually(t, "another one is delivered", func() bool { return checkpoint(t, pool) == 3 })
	if st := stats(t, pool); st.ProcessedAt.IsZero() || st.LastError != "" || st.Retries != 0 {
		t.Errorf("delivered: %+v", st)
	}
}

// What was delivered is counted without what is parked, as far back as the outbox remembers either.
func TestParkedIsNotDelivered(t *testing.T) {
	s, pool := open(t)
	poison := commit(t, s, es.Stream{Type: "Account", ID: uuid.NewString()}, 1, 0)
	happen(t, s, 3)
	start(t, Config{Pool: pool, Publisher: picky(func() []string { return []string{poison} }), RetryMax: time.Millisecond})
	pgtest.Eventually(t, "all is delivered or parked", func() bool { return checkpoint(t, pool) == 4 })
	if st := stats(t, pool); st.Delivered != 3 || st.Pending != 0 {
		t.Errorf("%+v", st)
	}
	exec(t, pool, `DELETE FROM outbox_batch WHERE to_position = 1`) // as the clean-up does in time
	if st := stats(t, pool); st.Delivered != 3 {
		t.Errorf("after the clean-up: %+v", st)
	}
}

// What is committed between a requeue and the relay's next look goes with the lane, whoever parks it behind it.
func TestWhatComesBehindALaneOnItsWayGoesWithIt(t *testing.T) {
	s, pool := open(t)
	sick := es.Stream{Type: "Account", ID: uuid.NewString()}
	ids := []string{commit(t, s, sick, 1, 0), commit(t, s, sick, 2, 0)}
	tb := table{pool}
	l, _ := acquire(t, tb, "a", time.Hour)
	if err := tb.advance(t.Context(), lease{epoch: l.epoch, position: 1, incarnation: 1}, 0, []int64{1}, "a", time.Hour); err != nil {
		t.Fatal(err)
	}
	requeue(t, pool, ids[0])
	if err := errors.Join(tb.advance(t.Context(), lease{epoch: l.epoch, position: 2, incarnation: 1}, 0, []int64{2}, "a", time.Hour), tb.release(t.Context(), l.epoch, "a")); err != nil {
		t.Fatal(err)
	}
	if got := parked(t, pool); len(got) != 2 || got[1].Status != parking.Requeued {
		t.Fatalf("%+v", got)
	}
	r := &recorder{}
	start(t, Config{Pool: pool, Publisher: r})
	pgtest.Eventually(t, "both are through", func() bool { return waiting(t, pool).Rows == 0 })
	if !slices.Equal(r.published(), ids) {
		t.Errorf("published %v, want %v", r.published(), ids)
	}
}

// Kafka refuses an event while the answer for the ones before it is not known: only its own lane is parked, the checkpoint does
// not pass the others, and they go out.
func TestARefusalBehindWhatIsUnknown(t *testing.T) {
	s, pool := open(t)
	before := happen(t, s, 2)
	sick := es.Stream{Type: "Account", ID: uuid.NewString()}
	poison := commit(t, s, sick, 1, 0)
	commit(t, s, sick, 2, 0)
	r := &recorder{before: func(_ context.Context, batch []kafka.Message) (int, error) {
		if i := slices.Index(eventIDs(batch), poison); i >= 0 {
			return 0, &kafka.RefusedError{Index: i, Err: sarama.ErrInvalidRecord}
		}
		if p := checkpoint(t, pool); p != 0 {
			t.Errorf("the checkpoint passed what nobody acknowledged: %d", p)
		}
		return len(batch), nil
	}}
	start(t, Config{Pool: pool, Publisher: r, RetryMax: time.Millisecond})
	pgtest.Eventually(t, "all is through or parked", func() bool { return checkpoint(t, pool) == 4 && waiting(t, pool).Rows == 2 })
	if !slices.Equal(r.published(), before) {
		t.Errorf("published %v, want %v", r.published(), before)
	}
}

// The checkpoint was set back, to publish everything again: what was parked before and is through may be refused once more.
func TestPublishingAgainParksAgain(t *testing.T) {
	s, pool := open(t)
	sick := es.Stream{Type: "Account", ID: uuid.NewString()}
	first, second := commit(t, s, sick, 1, 0), commit(t, s, sick, 2, 0)
	start(t, Config{Pool: pool, Publisher: picky(func() []string { return []string{first} }), RetryMax: time.Millisecond})
	pgtest.Eventually(t, "the lane is parked", func() bool { return waiting(t, pool).Rows == 2 })
	exec(t, pool, `UPDATE outbox_parked SET status = 'requeued', done_at = clock_timestamp(); UPDATE outbox_relay SET position = 0`)
	pgtest.Eventually(t, "it is parked again", func() bool { return waiting(t, pool).Rows == 2 && checkpoint(t, pool) == 2 })
	if got := parked(t, pool); got[0].ID != first || got[0].Attempts != 10 || got[1].ID != second || got[1].Attempts != 0 {
		t.Errorf("%+v", got)
	}
}

// Requeueing twice, or what is through, or what nobody knows, does no harm; and what was done long ago is forgotten.
func TestRequeueAndCleanUp(t *testing.T) {
	s, pool := open(t)
	sick := es.Stream{Type: "Account", ID: uuid.NewString()}
	first, second := commit(t, s, sick, 1, 0), commit(t, s, sick, 2, 0)
	tb := table{pool}
	l, _ := acquire(t, tb, "a", time.Hour)
	if err := tb.advance(t.Context(), lease{epoch: l.epoch, position: 2, incarnation: 1}, 0, []int64{1, 2}, "a", time.Hour); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int64{2, 0} {
		if n := requeue(t, pool, first); n != want {
			t.Errorf("requeued %d, want %d", n, want)
		}
	}
	exec(t, pool, `UPDATE outbox_parked SET done_at = clock_timestamp() - interval '2 days' WHERE version = 1; UPDATE outbox_parked SET status = 'parked' WHERE version = 2`)
	if n := requeue(t, pool, first); n != 0 {
		t.Errorf("an event that is through requeued %d", n)
	}
	if _, _, err := Lanes(pool).Requeue(t.Context(), uuid.NewString(), "ann", "why"); !errors.Is(err, parking.ErrUnknown) {
		t.Errorf("unknown: %v", err)
	}
	for _, c := range []struct {
		keep time.Duration
		want int64
	}{{72 * time.Hour, 0}, {time.Hour, 1}} {
		if n, err := Lanes(pool).Clean(t.Context(), c.keep); err != nil || n != c.want {
			t.Errorf("forgot %d rows older than %v (%v), want %d", n, c.keep, err, c.want)
		}
	}
	if got := parked(t, pool); len(got) != 1 || got[0].ID != second {
		t.Errorf("left: %+v", got)
	}
	exec(t, pool, `UPDATE outbox_parked SET done_at = clock_timestamp()`)
	if err := tb.release(t.Context(), l.epoch, "a"); err != nil {
		t.Fatal(err)
	}
	start(t, Config{Pool: pool, Publisher: &recorder{}, KeepParked: time.Millisecond, CleanEvery: time.Millisecond})
	pgtest.Eventually(t, "the rest is forgotten from time to time", func() bool { return len(parked(t, pool)) == 0 })
}
