// Package kafka is an event store whose truth is a Kafka topic of one partition: the events, in the order they were committed, and nothing
// else. Kafka cannot write on a condition, so expected versions hold by one writer: the process that leads the log (kafka.Claim). It knows
// every stream's end from a state on its local disk, which follows the log and can be thrown away.
//
// What it promises on power loss is what the topic does: an event is on all in-sync replicas when Append returns, and brokers do not
// flush to disk before they acknowledge. With one broker, power loss can lose acknowledged events; with a replication factor of 3 and
// min.insync.replicas of 2, two brokers would have to lose power at once.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"example.com/billing/pkg/batch"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/kafka"
)

const (
	groupMax = 256     // appends of one commit
	bytesMax = 4 << 20 // of one commit's events
)

// Options say where the log and its state are.
type Options struct {
	Kafka kafka.Config
	Topic string // one partition; see Topic
	Dir   string // of the local state, this process's own
	// Turn is asked before the log is claimed again: an error that wraps ErrTurnLost ends Lead, after any other one it is asked again. nil = it always
	// is this process's turn.
	Turn func(ctx context.Context) error
	Log  *slog.Logger
}

// Topic is how the log's topic must be.
func Topic(name string, replication int16) kafka.Topic {
	return kafka.Topic{Name: name, Partitions: 1, Replication: replication}
}

// ErrNotLeading is returned while this process does not lead the log. It comes within an *es.UnavailableError: nothing was written, and
// another process, or this one soon, can be asked again.
var ErrNotLeading = errors.New("this process does not lead the log")

// ErrTurnLost says that another process is to lead.
var ErrTurnLost = errors.New("it is another process's turn to lead")

// Store is an es.Store. It answers while Lead runs. Safe for concurrent use.
type Store struct {
	opts    Options
	id      string // the topic's
	recall  es.Recall
	appends *batch.Queue[[]es.Append, struct{}]
	asks    *batch.Queue[struct{}, struct{}] // whether it still leads
	clocks  *batch.Queue[struct{}, time.Time]

	turn sync.Mutex // held by whoever uses the claim

	mu      sync.RWMutex // held to write for as long as what follows changes, the state included; taken behind turn
	state   *state
	floor   time.Time     // what was recorded before is complete: somebody was told so
	claim   *kafka.Claim  // nil = not leading
	ended   chan<- error  // tells Lead that the claim is over
	leading chan struct{} // closed once it leads
}

// Open opens the local state. The topic must be there.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	id, err := kafka.TopicID(ctx, o.Kafka, o.Topic)
	if err != nil {
		return nil, err
	}
	s := &Store{opts: o, id: id, leading: make(chan struct{})}
	if s.state, err = openState(filepath.Join(o.Dir, o.Topic), id, s.recall.Decode); err != nil {
		return nil, err
	}
	s.appends = batch.New(batch.Options{BatchMax: groupMax}, s.flush)
	s.asks = batch.New(batch.Options{BatchMax: 4096, FlightMax: 2}, s.held)
	s.clocks = batch.New(batch.Options{BatchMax: 4096}, s.vouch)
	return s, nil
}

// Close ends what is under way, and the local state. Lead must have returned.
func (s *Store) Close(ctx context.Context) error {
	return errors.Join(s.appends.Close(ctx), s.asks.Close(ctx), s.clocks.Close(ctx), s.state.close())
}

// Decode reads an event's JSON; that of an event which this process committed a while ago costs a look-up.
func (s *Store) Decode(b []byte) (es.Event, error) { return s.recall.Decode(b) }

// Name is the log's: its topic and the topic's id, which another topic of that name does not have.
func (s *Store) Name() string { return s.opts.Topic + " " + s.id }

// Leading is closed once the store leads, for the first time.
func (s *Store) Leading() <-chan struct{} { return s.leading }

// Scope is the whole store.
func (s *Store) Scope() es.Scope { return es.ScopeStore }

// Append is es.Store's.
func (s *Store) Append(ctx context.Context, streams ...es.Append) error {
	return s.AppendBatch(ctx, [][]es.Append{streams})[0]
}

// AppendBatch is es.Store's.
func (s *Store) AppendBatch(ctx context.Context, items [][]es.Append) []error {
	errs := make([]error, len(items))
	if err := ctx.Err(); err != nil {
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	for i, r := range s.appends.DoAll(ctx, items) {
		errs[i] = unavailable("append", r.Err)
	}
	return errs
}

// unavailable tells of a failure that asking again may help against; what the contract names stays as it is.
func unavailable(op string, err error) error {
	var (
		conflict  *es.ConflictError
		duplicate *es.DuplicateError
		limit     *es.LimitError
		known     *es.UnavailableError
		plain     refusal
	)
	if err == nil || errors.As(err, &conflict) || errors.As(err, &duplicate) || errors.As(err, &limit) || errors.As(err, &known) || errors.As(err, &plain) {
		return err
	}
	return &es.UnavailableError{Op: op, Err: err}
}

// refusal is an append that no store can take.
type refusal struct{ error }

// Unwrap returns why.
func (r refusal) Unwrap() error { return r.error }

// flush commits one group.
func (s *Store) flush(ctx context.Context, items [][]es.Append) []batch.Result[struct{}] {
	results := make([]batch.Result[struct{}], len(items))
	s.turn.Lock()
	defer s.turn.Unlock()
	for begin := 0; begin < len(items); {
		g, end := s.newGroup(), begin
		for ; end < len(items) && g.bytes < bytesMax; end++ {
			results[end].Err = g.add(items[end])
		}
		if err := s.commit(ctx, g); err != nil {
			for i := begin; i < len(items); i++ {
				results[i].Err = err // what was refused too: it may have been decided on a past that is over
			}
			break
		}
		begin = end
	}
	return results
}

// commit writes a group to the log and then to the state. With an error the store leads no longer.
func (s *Store) commit(ctx context.Context, g *group) error {
	if s.claim == nil {
		return ErrNotLeading
	}
	if len(g.messages) == 0 {
		return s.stillHeld(ctx) // what was refused, or only checked, holds now
	}
	offsets, err := s.claim.Commit(ctx, g.messages)
	if err == nil {
		for i := range g.events {
			g.events[i].offset = offsets[i]
			s.recall.Add(g.events[i].payload, g.events[i].Event)
		}
		s.mu.Lock()
		if err = s.state.apply(g.events, g.snapshots, offsets[len(offsets)-1]+1); err != nil {
			err = fmt.Errorf("%w: %w", errState, err)
		}
		s.mu.Unlock()
	}
	if err != nil {
		s.end(err)
	}
	return err
}

// end has the store lead no longer.
func (s *Store) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.claim = nil
	s.ended <- err // once for each claim
}

func (s *Store) stillHeld(ctx context.Context) error {
	if s.claim == nil {
		return ErrNotLeading
	}
	err := s.claim.Held(ctx)
	if err != nil {
		s.end(err)
	}
	return err
}

// held answers whether what was read before it was asked was the newest there is.
func (s *Store) held(ctx context.Context, asks []struct{}) []batch.Result[struct{}] {
	results := make([]batch.Result[struct{}], len(asks))
	s.turn.Lock()
	defer s.turn.Unlock()
	err := s.stillHeld(ctx)
	for i := range results {
		results[i].Err = err
	}
	return results
}

// look reads the state, and then makes sure that no other process leads: what was read was then the newest.
func (s *Store) look(ctx context.Context, op string, f func(*state) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.RLock()
	err := ErrNotLeading
	if s.claim != nil {
		err = f(s.state)
	}
	s.mu.RUnlock()
	if err == nil {
		_, err = s.asks.Do(ctx, struct{}{})
	}
	return unavailable(op, err)
}

// Load is es.Store's.
func (s *Store) Load(ctx context.Context, stream es.Stream, after int64, limit int) (events []es.Event, err error) {
	err = s.look(ctx, "load", func(st *state) error { events, err = st.load(stream, after, limit); return err })
	return events, err
}

// LoadEach is es.Store's. It asks once, for all spans, whether this process still leads.
func (s *Store) LoadEach(ctx context.Context, spans []es.Span) ([]batch.Result[[]es.Event], error) {
	loaded := make([]batch.Result[[]es.Event], len(spans))
	err := s.look(ctx, "load", func(st *state) error {
		for i, span := range spans {
			if err := ctx.Err(); err != nil {
				return err
			}
			events, err := st.load(span.Stream, span.After, span.Limit)
			loaded[i] = batch.Result[[]es.Event]{Value: events, Err: unavailable("load "+span.Stream.String(), err)}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return loaded, nil
}

// Heads is es.Store's.
func (s *Store) Heads(ctx context.Context, streams []es.Stream) ([]es.Head, error) {
	heads := make([]es.Head, len(streams))
	err := s.look(ctx, "heads", func(st *state) (err error) {
		for i := range streams {
			if heads[i], err = st.head(streams[i]); err != nil {
				return err
			}
		}
		return nil
	})
	return heads, err
}

// Snapshot is es.Store's.
func (s *Store) Snapshot(ctx context.Context, stream es.Stream, version int64) (h es.Head, err error) {
	err = s.look(ctx, "snapshot", func(st *state) error { h, err = st.kept(stream, version); return err })
	return h, err
}

// Lookup is es.Store's.
func (s *Store) Lookup(ctx context.Context, ids []string) (events []es.Event, err error) {
	err = s.look(ctx, "look up", func(st *state) error {
		for _, id := range ids {
			e, found, err := st.byID(id)
			if err != nil {
				return err
			}
			if found {
				events = append(events, e)
			}
		}
		return nil
	})
	return events, err
}

// ReadAll is es.Store's.
func (s *Store) ReadAll(ctx context.Context, aggregateType string, from es.From) iter.Seq2[es.Event, error] {
	const pageMax = 500
	return func(yield func(es.Event, error) bool) {
		next := from.After + 1
		for first := true; ; first = false {
			var page []es.Event
			err := s.look(ctx, "read all", func(st *state) error {
				if first && !from.Since.IsZero() {
					at, err := st.recordedFrom(from.Since)
					if err != nil {
						return err
					}
					next = max(next, at)
				}
				for ; next <= st.at.Position && len(page) < pageMax; next++ {
					e, found, err := st.byPosition(next)
					if err != nil || !found {
						return errors.Join(err, fmt.Errorf("%w has no event at position %d", errState, next))
					}
					page = append(page, e)
				}
				return nil
			})
			if err != nil {
				yield(es.Event{}, err)
				return
			}
			for _, e := range page {
				if (aggregateType == "" || e.Stream.Type == aggregateType) && !yield(e, nil) {
					return
				}
			}
			if len(page) == 0 {
				return
			}
		}
	}
}

// End is es.Store's.
func (s *Store) End(ctx context.Context) (end int64, err error) {
	// What is visible in the topic may not be in the state yet: whoever asks for the end has his turn after the commit that is under way.
	if _, err = s.asks.Do(ctx, struct{}{}); err != nil {
		return 0, unavailable("end", err)
	}
	err = s.look(ctx, "end", func(st *state) error { end = st.at.Position; return nil })
	return end, err
}
