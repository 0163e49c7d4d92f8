package api

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"example.com/billing/pkg/rpc"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
)

func forEnd(d time.Duration) func(*transactionv1.TransferRequest) {
	return func(r *transactionv1.TransferRequest) { r.Wait = durationpb.New(d) }
}

// settleSoon ends the transaction, on this instance, once it was accepted.
func (h *harness) settleSoon(on *Server, kind transactionv1.SettlementKind) (ended chan struct{}) {
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		for len(h.all()) == 0 {
			time.Sleep(time.Millisecond)
		}
		settle(h.t, on, settlement(h.all()[0].Stream.ID, kind))
	}()
	return ended
}

func TestWait(t *testing.T) {
	t.Run("until this instance hears of the end", func(t *testing.T) {
		h := newHarness(t)
		ended := h.settleSoon(h.Server, transactionv1.SettlementKind_SETTLEMENT_KIND_COMPLETE)
		begin := time.Now()
		got := h.accepted("k-1", forEnd(20*time.Second))
		if got.GetStatus() != "completed" || got.GetVersion() != 2 || time.Since(begin) > 10*time.Second {
			t.Errorf("got %v after %v", got, time.Since(begin))
		}
		<-ended
		h.nobodyWaits()
	})
	t.Run("until it sees that another instance ended it", func(t *testing.T) {
		h := newHarness(t)
		ended := h.settleSoon(newServer(t, h.store, h.accounts), transactionv1.SettlementKind_SETTLEMENT_KIND_COMPENSATE)
		if got := h.accepted("k-1", forEnd(20*time.Second)); got.GetStatus() != "compensated" {
			t.Errorf("got %v", got)
		}
		<-ended
		h.nobodyWaits()
	})
	t.Run("no longer than asked", func(t *testing.T) {
		h := newHarness(t)
		if got := h.accepted("k-1", forEnd(20*time.Millisecond)); got.GetStatus() != "pending" {
			t.Errorf("got %v", got)
		}
		h.nobodyWaits()
	})
	t.Run("as the header says", func(t *testing.T) {
		h := newHarness(t)
		ended := h.settleSoon(h.Server, transactionv1.SettlementKind_SETTLEMENT_KIND_FAIL)
		if got, _, err := ask(t.Context(), h.Server, rpc.Caller{Wait: "20s"}, transfer("k-1")); err != nil || got.GetStatus() != "failed" {
			t.Errorf("got %v, %v", got, err)
		}
		<-ended
	})
	t.Run("not at all for what has ended", func(t *testing.T) {
		h := newHarness(t)
		settle(t, h.Server, settlement(h.accepted("k-1").GetTransactionId(), transactionv1.SettlementKind_SETTLEMENT_KIND_COMPLETE))
		begin := time.Now()
		got, replayed, err := ask(t.Context(), h.Server, rpc.Caller{}, transfer("k-1", forEnd(20*time.Second)))
		if err != nil || !replayed || got.GetStatus() != "completed" || time.Since(begin) > 10*time.Second {
			t.Errorf("got %v, %v, %v after %v", got, replayed, err, time.Since(begin))
		}
	})
	t.Run("a repeat waits too", func(t *testing.T) {
		h := newHarness(t)
		h.accepted("k-1")
		ended := h.settleSoon(h.Server, transactionv1.SettlementKind_SETTLEMENT_KIND_COMPLETE)
		if got, _, err := ask(t.Context(), h.Server, rpc.Caller{}, transfer("k-1", forEnd(20*time.Second))); err != nil || got.GetStatus() != "completed" {
			t.Errorf("got %v, %v", got, err)
		}
		<-ended
	})
	t.Run("until the caller leaves", func(t *testing.T) {
		h := newHarness(t)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, _, err := ask(ctx, h.Server, rpc.Caller{}, transfer("k-1", forEnd(20*time.Second))); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		h.nobodyWaits()
	})
}

// A caller who waits is answered at the stop, with the state of that moment: a saga that ends the transaction may need this
// process, and the process stops only once its callers have their answers.
func TestAWaitEndsAtTheStop(t *testing.T) {
	stop, cancel := context.WithCancel(t.Context())
	defer cancel()
	h := newPostgresInstance(t, newPool(t), stop)
	go func() {
		for h.Watches.Hub.Waiting() == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	begun := time.Now()
	if got := h.accepted("k-1", forEnd(25*time.Second)); got.GetStatus() != "pending" || time.Since(begun) > 15*time.Second {
		t.Errorf("got %v after %s", got, time.Since(begun))
	}
	h.nobodyWaits()
}

// The word of the end comes with the settlement, sooner than looking would tell.
func TestSettleGivesWord(t *testing.T) {
	h := newHarness(t)
	id := h.accepted("k-1").GetTransactionId()
	word, leave := h.Watches.Hub.Listen(stream(id))
	defer leave()
	other, leaveOther := h.Watches.Hub.Listen(stream(none))
	defer leaveOther()
	settle(t, h.Server, settlement(id, complete), settlement(none, complete))
	if len(word) != 1 || len(other) != 0 {
		t.Errorf("%d words of this end, %d of one that did not happen", len(word), len(other))
	}
}

// nobodyWaits fails the test if a waiter was left behind.
func (h *harness) nobodyWaits() {
	h.t.Helper()
	if n := h.Watches.Hub.Waiting(); n != 0 {
		h.t.Errorf("%d transactions are still waited for", n)
	}
}
