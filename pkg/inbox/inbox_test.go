package inbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/parking"
	"example.com/billing/pkg/pgtest"
)

// A poison message parks one key's lane; 1,000 others flow on; a restarted consumer goes on behind it; requeue delivers the
// lane in order.
func TestAPoisonMessageParksItsLane(t *testing.T) {
	pool := open(t)
	cfg, topic := broker(t)
	producer, err := kafka.NewProducer(cfg)
	must(t, err)
	t.Cleanup(func() { _ = producer.Close() })
	publish := func(version int) {
		var messages []kafka.Message
		for k := range 1000 {
			messages = append(messages, kafka.Message{Topic: topic, Key: fmt.Appendf(nil, "well-%d", k), Value: fmt.Append(nil, version)})
			if k == 500 {
				messages = append(messages, kafka.Message{Topic: topic, Key: []byte("sick"), Value: fmt.Append(nil, version)})
			}
		}
		for len(messages) > 0 {
			n, err := producer.Publish(t.Context(), messages)
			if messages = messages[n:]; t.Context().Err() != nil {
				t.Fatal(err)
			}
		}
	}
	h := newHandler()
	h.fail(func(m kafka.Message) error {
		if string(m.Key) == "sick" && string(m.Value) == "2" {
			return errPoison
		}
		return nil
	})
	group := uuid.NewString()
	consume := func() (stop func()) {
		i := box(pool)
		run(t, i)
		c, err := kafka.NewConsumer(kafka.ConsumerConfig{Config: cfg, Group: group, Topics: []string{topic},
			Handle: i.Subscribe(Subscription{Name: "s", Source: "Account", Handle: h.handle})})
		must(t, err)
		go func() { _ = c.Run(context.Background()) }()
		t.Cleanup(func() { _ = c.Close() })
		return func() { _ = c.Close() }
	}
	others := func(want string) func() bool {
		return func() bool {
			for k := range 1000 {
				if !strings.HasSuffix(h.of(fmt.Sprint("well-", k)), want) {
					return false
				}
			}
			return true
		}
	}
	publish(1)
	publish(2)
	publish(3)
	stop := consume()
	pgtest.Eventually(t, "the others flow", others("3"))
	pgtest.Eventually(t, "the lane is parked", func() bool { return count(t, pool).Rows == 2 })
	stop()
	calls := h.count()
	consume() // a second member, after the first one left
	publish(4)
	pgtest.Eventually(t, "the others flow on", others("4"))
	pgtest.Eventually(t, "what comes behind is parked", func() bool { return count(t, pool).Rows == 3 })
	if c := count(t, pool); c.Lanes != 1 || c.Oldest <= 0 || h.of("sick") != "1" {
		t.Errorf("%+v; handled %q of the sick key", c, h.of("sick"))
	}
	if n := h.count() - calls; n > 200 {
		t.Errorf("%d calls of the handler: a batch behind a parked lane is handled as a whole", n)
	}
	all, err := Lanes(pool).List(t.Context(), parking.Filter{Limit: 10})
	must(t, err)
	first := all[len(all)-1]
	if first.Subscription != "s" || first.AggregateType != "Account" || first.AggregateID != "sick" || first.Attempts == 0 && all[len(all)-2].Attempts == 0 {
		t.Errorf("%+v", first)
	}
	h.fail(nil)
	if _, n, err := Lanes(pool).Requeue(t.Context(), first.ID, "ann", "mended"); n != 3 || err != nil {
		t.Errorf("requeued %d: %v", n, err)
	}
	pgtest.Eventually(t, "the lane is through", func() bool { return count(t, pool).Rows == 0 })
	publish(5)
	pgtest.Eventually(t, "and as any other", func() bool { return others("5")() && strings.HasSuffix(h.of("sick"), "5") })
	if h.of("sick") != "1 2 3 4 5" {
		t.Errorf("handled %q of the sick key", h.of("sick"))
	}
}

func TestOnlyLanesAtFaultAreParked(t *testing.T) {
	pool := open(t)
	h := newHandler("x", "y")
	i := box(pool)
	handle := i.Subscribe(Subscription{Name: "s", Handle: h.handle})
	must(t, handle(t.Context(), batch(10, "a=1", "b=x", "a=2", "c=1", "b=2", "d=1", "d=y", "d=3")))
	if got, want := rows(t, pool), "b/11 parked 5, b/14 parked 0, d/16 parked 5, d/17 parked 0"; got != want {
		t.Errorf("parked\n got %s\nwant %s", got, want)
	}
	for key, want := range map[string]string{"a": "1 2", "b": "", "c": "1", "d": "1"} {
		if got := h.of(key); got != want {
			t.Errorf("%s: handled %q, want %q", key, got, want)
		}
	}
	// One call for all; one for each of a and c; b as a whole and its first five times over; d once as a whole and one by one, then
	// as what is left of it and its first.
	if n := h.count(); n > 1+2+5*2+1+2+4*2 {
		t.Errorf("%d calls", n)
	}
}

// Attempts are a message's own: what came before it in its lane, and went through at last, does not count.
func TestEachMessageHasItsAttempts(t *testing.T) {
	pool := open(t)
	h := newHandler()
	first, second := 0, 0
	h.fail(func(m kafka.Message) error {
		if string(m.Value) == "x" {
			if first++; first <= 5 {
				return errPoison
			}
			return nil
		}
		second++
		return errPoison
	})
	must(t, box(pool).Subscribe(Subscription{Name: "s", Handle: h.handle})(t.Context(), batch(1, "a=x", "a=y")))
	if got := rows(t, pool); got != "a/2 parked 5" || second < 5 {
		t.Errorf("parked %s, after %d attempts", got, second)
	}
}

// A message that cannot be read is not tried again.
func TestTheUnreadableIsParkedAtOnce(t *testing.T) {
	pool := open(t)
	h := newHandler()
	h.fail(func(m kafka.Message) error {
		if string(m.Value) == "\x00\xff" {
			return fmt.Errorf("%w: %q \x00\xff", ErrUnreadable, m.Value)
		}
		return nil
	})
	messages := batch(1, "a=1", "b=\x00\xff", "a=2")
	messages[1].Key = []byte("b\x00\xfe")
	must(t, box(pool).Subscribe(Subscription{Name: "s", Handle: h.handle})(t.Context(), messages))
	all, err := Lanes(pool).List(t.Context(), parking.Filter{Limit: 10})
	must(t, err)
	if len(all) != 1 || all[0].Attempts != 1 || all[0].EventID != "" || all[0].EventType != "Happened" || all[0].Version != 2 || all[0].AggregateID != "b\uFFFD\uFFFD" {
		t.Errorf("%+v", all)
	}
	if h.of("a") != "1 2" {
		t.Errorf("handled %q", h.of("a"))
	}
}

// Whatever a producer wrote as key and time, the message is parked and its partition goes on; and its lane is as any other.
func TestAnyKeyAndTimeIsParked(t *testing.T) {
	pool := open(t)
	h := newHandler("x")
	i := box(pool)
	handle := i.Subscribe(Subscription{Name: "s", Handle: h.handle})
	noise := make([]byte, 100<<10) // does not compress
	for n := 0; n < len(noise); n += sha256.Size {
		hash := sha256.Sum256(fmt.Append(nil, n))
		copy(noise[n:], hash[:])
	}
	key := hex.EncodeToString(noise)
	messages := func() []kafka.Message {
		out := batch(1, key+"=x", "a=1", "b=x", "c=x", "d=x", key+"=2")
		out[2].Time, out[3].Time, out[4].Time = time.UnixMilli(math.MaxInt64), time.UnixMilli(math.MinInt64), time.Time{}
		return out
	}
	for range 2 {
		must(t, handle(t.Context(), messages()))
	}
	must(t, handle(t.Context(), batch(7, key+"=3")))
	if got, want := strings.ReplaceAll(rows(t, pool), key, "key"), "key/1 parked 5, b/3 parked 5, c/4 parked 5, d/5 parked 5, key/6 parked 0, key/7 parked 0"; got != want {
		t.Errorf("parked %s\nwant %s", got, want)
	}
	if c := count(t, pool); c.Rows != 6 || c.Lanes != 4 {
		t.Errorf("%+v", c)
	}
	h.fail(nil)
	for offset, want := range map[int64]int64{6: 3, 3: 1, 4: 1, 5: 1} {
		if n := requeue(t, pool, offset); n != want {
			t.Errorf("requeued %d of offset %d's lane, want %d", n, offset, want)
		}
	}
	run(t, i)
	pgtest.Eventually(t, "all is handled", func() bool { return count(t, pool).Rows == 0 })
	if h.of(key) != "x 2 3" {
		t.Errorf("handled %q", h.of(key))
	}
}

// A topic that was made anew begins at offset 0 again: its messages are not taken for those that were parked before.
func TestATopicMadeAnew(t *testing.T) {
	pool := open(t)
	h := newHandler("x", "y")
	i := box(pool)
	handle := i.Subscribe(Subscription{Name: "s", Handle: h.handle})
	must(t, handle(t.Context(), batch(1, "a=x")))
	_, err := Lanes(pool).Discard(t.Context(), idOf(t, pool, 1), "ann", "the topic is gone")
	must(t, err)
	anew := batch(1, "b=y", "b=2")
	for n := range anew {
		anew[n].Time = anew[n].Time.Add(time.Hour)
	}
	for range 2 {
		must(t, handle(t.Context(), anew))
	}
	if c := count(t, pool); c.Rows != 2 || c.Lanes != 1 {
		t.Errorf("%+v: %s", c, rows(t, pool))
	}
	h.fail(nil)
	requeue(t, pool, 2)
	run(t, i)
	pgtest.Eventually(t, "both are handled", func() bool { return count(t, pool).Rows == 0 })
	if h.of("b") != "y 2" {
		t.Errorf("handled %q", h.of("b"))
	}
}

// What a message says of its version counts only where it is one.
func TestTheVersionOfWhatCannotBeRead(t *testing.T) {
	for text, want := range map[string]int64{"7": 7, "0": 0, "": 0, "x": 0, "-7": 0, "99999999999999999999": 0, "-99999999999999999999": 0} {
		m := kafka.Message{Headers: []kafka.Header{{Key: "aggregateVersion", Value: []byte(text)}}}
		if _, _, _, got := describe(m); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

// A message without a key has a lane too, and a panic is an error of the message.
func TestAPanicIsParked(t *testing.T) {
	pool := open(t)
	messages := batch(1, "=1", "=2", "a=1")
	messages[0].Key, messages[1].Key = nil, nil
	var handled atomic.Int32
	must(t, box(pool).Subscribe(Subscription{Name: "s", Handle: func(_ context.Context, batch []kafka.Message) error {
		if batch[0].Key == nil {
			panic("nil key")
		}
		handled.Add(int32(len(batch)))
		return nil
	}})(t.Context(), messages))
	if got := rows(t, pool); got != "/1 parked 5, /2 parked 0" || handled.Load() != 1 {
		t.Errorf("parked %s, handled %d", got, handled.Load())
	}
}

// What says nothing about the message parks nothing, however often it comes: the consumer gets the error and tries again.
func TestWhatIsTransientParksNothing(t *testing.T) {
	pool := open(t)
	h := newHandler()
	handle := box(pool).Subscribe(Subscription{Name: "s", Handle: h.handle})
	for _, cause := range []error{
		&es.UnavailableError{Op: "append", Err: errors.New("no answer")}, context.DeadlineExceeded, context.Canceled, io.ErrUnexpectedEOF,
		&pgconn.PgError{Code: "42P01"}, &pgconn.PgError{Code: "40001"}, &pgconn.PgError{Code: "57P01"}, &pgconn.PgError{Code: "53100"}, &pgconn.PgError{Code: "28000"},
		status.Error(codes.Unavailable, ""), status.Error(codes.Unknown, ""), status.Error(codes.Internal, ""), status.Error(codes.DeadlineExceeded, ""),
		errors.New("conn closed"), &es.UnknownTypeError{Type: "Newer"},
	} {
		h.fail(func(m kafka.Message) error {
			if string(m.Key) == "b" {
				return cause
			}
			return nil
		})
		for range 10 {
			if err := handle(t.Context(), batch(1, "a=1", "b=1")); !errors.Is(err, cause) {
				t.Errorf("%v: got %v", cause, err)
			}
		}
	}
	if got := rows(t, pool); got != "" {
		t.Errorf("parked %s", got)
	}
	for _, cause := range []error{errPoison, &pgconn.PgError{Code: "23505"}, &pgconn.PgError{Code: "22P02"}, status.Error(codes.InvalidArgument, ""), ErrUnreadable} {
		if Transient(fmt.Errorf("handle: %w", cause)) {
			t.Errorf("%v counts as transient", cause)
		}
	}
}

// A handler that fails for the message's sake in one call and for another reason in the next parks nothing either: what stands
// apart is tried again whole.
func TestAnOutageWhileLanesStandApart(t *testing.T) {
	pool := open(t)
	h := newHandler()
	calls := 0
	h.fail(func(m kafka.Message) error {
		if calls++; calls == 1 {
			return errPoison
		}
		return &es.UnavailableError{Op: "write", Err: io.EOF}
	})
	handle := box(pool).Subscribe(Subscription{Name: "s", Handle: h.handle})
	if err := handle(t.Context(), batch(1, "a=1", "b=1")); !Transient(err) {
		t.Errorf("got %v", err)
	}
	if got := rows(t, pool); got != "" {
		t.Errorf("parked %s", got)
	}
}

// The offset was not committed, so the same messages come again: they are parked once, and handled or not as before.
func TestARepetitionIsParkedOnce(t *testing.T) {
	pool := open(t)
	h := newHandler("x")
	i := box(pool)
	handle := i.Subscribe(Subscription{Name: "s", Handle: h.handle})
	other := i.Subscribe(Subscription{Name: "other", Handle: newHandler().handle})
	for range 3 {
		must(t, handle(t.Context(), batch(1, "a=1", "b=x", "b=2")))
		must(t, other(t.Context(), batch(1, "a=1", "b=x", "b=2"))) // has lanes of its own
	}
	if got := rows(t, pool); got != "b/2 parked 5, b/3 parked 0" {
		t.Errorf("parked %s", got)
	}
	// Requeued and handled; then the consumer's crash brings them once more, and the handler has unlearnt it: parked again.
	h.fail(nil)
	requeue(t, pool, 2)
	if _, err := i.handOut(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := rows(t, pool); got != "b/2 done 5, b/3 done 0" || h.of("b") != "x 2" {
		t.Fatalf("parked %s, handled %q", got, h.of("b"))
	}
	must(t, handle(t.Context(), batch(2, "b=x", "b=2")))
	if got := rows(t, pool); got != "b/2 done 5, b/3 done 0" || h.of("b") != "x 2 x 2" {
		t.Errorf("after a repetition: %s, handled %q", got, h.of("b"))
	}
	h.fail(poison("x"))
	must(t, handle(t.Context(), batch(2, "b=x", "b=2")))
	if got := rows(t, pool); got != "b/2 parked 10, b/3 done 0" {
		t.Errorf("after a repetition that fails: %s", got)
	}
}
