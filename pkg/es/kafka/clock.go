package kafka

import (
	"context"
	"fmt"
	"time"

	"example.com/billing/pkg/batch"
	"example.com/billing/pkg/kafka"
)

// Clock is es.Store's. The time is noted beside the log, for whoever leads next: its clock may be behind this one.
func (s *Store) Clock(ctx context.Context) (time.Time, error) {
	r, err := s.clocks.Do(ctx, struct{}{})
	return r, unavailable("clock", err)
}

// vouch answers all that ask for the time. The note comes before the question whether the claim stands: who claims later finds it.
func (s *Store) vouch(ctx context.Context, asks []struct{}) []batch.Result[time.Time] {
	results := make([]batch.Result[time.Time], len(asks))
	s.turn.Lock()
	defer s.turn.Unlock()
	at, err := s.vouchNow(ctx)
	for i := range results {
		results[i] = batch.Result[time.Time]{Value: at, Err: err}
	}
	return results
}

func (s *Store) vouchNow(ctx context.Context) (time.Time, error) {
	if s.claim == nil {
		return time.Time{}, ErrNotLeading
	}
	at := s.now()
	if err := s.claim.Note(ctx, at.Format(time.RFC3339Nano)); err != nil {
		return at, err
	}
	s.floor = at
	return at, s.stillHeld(ctx)
}

// vouched is the time up to which the past was said to be complete.
func vouched(ctx context.Context, claim *kafka.Claim) (newest time.Time, err error) {
	texts, err := claim.Noted(ctx)
	for _, text := range texts {
		at, parseErr := time.Parse(time.RFC3339Nano, text)
		if parseErr != nil {
			return newest, fmt.Errorf("the note beside the log: %w", parseErr)
		}
		if at.After(newest) {
			newest = at
		}
	}
	return newest, err
}

// now is a time behind everything recorded and everything vouched for.
func (s *Store) now() time.Time {
	at := time.Now().UTC().Truncate(tick)
	for _, least := range []time.Time{s.state.at.Recorded, s.floor} {
		if least = least.Add(tick); at.Before(least) {
			at = least
		}
	}
	return at
}

// tick is how far apart groups are recorded at least.
const tick = time.Microsecond
