package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kfake"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/estest"
	"example.com/billing/pkg/kafka"
)

// brokersEnv names the brokers of a real Kafka; `make test` sets it where it can.
const brokersEnv = "BILLING_TEST_KAFKA_BROKERS"

// onReal: this round of the tests uses the real Kafka.
var onReal bool

// TestMain runs the tests on kfake, and again on a real Kafka if there is one.
func TestMain(m *testing.M) {
	code := m.Run()
	if os.Getenv(brokersEnv) == "" {
		fmt.Println("es/kafka: not run on a real Kafka: " + brokersEnv + " is not set")
	} else if code == 0 {
		onReal = true
		fmt.Println("es/kafka: and again on a real Kafka")
		code = m.Run()
	}
	os.Exit(code)
}

func newOptions(t testing.TB) Options {
	t.Helper()
	cfg := kafka.Config{ClientID: "test", Log: slog.New(slog.DiscardHandler)}
	if testing.Verbose() {
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	if onReal {
		cfg.Brokers = strings.Split(os.Getenv(brokersEnv), ",")
	} else {
		fake, err := kfake.NewCluster(kfake.NumBrokers(1))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(fake.Close)
		cfg.Brokers = fake.ListenAddrs()
	}
	o := Options{Kafka: cfg, Topic: fmt.Sprintf("es-%x", time.Now().UnixNano()), Dir: t.TempDir(), Log: cfg.Log}
	if err := kafka.EnsureTopics(t.Context(), cfg, Topic(o.Topic, 0)); err != nil {
		t.Fatal(err)
	}
	return o
}

// open returns a store that leads, and what ends it.
func open(t testing.TB, o Options) (s *Store, stop func()) {
	t.Helper()
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	led := make(chan error, 1)
	go func() { led <- s.Lead(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-led; err != nil {
			t.Logf("led until: %v", err)
		}
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	select {
	case <-s.Leading():
	case err := <-led:
		t.Fatalf("it does not lead: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("it does not lead")
	}
	return s, stop
}

func TestStore(t *testing.T) {
	estest.TestStore(t, func(t *testing.T) es.Store { s, _ := open(t, newOptions(t)); return s })
}

// everything is what a store says, as text.
func everything(t *testing.T, s es.Store, streams []es.Stream) string {
	t.Helper()
	var b strings.Builder
	for e, err := range s.ReadAll(t.Context(), "", es.From{}) {
		if err != nil {
			t.Fatal(err)
		}
		payload, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, e.Position, e.RecordedAt, string(payload))
	}
	for _, st := range streams {
		events, err := s.Load(t.Context(), st, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		heads, err := s.Heads(t.Context(), []es.Stream{st})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, st, len(events), heads[0].Version)
	}
	return b.String()
}

// The log is the truth: a store with its state, one without, and one whose state is of another log or ahead of it, say the same.
func TestTheStateIsMadeAgainFromTheLog(t *testing.T) {
	o := newOptions(t)
	s, stop := open(t, o)
	streams := []es.Stream{{Type: "Test", ID: "a"}, {Type: "Test", ID: "b"}, {Type: "Tes", ID: "ta"}}
	for i := range 60 {
		st, version := streams[i%3], int64(i/3)
		e := es.Event{ID: uuid.NewString(), Type: "Happened", Stream: st, Version: version + 1, At: time.UnixMilli(int64(i)).UTC(), CorrelationID: "c", Data: fmt.Appendf(nil, `{"n":%d}`, i)}
		if err := s.Append(t.Context(), es.Append{Stream: st, Expected: version, Events: []es.Event{e}, Snapshot: fmt.Appendf(nil, "state %d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	want := everything(t, s, streams)
	stop()
	if strings.Count(want, "\n") != 63 {
		t.Fatalf("it says\n%s", want)
	}
	spoil := func(change func(*mark)) {
		t.Helper()
		id, err := kafka.TopicID(t.Context(), o.Kafka, o.Topic)
		if err != nil {
			t.Fatal(err)
		}
		st, err := openState(filepath.Join(o.Dir, o.Topic), id, es.Decode)
		if err != nil {
			t.Fatal(err)
		}
		change(&st.at)
		if err := errors.Join(st.apply(nil, nil, st.at.Next), st.close()); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name     string
		before   func()
		snapshot bool // of before is still there
	}{
		{"with its state", func() {}, true},
		{"with a state that is behind", func() { spoil(func(*mark) {}) }, true},
		{"with a state that is ahead", func() { spoil(func(m *mark) { m.Next += 1000; m.Position += 1000 }) }, false},
		{"with a state of another history", func() { spoil(func(m *mark) { m.ID = uuid.NewString() }) }, false},
		{"with a state whose newest event is elsewhere", func() { spoil(func(m *mark) { m.Offset -= 2 }) }, false},
		{"with the state of another log", func() { spoil(func(m *mark) { m.Log = "another" }) }, false},
		{"with a state that cannot be read", func() {
			if err := os.WriteFile(filepath.Join(o.Dir, o.Topic, "CURRENT"), []byte("nonsense"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"without a state", func() { o.Dir = t.TempDir() }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.before()
			s, stop := open(t, o)
			defer stop()
			if got := everything(t, s, streams); got != want {
				t.Errorf("it says\n%s\nwant\n%s", got, want)
			}
			heads, err := s.Heads(t.Context(), streams[:1])
			if err != nil || (string(heads[0].Snapshot) == "state 57") != tc.snapshot {
				t.Errorf("%+v, %v", heads, err)
			}
			if err := s.Append(t.Context(), es.Append{Stream: streams[0], Expected: 19}); err == nil {
				t.Error("a stale version was taken")
			}
			if err := s.Append(t.Context(), es.Append{Stream: streams[0], Expected: 20}); err != nil {
				t.Error(err)
			}
		})
	}
}

// Who does not lead answers nothing, and says so in the way that has callers ask again.
func TestWhoDoesNotLeadAnswersNothing(t *testing.T) {
	o := newOptions(t)
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	st := es.Stream{Type: "Test", ID: "a"}
	_, loaded := s.Load(t.Context(), st, 0, 0)
	_, heads := s.Heads(t.Context(), []es.Stream{st})
	_, kept := s.Snapshot(t.Context(), st, 1)
	_, found := s.Lookup(t.Context(), []string{"x"})
	_, clock := s.Clock(t.Context())
	_, end := s.End(t.Context())
	var all error
	for _, err := range s.ReadAll(t.Context(), "", es.From{}) {
		all = err
	}
	for what, err := range map[string]error{
		"append": s.Append(t.Context(), es.Append{Stream: st}), "load": loaded, "heads": heads, "snapshot": kept, "lookup": found, "clock": clock, "end": end, "read all": all,
	} {
		var unavailable *es.UnavailableError
		if !errors.As(err, &unavailable) || !errors.Is(err, ErrNotLeading) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := Open(t.Context(), Options{Kafka: o.Kafka, Topic: "unknown", Dir: t.TempDir()}); err == nil {
		t.Error("a topic that is not there was opened")
	}
}

// A time that one leader has vouched for holds for the next one, although its clock is behind: nothing is recorded before it.
func TestTheNextLeaderRecordsNothingBeforeWhatWasVouchedFor(t *testing.T) {
	o := newOptions(t)
	s, stop := open(t, o)
	if now, err := s.Clock(t.Context()); err != nil || time.Since(now) > time.Minute {
		t.Fatalf("an empty log vouches for %s (%v)", now, err)
	}
	ahead := time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
	s.turn.Lock()
	s.floor = ahead // as if its clock were an hour ahead
	s.turn.Unlock()
	vouched, err := s.Clock(t.Context())
	if err != nil || !vouched.After(ahead) {
		t.Fatalf("it vouches for %s (%v), and did for %s", vouched, err, ahead)
	}
	stop()
	next, _ := open(t, o)
	st := es.Stream{Type: "Test", ID: "a"}
	e := es.Event{ID: uuid.NewString(), Type: "Happened", Stream: st, Version: 1, At: time.Now(), Data: []byte("{}")}
	if err := next.Append(t.Context(), es.Append{Stream: st, Events: []es.Event{e}}); err != nil {
		t.Fatal(err)
	}
	stored, err := next.Load(t.Context(), st, 0, 0)
	if err != nil || len(stored) != 1 || !stored[0].RecordedAt.After(vouched) {
		t.Errorf("recorded at %v (%v), although %s was vouched for", stored, err, vouched)
	}
}

// Who follows has the state before its turn comes, and leads without reading it again.
func TestWhoFollowsHasTheState(t *testing.T) {
	o := newOptions(t)
	s, stop := open(t, o)
	other := o
	other.Dir = t.TempDir()
	f, err := Open(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	followed := make(chan error, 1)
	go func() { followed <- f.Follow(ctx) }()
	st := es.Stream{Type: "Test", ID: "a"}
	for v := range int64(50) {
		e := es.Event{ID: uuid.NewString(), Type: "Happened", Stream: st, Version: v + 1, At: time.Now(), Data: []byte("{}")}
		if err := s.Append(t.Context(), es.Append{Stream: st, Expected: v, Events: []es.Event{e}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Load(t.Context(), st, 0, 0); !errors.Is(err, ErrNotLeading) {
		t.Errorf("who follows answers: %v", err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) { // between two looks
		if h, err := f.state.head(st); err != nil || h.Version == 50 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it does not follow")
		}
	}
	cancel()
	if err := <-followed; err != nil {
		t.Fatal(err)
	}
	at := f.state.at
	want := everything(t, s, []es.Stream{st})
	stop()
	ctx, cancel = context.WithCancel(t.Context())
	led := make(chan error, 1)
	go func() { led <- f.Lead(ctx) }()
	<-f.Leading()
	if f.state.at.Position != at.Position {
		t.Errorf("it had read up to %d, and leads from %d", at.Position, f.state.at.Position)
	}
	if got := everything(t, f, []es.Stream{st}); got != want {
		t.Errorf("it has\n%s\nwant\n%s", got, want)
	}
	cancel()
	if err := errors.Join(<-led, f.Close(context.Background())); err != nil {
		t.Error(err)
	}
}

// What somebody else writes to the topic is no event, and in nobody's way.
func TestMessagesOfOthersArePassedOver(t *testing.T) {
	o := newOptions(t)
	s, stop := open(t, o)
	st := es.Stream{Type: "Test", ID: "a"}
	producer, err := kafka.NewProducer(o.Kafka)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = producer.Close() }()
	append1 := func(s es.Store, v int64) {
		t.Helper()
		e := es.Event{ID: uuid.NewString(), Type: "Happened", Stream: st, Version: v + 1, At: time.Now(), Data: []byte("{}")}
		if err := s.Append(t.Context(), es.Append{Stream: st, Expected: v, Events: []es.Event{e}}); err != nil {
			t.Fatal(err)
		}
	}
	for v := range int64(5) {
		append1(s, v)
		if _, err := producer.Publish(t.Context(), []kafka.Message{{Topic: o.Topic, Key: []byte("a"), Value: []byte("poison")}, {Topic: o.Topic}}); err != nil {
			t.Fatal(err)
		}
	}
	want := everything(t, s, []es.Stream{st})
	stop()
	for _, dir := range []string{o.Dir, t.TempDir()} { // with its state, and without
		o.Dir = dir
		next, stop := open(t, o)
		if got := everything(t, next, []es.Stream{st}); got != want {
			t.Errorf("it has\n%s\nwant\n%s", got, want)
		}
		stop()
	}
	next, _ := open(t, o)
	append1(next, 5)
}

// A leader whose connection broke asks whose turn it is before it claims again, and does not as long as that is not known, nor once it is another's.
func TestALeaderWhoseTurnIsOverDoesNotClaimAgain(t *testing.T) {
	o := newOptions(t)
	var over atomic.Bool
	asked := make(chan error) // what Turn answers
	o.Turn = func(ctx context.Context) error {
		if over.Load() {
			return fmt.Errorf("asked: %w", ErrTurnLost)
		}
		select {
		case err := <-asked:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	led := make(chan error, 1)
	go func() { led <- s.Lead(t.Context()) }()
	<-s.Leading()
	broke := func() {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) { // between two looks
			s.turn.Lock()
			leads := s.claim != nil
			if leads {
				s.end(errors.New("the connection broke"))
			}
			s.turn.Unlock()
			if leads {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("it does not lead again")
			}
		}
	}
	broke()
	leads := func() bool {
		s.turn.Lock()
		defer s.turn.Unlock()
		return s.claim != nil
	}
	for range 2 {
		if asked <- errors.New("not known"); leads() {
			t.Error("it has claimed again although it is not known whose turn it is")
		}
	}
	asked <- nil
	over.Store(true) // from the next time on
	broke()
	if err := <-led; !errors.Is(err, ErrTurnLost) {
		t.Errorf("it led until %v", err)
	}
	if err := s.Close(context.Background()); err != nil {
		t.Error(err)
	}
}
