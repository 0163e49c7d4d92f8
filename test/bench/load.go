package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
)

// waitMax is how long an answer waits for a transfer's end: as long as the API allows.
const waitMax = 30 * time.Second

// errShed is of a request that the system refused because it has too much to do.
var errShed = errors.New("shed")

// outcome is what a call led to.
type outcome struct {
	accepted, completed int
	id                  string // of the one transfer; empty where there were many
}

// send asks for transfers and waits until each has ended.
type send func(ctx context.Context, w *world, n int, draw func() pair) (outcome, error)

// overGRPC sends one transfer and waits for its end.
func overGRPC(ctx context.Context, w *world, n int, draw func() pair) (outcome, error) {
	p := draw()
	res, err := w.transactions[n%len(w.transactions)].Transfer(ctx, &transactionv1.TransferRequest{
		IdempotencyKey: w.key(), SourceAccountId: p.from, DestinationAccountId: p.to, Amount: "0.01", Currency: currency, Wait: durationpb.New(waitMax),
	})
	if status.Code(err) == codes.ResourceExhausted {
		return outcome{}, errShed
	}
	if err != nil {
		return outcome{}, err
	}
	return outcome{1, ended(res.GetTransaction().GetStatus()), res.GetTransaction().GetTransactionId()}, nil
}

func ended(status string) int {
	if status == "completed" {
		return 1
	}
	return 0
}

// overREST is overGRPC through the gateway.
func overREST(client *http.Client, gateway string) send {
	url := "http://" + gateway + "/api/v1/transactions/transfer?wait=" + waitMax.String()
	return func(ctx context.Context, w *world, _ int, draw func() pair) (outcome, error) {
		p := draw()
		body, err := json.Marshal(map[string]string{
			"idempotencyKey": w.key(), "sourceAccountId": p.from, "destinationAccountId": p.to, "amount": "0.01", "currency": currency,
		})
		if err != nil {
			return outcome{}, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
		if err != nil {
			return outcome{}, err
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := client.Do(req)
		if err != nil {
			return outcome{}, err
		}
		defer res.Body.Close()
		answer, err := io.ReadAll(res.Body)
		if err != nil {
			return outcome{}, err
		}
		switch {
		case res.StatusCode == http.StatusTooManyRequests:
			return outcome{}, errShed
		case res.StatusCode >= http.StatusMultipleChoices:
			return outcome{}, fmt.Errorf("%s: %s", res.Status, answer)
		}
		var t struct{ TransactionID, Status string }
		if err := json.Unmarshal(answer, &t); err != nil {
			return outcome{}, err
		}
		return outcome{1, ended(t.Status), t.TransactionID}, nil
	}
}

// batchSize is how many transfers one call of the batch API asks for.
const batchSize = 100

// inBatches sends many transfers in one call and asks until all have ended.
func inBatches(ctx context.Context, w *world, n int, draw func() pair) (outcome, error) {
	amount := "0.01"
	req := &transactionv1.BatchRequest{}
	for range batchSize {
		p := draw()
		req.Transactions = append(req.Transactions, &transactionv1.BatchItem{
			Type: "transfer", IdempotencyKey: w.key(), SourceAccountId: p.from, DestinationAccountId: p.to, Amount: &amount, Currency: currency,
		})
	}
	res, err := w.transactions[n%len(w.transactions)].Batch(ctx, req)
	if status.Code(err) == codes.ResourceExhausted {
		return outcome{}, errShed
	}
	if err != nil {
		return outcome{}, err
	}
	var open []string
	for _, r := range res.GetResults() {
		if id := r.GetTransaction().GetTransactionId(); id != "" {
			open = append(open, id)
		}
	}
	accepted := len(open)
	for len(open) > 0 {
		if !pause(ctx, 10*time.Millisecond) {
			return outcome{accepted: accepted, completed: accepted - len(open)}, ctx.Err()
		}
		left, err := w.settlements.FilterOpenTransactions(ctx, &transactionv1.FilterOpenTransactionsRequest{TransactionIds: open})
		if err != nil {
			return outcome{accepted: accepted, completed: accepted - len(open)}, err
		}
		open = left.GetTransactionIds()
	}
	return outcome{accepted: accepted, completed: accepted}, nil
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// tally is what a load led to. Safe for concurrent use.
type tally struct {
	accepted, completed, shed, failed atomic.Int64

	mu       sync.Mutex
	whole    *hdrhistogram.Histogram // from request to completed transfer, in microseconds
	lately   *hdrhistogram.Histogram // as whole, since it was last asked for
	refusals *hdrhistogram.Histogram // from request to the answer that it was shed
	sagas    *hdrhistogram.Histogram // from request to the answer that shows the saga completed, of some
	failure  error                   // the first one
}

// longest is the longest latency that is told apart, in microseconds.
var longest = (2 * waitMax).Microseconds()

func newTally() *tally {
	return &tally{whole: hdrhistogram.New(1, longest, 3), lately: hdrhistogram.New(1, longest, 3), refusals: hdrhistogram.New(1, longest, 3), sagas: hdrhistogram.New(1, longest, 3)}
}

// note records one call that began, or should have begun, at a time.
func (t *tally) note(began time.Time, o outcome, err error) {
	took := min(time.Since(began).Microseconds(), longest)
	t.accepted.Add(int64(o.accepted))
	t.completed.Add(int64(o.completed))
	switch {
	case errors.Is(err, errShed):
		t.shed.Add(1)
	case err != nil:
		t.failed.Add(1)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case errors.Is(err, errShed):
		_ = t.refusals.RecordValue(took)
	case err != nil:
		if t.failure == nil {
			t.failure = err
		}
	default:
		for _, h := range []*hdrhistogram.Histogram{t.whole, t.lately} {
			_ = h.RecordValues(took, int64(max(o.completed, 1)))
		}
	}
}

// sagaEvery is of how many transfers one saga is asked for: its last step has completed the transfer a moment before it has ended itself.
const sagaEvery = 20

// follow notes when a completed transfer's saga is seen to have completed.
func (t *tally) follow(ctx context.Context, w *world, began time.Time, id string) {
	if id == "" {
		return
	}
	res, err := w.sagas.GetSaga(ctx, &sagav1.GetSagaRequest{SagaId: id})
	if err != nil || res.GetSaga().GetStatus() != "completed" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	_ = t.sagas.RecordValue(min(time.Since(began).Microseconds(), longest))
}

// closedLoop has callers who each wait for one call's end before the next, until ctx ends. What ends later is not counted.
func closedLoop(ctx context.Context, w *world, t *tally, callers int, do send, d draw) {
	var g sync.WaitGroup
	for n := range callers {
		g.Go(func() {
			r := rand.New(rand.NewPCG(uint64(n), 7)) //nolint:gosec // drawn anew each time alike
			for ctx.Err() == nil {
				began := time.Now()
				o, err := do(context.WithoutCancel(ctx), w, n, func() pair { return d(r) })
				if ctx.Err() != nil {
					return
				}
				t.note(began, o, err)
				if err == nil && r.IntN(sagaEvery) == 0 {
					t.follow(context.WithoutCancel(ctx), w, began, o.id)
				}
				if err != nil {
					pause(ctx, 20*time.Millisecond)
				}
			}
		})
	}
	g.Wait()
}

// openMax is how many calls of an open loop may be under way: what is beyond counts as failed.
const openMax = 50_000

// openLoop begins calls at a rate, whatever becomes of the earlier ones, until ctx ends, and waits for their end. Latency counts from
// when a call was to begin.
func openLoop(ctx context.Context, w *world, t *tally, perSecond float64, do send, d draw) {
	var (
		g     sync.WaitGroup
		under atomic.Int64
		r     = rand.New(rand.NewPCG(11, 7)) //nolint:gosec // drawn anew each time alike
		began = time.Now()
	)
	for n := 0; ; n++ {
		at := began.Add(time.Duration(float64(n) / perSecond * float64(time.Second)))
		if left := time.Until(at); left > 0 && !pause(ctx, left) || ctx.Err() != nil {
			break
		}
		p := d(r)
		if under.Add(1) > openMax {
			under.Add(-1)
			t.note(at, outcome{}, errors.New("more than "+strconv.Itoa(openMax)+" calls under way"))
			continue
		}
		g.Go(func() {
			defer under.Add(-1)
			o, err := do(context.WithoutCancel(ctx), w, n, func() pair { return p })
			t.note(at, o, err)
			if err == nil && n%sagaEvery == 0 {
				t.follow(context.WithoutCancel(ctx), w, at, o.id)
			}
		})
	}
	g.Wait()
}
