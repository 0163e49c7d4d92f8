package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/kafka"
)

var (
	raceRounds = flag.Int("race-rounds", 50, "rounds of two writers that race for the log, with faults")
	raceSeed   = flag.Uint64("race-seed", 0, "what the faults are drawn from; 0 = the time")
)

// The steps of the protocol, by the requests' keys.
var steps = map[uint16]string{22: "InitProducerId", 24: "AddPartitionsToTxn", 0: "Produce", 26: "EndTxn", 65: "DescribeTransactions", 1: "Fetch", 2: "ListOffsets"}

// fault is what happens to a request.
type fault string

// The faults.
const (
	delayed  fault = "delayed"  // it arrives later, and so does its answer
	lost     fault = "lost"     // the connection breaks before it is sent
	unheard  fault = "unheard"  // it arrives, and the connection breaks before its answer does
	stranded fault = "stranded" // the connection breaks, and it arrives afterwards, when nobody waits for it any more
)

// faults draws what goes wrong on one process's connections. Safe for concurrent use.
type faults struct {
	mu       sync.Mutex
	random   *rand.Rand
	percent  int // of the requests of a step that have one
	happened map[string]int
	late     sync.WaitGroup // stranded requests on their way
}

func (f *faults) draw(step string) (fault, time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if step == "" || f.random.IntN(100) >= f.percent {
		return "", 0
	}
	drawn := []fault{delayed, lost, unheard, stranded}[f.random.IntN(4)]
	f.happened[step+" "+string(drawn)]++
	return drawn, time.Duration(1+f.random.IntN(60)) * time.Millisecond
}

func (f *faults) set(percent int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.percent = percent
}

func (f *faults) dial(network, addr string) (net.Conn, error) {
	conn, err := net.Dial(network, addr)
	if err != nil {
		return nil, err
	}
	return &badConn{Conn: conn, faults: f}, nil
}

// badConn is a connection whose requests suffer faults. sarama writes each request at once.
type badConn struct {
	net.Conn
	faults *faults
}

var errBroken = errors.New("the connection broke")

func (c *badConn) Write(b []byte) (int, error) {
	step := ""
	if len(b) >= 6 {
		step = steps[binary.BigEndian.Uint16(b[4:])]
	}
	drawn, d := c.faults.draw(step)
	switch drawn {
	case delayed:
		time.Sleep(d)
	case lost:
		_ = c.Close()
		return 0, errBroken
	case unheard:
		n, err := c.Conn.Write(b)
		time.Sleep(d / 4) // the broker has it
		_ = c.Close()
		return n, err
	case stranded:
		// A connection of its own carries it: the one it was meant for is closed, as sarama would close it.
		request := append([]byte(nil), b...)
		addr := c.RemoteAddr()
		_ = c.Close()
		c.faults.late.Go(func() {
			time.Sleep(d)
			late, err := net.Dial(addr.Network(), addr.String())
			if err != nil {
				return
			}
			defer late.Close()
			if _, err := late.Write(request); err == nil {
				_ = late.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
				_, _ = late.Read(make([]byte, 256)) // so that the broker has read it all
			}
		})
		return 0, errBroken
	}
	return c.Conn.Write(b)
}

// contender is a process that wants to write the log.
type contender struct {
	name   string
	store  *Store
	faults *faults
	stop   context.CancelFunc
	led    chan struct{} // closed once it leads no longer
}

// lead has it claim the log, and lead until another one does. If it led before, it has heard by then that it does no longer, as whoever
// calls Lead again has.
func (c *contender) lead(ctx context.Context, t *testing.T) {
	c.rest()
	ctx, c.stop = context.WithCancel(ctx)
	c.led = make(chan struct{})
	go func() {
		defer close(c.led)
		var fenced *kafka.FencedError
		if err := c.store.Lead(ctx); err != nil && !errors.As(err, &fenced) {
			t.Errorf("%s: %v", c.name, err)
		}
	}()
}

func (c *contender) rest() {
	if c.stop != nil {
		c.stop()
		<-c.led
	}
}

// Two processes race for one log, while requests of each step of the protocol are late, lost, answered to nobody, or arrive after they were
// given up: a commit too. No version is ever there twice, nothing that was acknowledged is ever missing, nothing that was refused is there,
// and nobody is told of an end that was not the newest.
func TestWritersThatRace(t *testing.T) {
	seed := *raceSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-race-seed=%d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	o := newOptions(t)
	var both [2]*contender
	for i := range both {
		c := &contender{name: string(rune('A' + i)), faults: &faults{random: rand.New(rand.NewPCG(seed, uint64(i)+2)), happened: map[string]int{}}}
		mine := o
		mine.Dir, mine.Kafka.Dial = t.TempDir(), c.faults.dial
		var err error
		if c.store, err = Open(t.Context(), mine); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.store.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
		both[i] = c
	}
	r := &race{topic: o.Topic, options: o, both: both, random: random, acked: map[string]es.Event{}, versions: map[es.Stream]int64{}, refused: map[string]bool{}}
	for n := range *raceRounds {
		r.round(t)
		if t.Failed() {
			t.Fatalf("round %d", n+1)
		}
	}
	r.check(t)
	happened := map[string]int{}
	for _, c := range both {
		for what, n := range c.faults.happened {
			happened[what] += n
		}
	}
	t.Logf("%d rounds: %d events acknowledged, %d refused, %d of unknown outcome; %d of those were there; faults: %v", *raceRounds, len(r.acked), len(r.refused), r.unknown, r.found, happened)
	if len(r.acked) == 0 || r.takeovers < *raceRounds {
		t.Errorf("%d events acknowledged, %d takeovers: nothing was raced for", len(r.acked), r.takeovers)
	}
}

type race struct {
	topic   string
	options Options
	both    [2]*contender
	random  *rand.Rand

	mu        sync.Mutex
	acked     map[string]es.Event // by id
	versions  map[es.Stream]int64 // acknowledged
	refused   map[string]bool
	unknown   int
	found     int
	takeovers int
}

// round has one of the two lead, then the other one claim the log while the first one still believes it leads, and then the first one
// come back; callers append through both all the time.
func (r *race) round(t *testing.T) {
	const leaders = 3
	streams := []es.Stream{{Type: "Race", ID: uuid.NewString()}, {Type: "Race", ID: uuid.NewString()}}
	for _, c := range r.both {
		c.faults.set(8)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended, end := context.WithCancel(ctx)
	defer end()
	var callers sync.WaitGroup
	for i, c := range r.both {
		for range 2 {
			random := rand.New(rand.NewPCG(r.random.Uint64(), uint64(i)))
			callers.Go(func() {
				for ended.Err() == nil {
					r.append(ctx, t, c, streams[random.IntN(2)], random)
				}
			})
		}
	}
	first := r.random.IntN(2)
	for n := range leaders {
		r.both[(first+n)%2].lead(ctx, t)
		r.takeovers++
		if n == leaders-1 || r.random.IntN(4) > 0 {
			r.progress(time.Duration(100+r.random.IntN(400)) * time.Millisecond)
		}
		time.Sleep(time.Duration(r.random.IntN(20)) * time.Millisecond) // a takeover may come at any time
	}
	end()
	callers.Wait()
	for _, c := range r.both {
		c.faults.set(0)
		c.rest()
		c.faults.late.Wait()
	}
}

// progress waits until something more was acknowledged, or so long.
func (r *race) progress(longest time.Duration) {
	count := func() int { r.mu.Lock(); defer r.mu.Unlock(); return len(r.acked) }
	for before, began := count(), time.Now(); count() < before+2 && time.Since(began) < longest; {
		time.Sleep(time.Millisecond)
	}
}

// highest is the newest acknowledged version of a stream.
func (r *race) highest(stream es.Stream) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.versions[stream]
}

// append asks one of the two to append an event behind what it says is the end, until it has an answer.
func (r *race) append(ctx context.Context, t *testing.T, c *contender, stream es.Stream, random *rand.Rand) {
	least := r.highest(stream)
	heads, err := c.store.Heads(ctx, []es.Stream{stream})
	if err != nil {
		time.Sleep(time.Duration(random.IntN(10)) * time.Millisecond)
		return
	}
	if heads[0].Version < least {
		t.Errorf("%s says that %s is at version %d, when %d was acknowledged before it was asked", c.name, stream, heads[0].Version, least)
	}
	version := heads[0].Version + 1
	e := es.Event{
		ID: uuid.NewString(), Type: "Raced", Stream: stream, Version: version, At: time.UnixMilli(1).UTC(), CorrelationID: c.name,
		Data: fmt.Appendf(nil, `{"by":%q}`, c.name),
	}
	least = r.highest(stream)
	err = c.store.Append(ctx, es.Append{Stream: stream, Expected: version - 1, Events: []es.Event{e}})
	r.mu.Lock()
	defer r.mu.Unlock()
	var conflict *es.ConflictError
	switch {
	case err == nil:
		r.acked[e.ID] = e
		r.versions[stream] = max(r.versions[stream], version)
	case errors.As(err, &conflict):
		r.refused[e.ID] = true
		if conflict.Actual < least {
			t.Errorf("%s refuses by version %d of %s, when %d was acknowledged before it was asked", c.name, conflict.Actual, stream, least)
		}
	default:
		r.unknown++
	}
}

// check reads the topic, by a reader of its own.
func (r *race) check(t *testing.T) {
	claim, err := kafka.ClaimPartition(t.Context(), r.options.Kafka, r.topic, 0) // so that nothing is under way
	if err != nil {
		t.Fatal(err)
	}
	defer claim.Close()
	versions, seen := map[es.Stream]int64{}, map[string]bool{}
	for _, m := range committedMessages(t, r.options, claim.End()) {
		e, err := es.Decode(m)
		if err != nil {
			t.Fatal(err)
		}
		if e.Version != versions[e.Stream]+1 {
			t.Errorf("%s: version %d follows %d", e.Stream, e.Version, versions[e.Stream])
		}
		if seen[e.ID] {
			t.Errorf("%s version %d: the event is there twice", e.Stream, e.Version)
		}
		if r.refused[e.ID] {
			t.Errorf("%s version %d: it was refused, and is there", e.Stream, e.Version)
		}
		versions[e.Stream], seen[e.ID] = e.Version, true
		if _, acked := r.acked[e.ID]; !acked {
			r.found++
		}
	}
	for id, e := range r.acked {
		if !seen[id] {
			t.Errorf("%s version %d of %s: it was acknowledged, and is not there", e.Stream, e.Version, e.CorrelationID)
		}
	}
	if r.found > r.unknown {
		t.Errorf("%d events are there that nobody asked for", r.found-r.unknown)
	}
}

// committedMessages reads what is committed before an offset, by another client than the store's.
func committedMessages(t *testing.T, o Options, end int64) [][]byte {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(o.Kafka.Brokers...), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{o.Topic: {0: kgo.NewOffset().AtStart()}}))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var values [][]byte
	for next := int64(0); next < end; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		fetches.EachRecord(func(m *kgo.Record) {
			next = m.Offset + 1
			if !m.Attrs.IsControl() {
				values = append(values, m.Value)
			}
		})
	}
	return values
}
