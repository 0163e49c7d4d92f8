package api

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"example.com/billing/pkg/rpc"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/edge"
	"example.com/billing/services/transaction"
)

func TestTransferIsAccepted(t *testing.T) {
	h := newHarness(t)
	md, _ := structpb.NewStruct(map[string]any{"month": "May", "n": 1.5})
	got := h.accepted("k-1", func(r *transactionv1.TransferRequest) { r.Amount, r.Metadata = "50", md })
	if got.GetStatus() != "pending" || got.GetType() != "transfer" || got.GetAmount() != "50.00" || got.GetVersion() != 1 || got.GetReference() != "rent" ||
		!proto.Equal(got.GetMetadata(), md) || got.GetTransactionId() != edge.DeriveID([]byte("secret"), "Transaction", "default", "k-1") {
		t.Errorf("got %v", got)
	}
	read, err := h.GetTransaction(t.Context(), &transactionv1.GetTransactionRequest{TransactionId: strings.ToUpper(got.GetTransactionId())})
	if err != nil || !proto.Equal(read.GetTransaction(), got) {
		t.Errorf("read %v, %v", read, err)
	}
	if _, err := h.GetTransaction(t.Context(), &transactionv1.GetTransactionRequest{TransactionId: none}); reasonOf(err) != "TRANSACTION_NOT_FOUND" {
		t.Errorf("got %v", err)
	}
}

func TestTopupAndWithdrawal(t *testing.T) {
	h := newHarness(t)
	up, err := h.Topup(t.Context(), &transactionv1.TopupRequest{IdempotencyKey: "k-1", SourceAccountId: world, DestinationAccountId: alice, Amount: "1", Currency: "USD", Reference: proto.String("")})
	if x := up.GetTransaction(); err != nil || x.GetType() != "topup" || x.Reference == nil {
		t.Errorf("got %v, %v", up, err)
	}
	down, err := h.Withdraw(t.Context(), &transactionv1.WithdrawRequest{IdempotencyKey: "k-2", SourceAccountId: alice, DestinationAccountId: world, Amount: "1", Currency: "USD"})
	if x := down.GetTransaction(); err != nil || x.GetType() != "withdrawal" || x.Reference != nil {
		t.Errorf("got %v, %v", down, err)
	}
	if _, err := h.Topup(t.Context(), &transactionv1.TopupRequest{IdempotencyKey: "k-2", SourceAccountId: alice, DestinationAccountId: world, Amount: "1", Currency: "USD"}); reasonOf(err) != "IDEMPOTENCY_CONFLICT" || !strings.Contains(err.Error(), "type") {
		t.Errorf("the key of a withdrawal, for a top-up: %v", err)
	}
}

func TestTransferChecksItsRequest(t *testing.T) {
	h := newHarness(t)
	for name, tc := range map[string]struct {
		change func(*transactionv1.TransferRequest)
		field  string
	}{
		"no key":                   {func(r *transactionv1.TransferRequest) { r.IdempotencyKey = "" }, "idempotencyKey"},
		"long key":                 {func(r *transactionv1.TransferRequest) { r.IdempotencyKey = strings.Repeat("k", 129) }, "idempotencyKey"},
		"no source":                {func(r *transactionv1.TransferRequest) { r.SourceAccountId = "" }, "sourceAccountId"},
		"destination no UUID":      {func(r *transactionv1.TransferRequest) { r.DestinationAccountId = "bob" }, "destinationAccountId"},
		"no amount":                {func(r *transactionv1.TransferRequest) { r.Amount = "" }, "amount"},
		"amount zero":              {func(r *transactionv1.TransferRequest) { r.Amount = "0.00" }, "amount"},
		"amount below zero":        {func(r *transactionv1.TransferRequest) { r.Amount = "-1" }, "amount"},
		"amount with an exponent":  {func(r *transactionv1.TransferRequest) { r.Amount = "1e9" }, "amount"},
		"more digits than it has":  {func(r *transactionv1.TransferRequest) { r.Amount = "1.001" }, "amount"},
		"unknown currency":         {func(r *transactionv1.TransferRequest) { r.Currency = "XXX" }, "currency"},
		"long reference":           {func(r *transactionv1.TransferRequest) { r.Reference = proto.String(strings.Repeat("r", 257)) }, "reference"},
		"wait below zero":          {func(r *transactionv1.TransferRequest) { r.Wait = durationpb.New(-1) }, "wait"},
		"wait over the limit":      {func(r *transactionv1.TransferRequest) { r.Wait = durationpb.New(31 * time.Second) }, "wait"},
		"wait that is no duration": {func(r *transactionv1.TransferRequest) { r.Wait = &durationpb.Duration{Seconds: 1, Nanos: -1} }, "wait"},
		"metadata too large": {func(r *transactionv1.TransferRequest) {
			r.Metadata, _ = structpb.NewStruct(map[string]any{"x": strings.Repeat("y", edge.MetadataMax)})
		}, "metadata"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := h.Transfer(t.Context(), transfer("k-1", tc.change))
			if e := rpc.ErrorOf(err); e == nil || e.Reason != "INVALID_ARGUMENT" || len(e.Violations) != 1 || e.Violations[0].Field != tc.field {
				t.Errorf("got %v", err)
			}
		})
	}
	_, _, err := ask(t.Context(), h.Server, rpc.Caller{Wait: "soon"}, transfer("k-1"))
	if e := rpc.ErrorOf(err); e == nil || len(e.Violations) != 1 || e.Violations[0].Field != "wait" {
		t.Errorf("wait in the header: %v", err)
	}
	if n := len(h.all()); n != 0 || h.accounts.asked != 0 {
		t.Errorf("%d events, %d questions to the accounts", n, h.accounts.asked)
	}
}

func TestIdempotencyKeyInHeaderOrBody(t *testing.T) {
	h := newHarness(t)
	first, replayed, err := ask(t.Context(), h.Server, rpc.Caller{IdempotencyKey: "k-1"}, transfer(""))
	if err != nil || replayed || first.GetIdempotencyKey() != "k-1" {
		t.Fatalf("%v, %v, %v", first, replayed, err)
	}
	for name, tc := range map[string]struct{ header, body string }{"header": {"k-1", ""}, "body": {"", "k-1"}, "both": {"k-1", "k-1"}} {
		again, replayed, err := ask(t.Context(), h.Server, rpc.Caller{IdempotencyKey: tc.header}, transfer(tc.body))
		if err != nil || !replayed || !proto.Equal(first, again) {
			t.Errorf("%s: %v, %v, %v", name, again, replayed, err)
		}
	}
	_, _, err = ask(t.Context(), h.Server, rpc.Caller{IdempotencyKey: "k-1"}, transfer("k-2"))
	if e := rpc.ErrorOf(err); e == nil || len(e.Violations) != 1 || e.Violations[0].Field != "idempotencyKey" {
		t.Errorf("two keys: %v", err)
	}
	if other, replayed, err := ask(t.Context(), h.Server, rpc.Caller{IdempotencyKey: "k-1", TenantID: "other"}, transfer("")); err != nil || replayed || other.GetTransactionId() == first.GetTransactionId() {
		t.Errorf("another tenant's key: %v, %v, %v", other, replayed, err)
	}
	if n := len(h.all()); n != 2 {
		t.Errorf("%d events", n)
	}
}

func TestSameKeyAtOnceIsOneTransfer(t *testing.T) {
	h := newHarness(t)
	servers := []*Server{h.Server, newServer(t, h.store, h.accounts)}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		ids   = map[string]int{}
		fresh int
	)
	for i := range 64 {
		wg.Go(func() {
			got, replayed, err := ask(t.Context(), servers[i%2], rpc.Caller{}, transfer("k-1"))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			if ids[got.GetTransactionId()]++; !replayed {
				fresh++
			}
		})
	}
	wg.Wait()
	events := h.all()
	if len(ids) != 1 || fresh != 1 || len(events) != 1 || events[0].Type != "TransferRequested" {
		t.Errorf("transactions %v, %d answers not marked as repeats, events %v", ids, fresh, events)
	}
}

func TestReplay(t *testing.T) {
	gone := rpc.Fail("UNAVAILABLE", "The account service does not answer.")
	for name, change := range map[string]func(*accounts){
		"the accounts do not answer": func(a *accounts) { a.fail(gone) },
		"an account is closed meanwhile": func(a *accounts) {
			a.set(bob, transaction.Side{Found: true, AccountType: "USER", Currency: "USD", Status: "closed"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			first := h.accepted("k-1")
			change(h.accounts)
			again, replayed, err := ask(t.Context(), h.Server, rpc.Caller{}, transfer("k-1", func(r *transactionv1.TransferRequest) { r.Amount = "50" }))
			if err != nil || !replayed || !proto.Equal(first, again) {
				t.Errorf("%v, %v, %v", again, replayed, err)
			}
			_, _, err = ask(t.Context(), h.Server, rpc.Caller{}, transfer("k-1", func(r *transactionv1.TransferRequest) { r.Amount = "51" }))
			if reasonOf(err) != "IDEMPOTENCY_CONFLICT" || !strings.Contains(err.Error(), "amount") {
				t.Errorf("other content: %v", err)
			}
			// Another instance, which has nothing in memory.
			again, replayed, err = ask(t.Context(), newServer(t, h.store, h.accounts), rpc.Caller{}, transfer("k-1"))
			if err != nil || !replayed || !proto.Equal(first, again) {
				t.Errorf("another instance: %v, %v, %v", again, replayed, err)
			}
		})
	}
	t.Run("after the end it shows the end", func(t *testing.T) {
		h := newHarness(t)
		id := h.accepted("k-1").GetTransactionId()
		settle(t, h.Server, settlement(id, transactionv1.SettlementKind_SETTLEMENT_KIND_COMPLETE))
		if again, replayed, err := ask(t.Context(), h.Server, rpc.Caller{}, transfer("k-1")); err != nil || !replayed || again.GetStatus() != "completed" {
			t.Errorf("%v, %v, %v", again, replayed, err)
		}
	})
}

// A request that was not accepted leaves nothing behind: its key can be used.
func TestRefusedRequestLeavesNoTrace(t *testing.T) {
	user := transaction.Side{Found: true, AccountType: "USER", Currency: "USD", Status: "active"}
	with := func(change func(*transaction.Side)) transaction.Side {
		s := user
		change(&s)
		return s
	}
	for reason, bad := range map[string]transaction.Side{
		"ACCOUNT_NOT_FOUND":        {},
		"ACCOUNT_TYPE_NOT_ALLOWED": with(func(s *transaction.Side) { s.AccountType = "EXTERNAL" }),
		"CURRENCY_MISMATCH":        with(func(s *transaction.Side) { s.Currency = "EUR" }),
		"ACCOUNT_SUSPENDED":        with(func(s *transaction.Side) { s.Status = "suspended" }),
		"ACCOUNT_CLOSED":           with(func(s *transaction.Side) { s.Status = "closed" }),
	} {
		t.Run(reason, func(t *testing.T) {
			h := newHarness(t)
			h.accounts.set(bob, bad)
			for range 2 {
				if _, replayed, err := ask(t.Context(), h.Server, rpc.Caller{}, transfer("k-1")); reasonOf(err) != reason || replayed {
					t.Fatalf("got %v, replayed %v", err, replayed)
				}
			}
			if n := len(h.all()); n != 0 {
				t.Fatalf("%d events", n)
			}
			h.accounts.set(bob, user)
			h.accepted("k-1", func(r *transactionv1.TransferRequest) { r.Amount = "7.00" })
		})
	}
	t.Run("one account on both sides", func(t *testing.T) {
		h := newHarness(t)
		_, _, err := ask(t.Context(), h.Server, rpc.Caller{}, transfer("k-1", func(r *transactionv1.TransferRequest) { r.DestinationAccountId = strings.ToUpper(alice) }))
		if reasonOf(err) != "SAME_ACCOUNT" || len(h.all()) != 0 {
			t.Errorf("got %v", err)
		}
		h.accepted("k-1")
	})
	t.Run("accounts that do not answer", func(t *testing.T) {
		h := newHarness(t)
		gone := errors.New("no answer")
		h.accounts.fail(gone)
		if _, _, err := ask(t.Context(), h.Server, rpc.Caller{}, transfer("k-1")); !errors.Is(err, gone) || len(h.all()) != 0 {
			t.Errorf("got %v", err)
		}
		h.accounts.fail(nil)
		h.accepted("k-1")
	})
}

func TestRequestKeepsItsOrigin(t *testing.T) {
	h := newHarness(t)
	if _, _, err := ask(t.Context(), h.Server, rpc.Caller{CorrelationID: "corr-1", Actor: "ann"}, transfer("k-1")); err != nil {
		t.Fatal(err)
	}
	e := h.all()[0]
	if e.CorrelationID != "corr-1" || e.CausationID == "" || e.Metadata["actor"] != "ann" || e.Metadata["tenantId"] != "default" {
		t.Errorf("event %+v", e)
	}
}
