package kafka

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"time"

	"example.com/billing/pkg/kafka"
)

const (
	catchUpMax = 10 * time.Minute // to read the log to its end
	sayEvery   = 10 * time.Second // of a long reading
	calm       = time.Minute      // a claim that lasted as long was no failure of the ones before
)

// Lead claims the log and serves it until ctx ends, which is no error, or another process has claimed it: a *kafka.FencedError, after which
// it must not be called again before somebody says that it is this process's turn. Where a commit's outcome is not known it stops answering, claims
// anew and reads what the log says. One call at a time.
func (s *Store) Lead(ctx context.Context) error {
	for attempt := 0; ; attempt++ {
		began := time.Now()
		var err error
		if attempt > 0 {
			err = s.turnIsOurs(ctx)
		}
		if err == nil {
			err = s.lead(ctx)
		}
		if time.Since(began) > calm {
			attempt = 0
		}
		var fenced *kafka.FencedError
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // that is how it is to end
		case errors.As(err, &fenced), errors.Is(err, errState), errors.Is(err, ErrTurnLost):
			return err
		}
		s.opts.Log.Warn("the log is claimed anew", "topic", s.opts.Topic, "error", err)
		select {
		case <-time.After(min(time.Duration(attempt)*50*time.Millisecond, time.Second)):
		case <-ctx.Done():
		}
	}
}

// turnIsOurs asks before a claim that is not the first: where it is not known whose turn it is, it may be another process's, which a claim would end.
func (s *Store) turnIsOurs(ctx context.Context) error {
	if s.opts.Turn == nil {
		return nil
	}
	return s.opts.Turn(ctx)
}

// errState says that the local state is broken: what was read does not follow what it has.
var errState = errors.New("the local state")

func (s *Store) lead(ctx context.Context) error {
	claim, err := kafka.ClaimPartition(ctx, s.opts.Kafka, s.opts.Topic, 0)
	if err != nil {
		return err
	}
	defer claim.Close()
	if err := s.catchUp(ctx, claim.End()); err != nil {
		return err
	}
	floor, err := vouched(ctx, claim)
	if err != nil {
		return err
	}
	over := make(chan error, 1)
	broken := s.state.failure // the state stays the same while this process leads
	s.lock(func() {
		s.claim, s.ended, s.floor = claim, over, floor
		select {
		case <-s.leading:
		default:
			close(s.leading)
		}
	})
	defer s.lock(func() { s.claim = nil })
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-broken.broken:
		return broken.err()
	case err := <-over:
		return err
	}
}

// lock changes what the store is.
func (s *Store) lock(change func()) {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// Follow reads the log into the local state, as it grows, until ctx ends: a process that may lead later, and then has little left to read.
// It does not answer meanwhile, and returns an error only where the state is broken.
func (s *Store) Follow(ctx context.Context) error {
	for {
		err := s.readTo(ctx, math.MaxInt64)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // that is how it is to end
		case errors.Is(err, errState):
			return err
		}
		s.opts.Log.Warn("the log cannot be followed", "topic", s.opts.Topic, "error", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

// catchUp reads the log to an offset.
func (s *Store) catchUp(ctx context.Context, end int64) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpMax)
	defer cancel()
	return s.readTo(ctx, end)
}

// readTo reads the log to an offset into the state. A state that is ahead of the log, or whose newest event is not where the state has it,
// is of another history (brokers that lost power may have lost what they had acknowledged), and is made anew.
func (s *Store) readTo(ctx context.Context, end int64) error {
	s.turn.Lock() // and nobody reads: it does not lead
	defer s.turn.Unlock()
	follows := s.state.at.Next <= end
	if follows && s.state.at.Position > 0 {
		var err error
		if follows, err = s.follows(ctx); err != nil {
			return err
		}
	}
	if !follows {
		if err := s.startOver(); err != nil { // the old state is closed: there is nothing to go on with
			return fmt.Errorf("%w: %w", errState, err)
		}
	}
	tail, err := kafka.NewTail(s.opts.Kafka, s.opts.Topic, 0, s.state.at.Next)
	if err != nil {
		return err
	}
	defer tail.Close()
	began, first := time.Now(), s.state.at.Position
	for said := began; tail.Next() < end; {
		messages, err := tail.Read(ctx)
		if err != nil {
			return err
		}
		events := make([]stored, 0, len(messages))
		for _, m := range messages {
			e, err := read(m)
			switch {
			case errors.Is(err, errForeign):
				s.opts.Log.Warn("a message that this store has not written is passed over", "topic", s.opts.Topic, "offset", m.Offset, "error", err)
			case err != nil:
				return err
			default:
				events = append(events, e)
			}
		}
		if tail.Next() == s.state.at.Next {
			continue
		}
		if err := s.state.apply(events, nil, tail.Next()); err != nil {
			return fmt.Errorf("%w: %w", errState, err)
		}
		if n := s.state.at.Position - first; len(events) > 0 && time.Since(said) > sayEvery {
			said = time.Now()
			s.opts.Log.Info("reading the log", "topic", s.opts.Topic, "offset", tail.Next(), "end", end, "events_per_second", int64(float64(n)/time.Since(began).Seconds()))
		}
	}
	return nil
}

// follows reports whether the log has the state's newest event where the state has it.
func (s *Store) follows(ctx context.Context) (bool, error) {
	tail, err := kafka.NewTail(s.opts.Kafka, s.opts.Topic, 0, s.state.at.Offset)
	if err != nil {
		return false, err
	}
	defer tail.Close()
	messages, err := tail.Read(ctx)
	if err != nil || len(messages) == 0 {
		return false, err
	}
	e, err := read(messages[0])
	return err == nil && e.offset == s.state.at.Offset && e.ID == s.state.at.ID, nil // what cannot be read is not that event
}

// startOver throws the state away.
func (s *Store) startOver() error {
	id := s.state.at.Log
	dir := filepath.Join(s.opts.Dir, s.opts.Topic)
	s.opts.Log.Warn("the local state is not of this log's history, and is made anew", "topic", s.opts.Topic)
	if err := s.state.close(); err != nil {
		return err
	}
	st, err := openState(dir, "", s.recall.Decode) // not the log's: it is removed
	if err == nil {
		err = st.close()
	}
	if err == nil {
		st, err = openState(dir, id, s.recall.Decode)
	}
	if err != nil {
		return err
	}
	s.state = st
	return nil
}
