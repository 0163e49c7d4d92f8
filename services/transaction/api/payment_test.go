package api

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/rpc"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/transaction"
	"example.com/billing/services/transaction/readmodel"
)

// newPostgresHarness is the service as it runs, without Kafka: show has the list follow.
func newPostgresHarness(t *testing.T) (h *harness, show func()) {
	t.Helper()
	pool := newPool(t)
	h = newPostgresInstance(t, pool, t.Context())
	h.List, h.pool = readmodel.New(pool), pool
	follow := h.List.Projection(h.store.Load)
	return h, func() {
		t.Helper()
		if err := follow.Handle(t.Context(), h.all()); err != nil {
			t.Fatal(err)
		}
	}
}

func (h *harness) pay(key, amount string) *transactionv1.Transaction {
	h.t.Helper()
	res, err := h.Pay(h.t.Context(), &transactionv1.PayRequest{IdempotencyKey: key, CustomerAccountId: alice, MerchantAccountId: bob, Amount: amount, Currency: "USD"})
	if err != nil {
		h.t.Fatal(err)
	}
	return res.GetTransaction()
}

// end ends a transaction as its saga does.
func (h *harness) end(tr *transactionv1.Transaction, kind transactionv1.SettlementKind) *transactionv1.SettlementResult {
	h.t.Helper()
	x := settlement(tr.GetTransactionId(), kind)
	if x.ReservedOn = tr.GetPaymentId(); x.GetReservedOn() == "" {
		x.ReservedOn = tr.GetHoldId()
	}
	return settle(h.t, h.Server, x)[0]
}

// paid is a completed payment.
func (h *harness) paid(key, amount string) *transactionv1.Transaction {
	h.t.Helper()
	p := h.pay(key, amount)
	h.end(p, complete)
	return p
}

func (h *harness) refund(key, payment string, amount *string) (*transactionv1.Transaction, error) {
	res, err := h.Refund(h.t.Context(), &transactionv1.RefundRequest{IdempotencyKey: key, PaymentId: payment, Amount: amount, Reason: proto.String("late")})
	return res.GetTransaction(), err
}

func (h *harness) read(id string) *transactionv1.Transaction {
	h.t.Helper()
	res, err := h.GetTransaction(h.t.Context(), &transactionv1.GetTransactionRequest{TransactionId: id})
	if err != nil {
		h.t.Fatal(err)
	}
	return res.GetTransaction()
}

func TestRefundOfAPayment(t *testing.T) {
	h := newHarness(t)
	p := h.paid("p-1", "100.00")
	r, err := h.refund("r-1", p.GetTransactionId(), proto.String("40"))
	if err != nil || r.GetType() != "refund" || r.GetSourceAccountId() != bob || r.GetDestinationAccountId() != alice || r.GetAmount() != "40.00" ||
		r.GetCurrency() != "USD" || r.GetPaymentId() != p.GetTransactionId() || r.GetReason() != "late" {
		t.Fatalf("got %v, %v", r, err)
	}
	if now := h.read(p.GetTransactionId()); now.GetRefundingAmount() != "40.00" || now.GetRefundedAmount() != "0.00" {
		t.Errorf("under way: %v", now)
	}
	again, err := h.refund("r-1", p.GetTransactionId(), proto.String("40.00"))
	if err != nil || again.GetTransactionId() != r.GetTransactionId() {
		t.Errorf("again: %v, %v", again, err)
	}
	if _, err := h.refund("r-1", p.GetTransactionId(), nil); reasonOf(err) != "IDEMPOTENCY_CONFLICT" {
		t.Errorf("the same key for all of it: %v", err)
	}
	if _, err := h.refund("r-2", p.GetTransactionId(), proto.String("60.01")); reasonOf(err) != "REFUND_EXCEEDS_PAYMENT" {
		t.Errorf("too much: %v", err)
	}
	if res := settle(t, h.Server, settlement(r.GetTransactionId(), complete))[0]; res.GetStatus() != "" {
		t.Errorf("settled without the payment: %v", res)
	}
	for range 2 {
		if res := h.end(r, complete); res.GetStatus() != "completed" {
			t.Errorf("settled as %v", res)
		}
	}
	if now := h.read(p.GetTransactionId()); now.GetRefundingAmount() != "0.00" || now.GetRefundedAmount() != "40.00" {
		t.Errorf("after it: %v", now)
	}
	rest, err := h.refund("r-3", p.GetTransactionId(), nil)
	if err != nil || rest.GetAmount() != "60.00" {
		t.Errorf("the rest: %v, %v", rest, err)
	}
	h.end(rest, transactionv1.SettlementKind_SETTLEMENT_KIND_FAIL)
	if now := h.read(p.GetTransactionId()); now.GetRefundingAmount() != "0.00" || now.GetRefundedAmount() != "40.00" {
		t.Errorf("after a refund that failed: %v", now)
	}
}

func TestRefundsThatAreRefused(t *testing.T) {
	h := newHarness(t)
	p, pending := h.paid("p-1", "100.00"), h.pay("p-2", "100.00")
	transferred := h.accepted("t-1")
	for name, tc := range map[string]struct {
		payment, amount, reason string
	}{
		"no such payment": {none, "1.00", "TRANSACTION_NOT_FOUND"}, "a payment under way": {pending.GetTransactionId(), "1.00", "NOT_REFUNDABLE"},
		"a transfer": {transferred.GetTransactionId(), "1.00", "NOT_REFUNDABLE"}, "no id": {"", "1.00", "INVALID_ARGUMENT"},
		"no amount of the currency": {p.GetTransactionId(), "1.001", "INVALID_ARGUMENT"}, "nothing": {p.GetTransactionId(), "0", "INVALID_ARGUMENT"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := h.refund("r-"+name, tc.payment, &tc.amount); reasonOf(err) != tc.reason {
				t.Errorf("got %v", err)
			}
		})
	}
	h.accounts.set(bob, transaction.Side{Found: true, AccountType: "USER", Currency: "USD", Status: "suspended"})
	if _, err := h.refund("r-1", p.GetTransactionId(), nil); reasonOf(err) != "ACCOUNT_SUSPENDED" {
		t.Errorf("got %v", err)
	}
}

// However many refunds and captures come at once, on two instances: all of them together never exceed the whole.
func TestReservationsUnderConcurrency(t *testing.T) {
	const n = 64
	race := func(t *testing.T, ask func(i int) error, over string) {
		t.Helper()
		var wg sync.WaitGroup
		errs := make([]error, n)
		for i := range n {
			wg.Go(func() { errs[i] = ask(i) })
		}
		wg.Wait()
		accepted := 0
		for _, err := range errs {
			switch {
			case err == nil:
				accepted++
			case reasonOf(err) != over:
				t.Error(err)
			}
		}
		if accepted != 10 {
			t.Errorf("%d were accepted, want 10", accepted)
		}
	}
	pool := newPool(t)
	h, other := newPostgresInstance(t, pool, t.Context()), newPostgresInstance(t, pool, t.Context())
	on := func(i int) *harness { return []*harness{h, other}[i%2] }
	t.Run("refunds", func(t *testing.T) {
		p := h.paid("p-1", "100.00")
		race(t, func(i int) error {
			_, err := on(i).refund(fmt.Sprint("r-", i), p.GetTransactionId(), proto.String("10.00"))
			return err
		}, "REFUND_EXCEEDS_PAYMENT")
	})
	t.Run("captures", func(t *testing.T) {
		held := h.active("h-1")
		race(t, func(i int) error {
			_, err := on(i).CaptureHold(context.Background(), &transactionv1.CaptureHoldRequest{HoldId: held.GetHoldId(), IdempotencyKey: fmt.Sprint("c-", i), Amount: proto.String("10.00")})
			return err
		}, "CAPTURE_EXCEEDS_HOLD")
	})
}

// active is a hold of 100.00 that is placed.
func (h *harness) active(key string, change ...func(*transactionv1.PlaceHoldRequest)) *transactionv1.Hold {
	h.t.Helper()
	req := &transactionv1.PlaceHoldRequest{IdempotencyKey: key, AccountId: alice, DestinationAccountId: proto.String(bob), Amount: "100.00", Currency: "USD"}
	for _, c := range change {
		c(req)
	}
	res, err := h.PlaceHold(h.t.Context(), req)
	if err != nil || res.GetHold().GetStatus() != "pending" {
		h.t.Fatalf("got %v, %v", res, err)
	}
	settle(h.t, h.Server, settlement(res.GetHold().GetHoldId(), complete))
	return h.hold(res.GetHold().GetHoldId())
}

func (h *harness) hold(id string) *transactionv1.Hold {
	h.t.Helper()
	res, err := h.GetHold(h.t.Context(), &transactionv1.GetHoldRequest{HoldId: id})
	if err != nil {
		h.t.Fatal(err)
	}
	return res.GetHold()
}

func TestHoldCaptureVoid(t *testing.T) {
	h := newHarness(t)
	held := h.active("h-1")
	if held.GetStatus() != "active" || held.GetRemainingAmount() != "100.00" || !held.GetExpiresAt().AsTime().After(time.Now().Add(6*24*time.Hour)) {
		t.Fatalf("placed %v", held)
	}
	capture := &transactionv1.CaptureHoldRequest{HoldId: held.GetHoldId(), IdempotencyKey: "c-1", Amount: proto.String("30")}
	res, err := h.CaptureHold(t.Context(), capture)
	c := res.GetTransaction()
	if err != nil || c.GetType() != "payment" || c.GetHoldId() != held.GetHoldId() || c.GetAmount() != "30.00" || c.GetSourceAccountId() != alice || c.GetDestinationAccountId() != bob {
		t.Fatalf("captured %v, %v", c, err)
	}
	if again, err := h.CaptureHold(t.Context(), capture); err != nil || again.GetTransaction().GetTransactionId() != c.GetTransactionId() {
		t.Errorf("again: %v, %v", again, err)
	}
	void := &transactionv1.VoidHoldRequest{HoldId: held.GetHoldId(), Reason: proto.String("shipped")}
	if _, err := h.VoidHold(t.Context(), void); reasonOf(err) != "CAPTURE_UNDER_WAY" {
		t.Errorf("void while a capture is under way: %v", err)
	}
	h.end(c, complete)
	if now := h.hold(held.GetHoldId()); now.GetCapturedAmount() != "30.00" || now.GetCapturingAmount() != "0.00" || now.GetRemainingAmount() != "70.00" {
		t.Errorf("after a capture: %v", now)
	}
	for range 2 {
		voided, err := h.VoidHold(t.Context(), void)
		if err != nil || voided.GetHold().GetStatus() != "releasing" {
			t.Fatalf("void: %v, %v", voided, err)
		}
	}
	release := h.release()
	if release.GetType() != "release" || release.GetAmount() != "70.00" || release.GetReason() != "shipped" {
		t.Errorf("the release is %v", release)
	}
	h.end(release, complete)
	if now := h.hold(held.GetHoldId()); now.GetStatus() != "voided" || now.GetRemainingAmount() != "0.00" {
		t.Errorf("voided: %v", now)
	}
	if again, err := h.VoidHold(t.Context(), void); err != nil || again.GetHold().GetStatus() != "voided" {
		t.Errorf("void again: %v, %v", again, err)
	}
	capture.IdempotencyKey = "c-2"
	if _, err := h.CaptureHold(t.Context(), capture); reasonOf(err) != "HOLD_NOT_ACTIVE" {
		t.Errorf("capture of what was voided: %v", err)
	}
}

func TestHoldRequestsThatAreRefused(t *testing.T) {
	h := newHarness(t)
	held, open := h.active("h-1"), h.active("h-2", func(r *transactionv1.PlaceHoldRequest) { r.DestinationAccountId = nil })
	place := func(change func(*transactionv1.PlaceHoldRequest)) error {
		req := &transactionv1.PlaceHoldRequest{IdempotencyKey: "h-3", AccountId: alice, Amount: "1.00", Currency: "USD"}
		change(req)
		_, err := h.PlaceHold(t.Context(), req)
		return err
	}
	capture := func(id string, destination *string) error {
		_, err := h.CaptureHold(t.Context(), &transactionv1.CaptureHoldRequest{HoldId: id, IdempotencyKey: "c-1", DestinationAccountId: destination})
		return err
	}
	for name, tc := range map[string]struct {
		err           error
		reason, field string
	}{
		"expired": {place(func(r *transactionv1.PlaceHoldRequest) { r.ExpiresAt = timestamppb.New(time.Now().Add(-time.Second)) }), "INVALID_ARGUMENT", "expiresAt"},
		"too long": {place(func(r *transactionv1.PlaceHoldRequest) {
			r.ExpiresAt = timestamppb.New(time.Now().Add(91 * 24 * time.Hour))
		}), "INVALID_ARGUMENT", "expiresAt"},
		"no time":                {place(func(r *transactionv1.PlaceHoldRequest) { r.ExpiresAt = &timestamppb.Timestamp{Nanos: -1} }), "INVALID_ARGUMENT", "expiresAt"},
		"EXTERNAL":               {place(func(r *transactionv1.PlaceHoldRequest) { r.AccountId = world }), "ACCOUNT_TYPE_NOT_ALLOWED", ""},
		"to EXTERNAL":            {place(func(r *transactionv1.PlaceHoldRequest) { r.DestinationAccountId = proto.String(world) }), "ACCOUNT_TYPE_NOT_ALLOWED", ""},
		"to oneself":             {place(func(r *transactionv1.PlaceHoldRequest) { r.DestinationAccountId = proto.String(alice) }), "SAME_ACCOUNT", ""},
		"no hold":                {capture(none, nil), "HOLD_NOT_FOUND", ""},
		"no destination":         {capture(open.GetHoldId(), nil), "INVALID_ARGUMENT", "destinationAccountId"},
		"another destination":    {capture(held.GetHoldId(), proto.String(none)), "INVALID_ARGUMENT", "destinationAccountId"},
		"an unknown destination": {capture(open.GetHoldId(), proto.String(none)), "ACCOUNT_NOT_FOUND", ""},
		"its own destination":    {capture(held.GetHoldId(), proto.String(bob)), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if reasonOf(tc.err) != tc.reason {
				t.Fatalf("got %v", tc.err)
			}
			if e := rpc.ErrorOf(tc.err); tc.field != "" && (len(e.Violations) != 1 || e.Violations[0].Field != tc.field) {
				t.Errorf("got %v", tc.err)
			}
		})
	}
	if _, err := h.GetHold(t.Context(), &transactionv1.GetHoldRequest{HoldId: h.paid("p-1", "1.00").GetTransactionId()}); reasonOf(err) != "HOLD_NOT_FOUND" {
		t.Errorf("a payment is no hold: %v", err)
	}
}

// A hold whose capture is stuck is not tried every second for ever: the pauses grow, and end when it can be released.
func TestAHoldThatCannotBeReleasedIsTriedLaterAndLater(t *testing.T) {
	h, _ := newPostgresHarness(t)
	stuck := h.active("h-1", func(r *transactionv1.PlaceHoldRequest) { r.ExpiresAt = timestamppb.New(time.Now().Add(time.Second)) })
	capture, err := h.CaptureHold(t.Context(), &transactionv1.CaptureHoldRequest{HoldId: stuck.GetHoldId(), IdempotencyKey: "c-1"})
	if err != nil {
		t.Fatal(err)
	}
	expiry := &Expiry{Server: h.Server, Log: slog.New(slog.DiscardHandler)}
	now := time.Now()
	sweep := func() int {
		t.Helper()
		tried, err := expiry.sweep(t.Context(), now)
		if err != nil {
			t.Fatal(err)
		}
		return tried
	}
	pgtest.Eventually(t, "its time is over", func() bool { return sweep() == 1 })
	tries, last, pause := 0, now, time.Duration(0)
	for range 600 { // seconds
		now = now.Add(expiryEvery)
		if sweep() == 0 {
			continue
		}
		if tries++; now.Sub(last) < pause {
			t.Errorf("tried after %v, after a pause of %v", now.Sub(last), pause)
		}
		last, pause = now, now.Sub(last)
	}
	if tries < 4 || tries > 12 {
		t.Errorf("it was tried %d times in ten minutes", tries)
	}
	h.end(capture.GetTransaction(), transactionv1.SettlementKind_SETTLEMENT_KIND_FAIL)
	now = now.Add(expiryPauseMax)
	if tried := sweep(); tried != 1 || h.hold(stuck.GetHoldId()).GetStatus() != "releasing" {
		t.Errorf("%d holds were tried, the hold is %s", tried, h.hold(stuck.GetHoldId()).GetStatus())
	}
	if len(expiry.later) != 0 {
		t.Errorf("%d holds are remembered", len(expiry.later))
	}
}

// Holds whose time is over are released, but not while a capture is under way; the tables that say which are follow the events.
func TestExpiry(t *testing.T) {
	h, _ := newPostgresHarness(t)
	soon := timestamppb.New(time.Now().Add(3 * time.Second))
	at := func(r *transactionv1.PlaceHoldRequest) { r.ExpiresAt = soon }
	plain, capturing, captured, later := h.active("h-1", at), h.active("h-2", at), h.active("h-3", at), h.active("h-4")
	take := func(hold *transactionv1.Hold, key string) *transactionv1.Transaction {
		t.Helper()
		res, err := h.CaptureHold(t.Context(), &transactionv1.CaptureHoldRequest{HoldId: hold.GetHoldId(), IdempotencyKey: key})
		if err != nil {
			t.Fatal(err)
		}
		return res.GetTransaction()
	}
	underWay := take(capturing, "c-1")
	h.end(take(captured, "c-2"), complete)
	expiry := &Expiry{Server: h.Server, Log: slog.New(slog.DiscardHandler)}
	now := time.Now()
	sweepUntil := func(want string, hold *transactionv1.Hold) {
		t.Helper()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for late := time.After(30 * time.Second); h.hold(hold.GetHoldId()).GetStatus() != want; {
			now = now.Add(expiryPauseMax) // whatever could not be released is due again
			if _, err := expiry.sweep(t.Context(), now); err != nil {
				t.Fatal(err)
			}
			select {
			case <-tick.C:
			case <-late:
				t.Fatalf("the hold is %s, not %s", h.hold(hold.GetHoldId()).GetStatus(), want)
			}
		}
	}
	sweepUntil("releasing", plain)
	h.end(h.release(), complete)
	for hold, want := range map[*transactionv1.Hold]string{plain: "expired", capturing: "active", captured: "captured", later: "active"} {
		if got := h.hold(hold.GetHoldId()).GetStatus(); got != want {
			t.Errorf("the hold is %s, want %s", got, want)
		}
	}
	late := &transactionv1.CaptureHoldRequest{HoldId: capturing.GetHoldId(), IdempotencyKey: "c-3", Amount: proto.String("1.00")}
	if _, err := h.CaptureHold(t.Context(), late); reasonOf(err) != "HOLD_NOT_ACTIVE" {
		t.Errorf("captured after its time: %v", err)
	}
	h.end(underWay, transactionv1.SettlementKind_SETTLEMENT_KIND_FAIL)
	sweepUntil("releasing", capturing)
	if _, err := h.VoidHold(t.Context(), &transactionv1.VoidHoldRequest{HoldId: plain.GetHoldId()}); reasonOf(err) != "HOLD_NOT_ACTIVE" {
		t.Errorf("voided after it expired: %v", err)
	}
	if open, err := h.List.ExpiredHolds(t.Context(), readmodel.Expired{}, 10); err != nil || len(open) != 0 {
		t.Errorf("still to expire: %v, %v", open, err)
	}
}

// release is the first release that has not ended.
func (h *harness) release() *transactionv1.Transaction {
	h.t.Helper()
	for _, e := range h.all() {
		if e.Type == "ReleaseRequested" {
			if r := h.read(e.Stream.ID); r.GetStatus() == "pending" {
				return r
			}
		}
	}
	h.t.Fatal("no release is under way")
	return nil
}

func TestBatch(t *testing.T) {
	h := newHarness(t)
	p := h.paid("p-1", "10.00")
	item := func(kind, key string, change func(*transactionv1.BatchItem)) *transactionv1.BatchItem {
		x := &transactionv1.BatchItem{Type: kind, IdempotencyKey: key}
		change(x)
		return x
	}
	move := func(source, destination string) func(*transactionv1.BatchItem) {
		return func(x *transactionv1.BatchItem) {
			x.SourceAccountId, x.DestinationAccountId, x.Amount, x.Currency = source, destination, proto.String("1.00"), "USD"
		}
	}
	refund := func(amount *string) func(*transactionv1.BatchItem) {
		return func(x *transactionv1.BatchItem) { x.PaymentId, x.Amount = p.GetTransactionId(), amount }
	}
	items := []*transactionv1.BatchItem{
		item("topup", "b-1", move(world, alice)),
		item("withdrawal", "b-2", move(alice, world)),
		item("transfer", "b-3", move(alice, bob)),
		item("transfer", "b-4", move(alice, none)),
		item("transfer", "", move(alice, bob)),
		item("payment", "b-5", func(x *transactionv1.BatchItem) {
			x.CustomerAccountId, x.MerchantAccountId, x.Amount, x.Currency = alice, bob, proto.String("1.00"), "USD"
		}),
		item("payment", "b-6", move(alice, bob)),
		item("refund", "b-7", refund(proto.String("11.00"))),
		item("refund", "b-8", refund(proto.String("4.00"))),
		item("hold", "b-9", move(alice, bob)),
		item("", "b-10", move(alice, bob)),
	}
	want := []string{"pending", "pending", "pending", "ACCOUNT_NOT_FOUND", "INVALID_ARGUMENT", "pending", "INVALID_ARGUMENT", "REFUND_EXCEEDS_PAYMENT", "pending", "INVALID_ARGUMENT", "INVALID_ARGUMENT"}
	for round, replayed := range []bool{false, true} {
		res, err := h.Batch(t.Context(), &transactionv1.BatchRequest{Transactions: items})
		if err != nil || len(res.GetResults()) != len(items) {
			t.Fatalf("got %v, %v", res, err)
		}
		for i, r := range res.GetResults() {
			got := r.GetTransaction().GetStatus() + r.GetError().GetReason()
			if got != want[i] || r.GetReplayed() != (replayed && r.GetError() == nil) || r.GetError() != nil && r.GetError().GetDetail() == "" ||
				(got == "INVALID_ARGUMENT") != (len(r.GetError().GetErrors()) > 0) {
				t.Errorf("round %d, item %d: %v, want %s", round, i, r, want[i])
			}
		}
	}
	for _, n := range []int{0, 1001} {
		if _, err := h.Batch(t.Context(), &transactionv1.BatchRequest{Transactions: make([]*transactionv1.BatchItem, n)}); reasonOf(err) != "INVALID_ARGUMENT" {
			t.Errorf("%d items: %v", n, err)
		}
	}
	t.Run("one key many times", func(t *testing.T) {
		same := make([]*transactionv1.BatchItem, 300)
		for i := range same {
			same[i] = item("transfer", "b-20", move(alice, bob))
		}
		res, err := h.Batch(t.Context(), &transactionv1.BatchRequest{Transactions: same})
		if err != nil || len(res.GetResults()) != len(same) {
			t.Fatalf("%d results, %v", len(res.GetResults()), err)
		}
		first := 0
		for _, r := range res.GetResults() {
			if !r.GetReplayed() {
				first++
			}
			if r.GetTransaction().GetTransactionId() != res.GetResults()[0].GetTransaction().GetTransactionId() {
				t.Error("two transactions")
			}
		}
		if first != 1 {
			t.Errorf("%d were the first", first)
		}
	})
}

func TestListFilters(t *testing.T) {
	h, show := newPostgresHarness(t)
	h.accounts.set(none, transaction.Side{Found: true, AccountType: "USER", Currency: "EUR", Status: "active"})
	h.accounts.set("55555555-5555-4555-8555-555555555555", transaction.Side{Found: true, AccountType: "USER", Currency: "EUR", Status: "active"})
	p := h.paid("p-1", "100.00")
	r, err := h.refund("r-1", p.GetTransactionId(), proto.String("7.50"))
	if err != nil {
		t.Fatal(err)
	}
	held := h.active("h-1")
	eur := h.accepted("t-1", func(r *transactionv1.TransferRequest) {
		r.SourceAccountId, r.DestinationAccountId, r.Currency, r.Amount = none, "55555555-5555-4555-8555-555555555555", "EUR", "20.00"
	})
	show()
	all := map[string]string{p.GetTransactionId(): "payment", r.GetTransactionId(): "refund", held.GetHoldId(): "hold", eur.GetTransactionId(): "transfer"}
	for name, tc := range map[string]struct {
		filter *transactionv1.ListTransactionsRequest
		want   string // types, newest first
	}{
		"all":            {&transactionv1.ListTransactionsRequest{}, "transfer hold refund payment"},
		"type":           {&transactionv1.ListTransactionsRequest{Type: "payment"}, "payment"},
		"status":         {&transactionv1.ListTransactionsRequest{Status: "pending"}, "transfer refund"},
		"currency":       {&transactionv1.ListTransactionsRequest{Currency: "EUR"}, "transfer"},
		"account":        {&transactionv1.ListTransactionsRequest{AccountId: alice}, "hold refund payment"},
		"account, other": {&transactionv1.ListTransactionsRequest{AccountId: none}, "transfer"},
		"least":          {&transactionv1.ListTransactionsRequest{MinAmount: "20"}, "transfer hold payment"},
		"most":           {&transactionv1.ListTransactionsRequest{MaxAmount: "20.00"}, "transfer refund"},
		"between":        {&transactionv1.ListTransactionsRequest{MinAmount: "7.51", MaxAmount: "99.99"}, "transfer"},
		"from":           {&transactionv1.ListTransactionsRequest{CreatedFrom: eur.GetCreatedAt()}, "transfer"},
		"to":             {&transactionv1.ListTransactionsRequest{CreatedTo: r.GetCreatedAt()}, "payment"},
		"payment":        {&transactionv1.ListTransactionsRequest{PaymentId: p.GetTransactionId()}, "refund"},
		"several":        {&transactionv1.ListTransactionsRequest{AccountId: bob, Type: "refund", Status: "pending", Currency: "USD", MinAmount: "1"}, "refund"},
		"none":           {&transactionv1.ListTransactionsRequest{AccountId: bob, Type: "topup"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var got string
			for page := ""; ; { // one at a time
				tc.filter.PageSize, tc.filter.PageToken = 1, page
				res, err := h.ListTransactions(t.Context(), tc.filter)
				if err != nil {
					t.Fatal(err)
				}
				for _, x := range res.GetTransactions() {
					got += " " + all[x.GetTransactionId()]
				}
				if page = res.GetNextPageToken(); page == "" {
					break
				}
			}
			if want := tc.want; got != "" && got[1:] != want || got == "" && want != "" {
				t.Errorf("got%s, want %s", got, want)
			}
		})
	}
	for field, bad := range map[string]*transactionv1.ListTransactionsRequest{
		"type": {Type: "gift"}, "status": {Status: "lost"}, "currency": {Currency: "XXX"}, "minAmount": {MinAmount: "-1"}, "maxAmount": {MaxAmount: "1e9"},
		"accountId": {AccountId: "alice"}, "paymentId": {PaymentId: "p"}, "createdFrom": {CreatedFrom: &timestamppb.Timestamp{Nanos: -1}}, "pageSize": {PageSize: 201},
		"pageToken": {PageToken: "?"}, "consistencyToken": {ConsistencyToken: "?"},
	} {
		if _, err := h.ListTransactions(t.Context(), bad); reasonOf(err) != "INVALID_ARGUMENT" || rpc.ErrorOf(err).Violations[0].Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	holds, err := h.ListHolds(t.Context(), &transactionv1.ListHoldsRequest{AccountId: alice, Status: "active"})
	if err != nil || len(holds.GetHolds()) != 1 || !proto.Equal(holds.GetHolds()[0], held) {
		t.Errorf("holds %v, %v", holds, err)
	}
	if holds, err := h.ListHolds(t.Context(), &transactionv1.ListHoldsRequest{AccountId: bob}); err != nil || len(holds.GetHolds()) != 0 {
		t.Errorf("holds on the account that captures would pay: %v, %v", holds, err)
	}
	if holds, err := h.ListHolds(t.Context(), &transactionv1.ListHoldsRequest{Status: "voided"}); err != nil || len(holds.GetHolds()) != 0 {
		t.Errorf("holds %v, %v", holds, err)
	}
}

// What has been pending for too long is listed from the service's own tables, whatever the read model shows.
func TestStuckAndOpen(t *testing.T) {
	h, _ := newPostgresHarness(t)
	old, fresh, ended := h.pay("p-1", "1.00"), h.pay("p-2", "1.00"), h.paid("p-3", "1.00")
	second := h.accepted("t-1")
	if _, err := h.pool.Exec(t.Context(), `UPDATE transaction_pending SET created_at = created_at - interval '1 minute' WHERE id <> $1`, fresh.GetTransactionId()); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		req  *transactionv1.ListTransactionsRequest
		want []string
	}{
		"all":     {&transactionv1.ListTransactionsRequest{}, []string{second.GetTransactionId(), old.GetTransactionId()}},
		"type":    {&transactionv1.ListTransactionsRequest{Type: "payment"}, []string{old.GetTransactionId()}},
		"account": {&transactionv1.ListTransactionsRequest{AccountId: bob}, []string{second.GetTransactionId(), old.GetTransactionId()}},
		"other":   {&transactionv1.ListTransactionsRequest{AccountId: world}, nil},
	} {
		var got []string
		for page := ""; ; {
			tc.req.Stuck, tc.req.PageSize, tc.req.PageToken = true, 1, page
			res, err := h.ListTransactions(t.Context(), tc.req)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range res.GetTransactions() {
				got = append(got, x.GetTransactionId())
			}
			if page = res.GetNextPageToken(); page == "" {
				break
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
	if _, err := h.ListTransactions(t.Context(), &transactionv1.ListTransactionsRequest{Stuck: true, Status: "pending"}); reasonOf(err) != "INVALID_ARGUMENT" {
		t.Errorf("got %v", err)
	}
	of, err := h.ListOpenTransactions(t.Context(), &transactionv1.ListOpenTransactionsRequest{AccountId: alice})
	if err != nil || len(of.GetTransactionIds()) != 3 {
		t.Errorf("open of alice: %v, %v", of, err)
	}
	open, err := h.FilterOpenTransactions(t.Context(), &transactionv1.FilterOpenTransactionsRequest{TransactionIds: []string{old.GetTransactionId(), ended.GetTransactionId(), none}})
	if err != nil || fmt.Sprint(open.GetTransactionIds()) != fmt.Sprint([]string{old.GetTransactionId()}) {
		t.Errorf("open: %v, %v", open, err)
	}
}
