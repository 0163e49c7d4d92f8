package api

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/billing/pkg/batch"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
	"example.com/billing/pkg/rpc"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
)

// reading is a store that counts reads of single streams.
type reading struct {
	es.Store
	n atomic.Int64
}

func (r *reading) Heads(ctx context.Context, s []es.Stream) ([]es.Head, error) {
	r.n.Add(1)
	return r.Store.Heads(ctx, s)
}

func (r *reading) Load(ctx context.Context, s es.Stream, after int64, limit int) ([]es.Event, error) {
	r.n.Add(1)
	return r.Store.Load(ctx, s, after, limit)
}

func (r *reading) LoadEach(ctx context.Context, spans []es.Span) ([]batch.Result[[]es.Event], error) {
	r.n.Add(1)
	return r.Store.LoadEach(ctx, spans)
}

// A caller who waits hears of the end from memory where this process settles, and by looking into the store where another one does.
func TestWaitReadsOnlyForOthers(t *testing.T) {
	for _, elsewhere := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			store, a := &reading{Store: memory.New()}, newAccounts()
			h := &harness{Server: newServer(t, store, a), t: t, store: store.Store, accounts: a}
			settles := h.Server
			if elsewhere {
				settles = newServer(t, store.Store, a)
			}
			type answer struct {
				*transactionv1.Transaction
				err error
			}
			got := make(chan answer, 1)
			go func() {
				tr, _, err := ask(t.Context(), h.Server, rpc.Caller{}, transfer("k-1", forEnd(20*time.Second)))
				got <- answer{tr, err}
			}()
			synctest.Wait() // it waits
			began := time.Now()
			settle(t, settles, settlement(h.all()[0].Stream.ID, complete))
			tr := <-got
			if tr.err != nil || tr.GetStatus() != "completed" || tr.GetVersion() != 2 {
				t.Errorf("got %v, %v", tr.Transaction, tr.err)
			}
			n, took := store.n.Load(), time.Since(began)
			if !elsewhere && (n != 0 || took >= pollFirst) {
				t.Errorf("%d reads in %v for an end that this process has brought about", n, took)
			}
			if elsewhere && (n == 0 || took > pollFirst) {
				t.Errorf("%d reads; another process's end was found after %v", n, took)
			}
			h.nobodyWaits()
			for _, s := range []*Server{h.Server, settles} {
				if err := s.Executor.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestWaitLooksMoreAndMoreSeldom(t *testing.T) {
	for _, tc := range []struct {
		name    string
		news    []time.Duration // when there is news
		glances int             // the one that sees the end, from 1; 0 = none does
		wait    time.Duration
		looks   []time.Duration
		took    time.Duration
	}{
		{"known at once", nil, 1, time.Minute, nil, 0},
		{"news", []time.Duration{100 * time.Millisecond}, 2, time.Minute, nil, 100 * time.Millisecond},
		{"news of something else", []time.Duration{100 * time.Millisecond, 200 * time.Millisecond}, 3, time.Minute,
			[]time.Duration{100 * time.Millisecond}, 200 * time.Millisecond},
		{"no news", nil, 0, 16 * time.Second,
			[]time.Duration{pollFirst, 3 * pollFirst, 3*pollFirst + pollMax, 3*pollFirst + 2*pollMax, 3*pollFirst + 3*pollMax, 16 * time.Second}, 16 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, news := time.Now(), make(chan struct{})
				go func() {
					for _, at := range tc.news {
						time.Sleep(at - time.Since(began))
						news <- struct{}{}
					}
				}()
				glances := 0
				var looks []time.Duration
				err := wait(t.Context(), nil, news, tc.wait, func() bool { glances++; return glances == tc.glances },
					func(context.Context) (bool, error) { looks = append(looks, time.Since(began)); return false, nil })
				if err != nil || !slices.Equal(looks, tc.looks) || time.Since(began) != tc.took {
					t.Errorf("looked at %v, took %v (%v); want %v, %v", looks, time.Since(began), err, tc.looks, tc.took)
				}
			})
		})
	}
}

func TestWaitEndsWithAFailedLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := errors.New("no answer")
		err := wait(t.Context(), nil, nil, time.Minute, func() bool { return false }, func(context.Context) (bool, error) { return false, lost })
		if !errors.Is(err, lost) {
			t.Errorf("got %v", err)
		}
	})
}
