package api

import (
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
)

func createRequest(change ...func(*accountv1.CreateAccountRequest)) *accountv1.CreateAccountRequest {
	req := &accountv1.CreateAccountRequest{OwnerId: "u-1", OwnerType: "customer", AccountType: "USER", Currency: "USD"}
	for _, c := range change {
		c(req)
	}
	return req
}

func TestCreateAccount(t *testing.T) {
	h := newHarness(t)
	md, _ := structpb.NewStruct(map[string]any{"plan": "gold", "nested": map[string]any{"n": 1.5}})
	res, err := h.CreateAccount(t.Context(), createRequest(func(r *accountv1.CreateAccountRequest) {
		r.Metadata, r.MinBalance, r.MaxBalance = md, proto.String("-10"), proto.String("99.5")
	}))
	a := res.GetAccount()
	if err != nil || a.GetMinBalance() != "-10.00" || a.GetMaxBalance() != "99.50" || a.GetBalance() != "0.00" || a.GetStatus() != "active" ||
		a.GetVersion() != 1 || !proto.Equal(a.GetMetadata(), md) {
		t.Fatalf("got %v, %v", a, err)
	}
	got, err := h.GetAccount(t.Context(), &accountv1.GetAccountRequest{AccountId: strings.ToUpper(a.GetAccountId())})
	if err != nil || !proto.Equal(got.GetAccount(), a) {
		t.Errorf("read %v, %v\nwant %v", got, err, a)
	}
}

func TestCreateAccountChecksItsRequest(t *testing.T) {
	h := newHarness(t)
	for name, tc := range map[string]struct {
		change func(*accountv1.CreateAccountRequest)
		field  string
	}{
		"no owner":               {func(r *accountv1.CreateAccountRequest) { r.OwnerId = "" }, "ownerId"},
		"long owner type":        {func(r *accountv1.CreateAccountRequest) { r.OwnerType = strings.Repeat("x", 65) }, "ownerType"},
		"unknown type":           {func(r *accountv1.CreateAccountRequest) { r.AccountType = "user" }, "accountType"},
		"unknown currency":       {func(r *accountv1.CreateAccountRequest) { r.Currency = "XXX" }, "currency"},
		"limit with more digits": {func(r *accountv1.CreateAccountRequest) { r.MaxBalance = proto.String("1.001") }, "maxBalance"},
		"limits that cross": {func(r *accountv1.CreateAccountRequest) {
			r.MinBalance, r.MaxBalance = proto.String("2"), proto.String("1")
		}, "maxBalance"},
		"maximum below default 0": {func(r *accountv1.CreateAccountRequest) { r.MaxBalance = proto.String("-1") }, "maxBalance"},
		"EXTERNAL with a limit":   {func(r *accountv1.CreateAccountRequest) { r.AccountType, r.MinBalance = "EXTERNAL", proto.String("0") }, "minBalance"},
		"long key":                {func(r *accountv1.CreateAccountRequest) { r.IdempotencyKey = proto.String(strings.Repeat("k", 129)) }, "idempotencyKey"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := h.CreateAccount(t.Context(), createRequest(tc.change))
			if e := rpc.ErrorOf(err); e == nil || e.Reason != "INVALID_ARGUMENT" || len(e.Violations) != 1 || e.Violations[0].Field != tc.field {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestCreateAccountIsIdempotent(t *testing.T) {
	h := newHarness(t)
	create := func(key string, change ...func(*accountv1.CreateAccountRequest)) (string, bool, error) {
		ctx, header := call(t.Context(), rpc.Caller{IdempotencyKey: key})
		res, err := h.CreateAccount(ctx, createRequest(change...))
		return res.GetAccount().GetAccountId(), header.replayed(), err
	}
	first, replayed, err := create("k-1", upTo("5"))
	if err != nil || replayed {
		t.Fatalf("%v, replayed %v", err, replayed)
	}
	if again, replayed, err := create("k-1", upTo("5.00")); err != nil || again != first || !replayed {
		t.Errorf("the repeat got %s instead of %s, replayed %v, %v", again, first, replayed, err)
	}
	if _, _, err := create("k-1", upTo("6")); refusal(err) != "IDEMPOTENCY_CONFLICT" {
		t.Errorf("other content: %v", err)
	}
	if other, replayed, err := create("k-2", upTo("5")); err != nil || other == first || replayed {
		t.Errorf("another key: %s, %v, %v", other, replayed, err)
	}
	a, _, _ := create("", upTo("5"))
	if b, _, _ := create("", upTo("5")); a == b {
		t.Error("two requests without a key opened one account")
	}
}

// refusal is the reason of a refusal.
func refusal(err error) string {
	if r, ok := err.(interface{ Refused() (string, string) }); ok {
		reason, _ := r.Refused()
		return reason
	}
	return ""
}

func TestCreateAccountAtOnce(t *testing.T) {
	h := newHarness(t)
	servers := []*Server{h.Server, newServer(t, h.store)}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		ids   = map[string]int{}
		fresh int
	)
	for i := range 64 {
		wg.Go(func() {
			ctx, header := call(t.Context(), rpc.Caller{IdempotencyKey: "k-1"})
			res, err := servers[i%2].CreateAccount(ctx, createRequest())
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			if ids[res.GetAccount().GetAccountId()]++; !header.replayed() {
				fresh++
			}
		})
	}
	wg.Wait()
	if len(ids) != 1 || fresh != 1 {
		t.Errorf("accounts %v, %d answers not marked as repeats", ids, fresh)
	}
	for id := range ids {
		if n := len(h.events(id)); n != 1 {
			t.Errorf("%d events", n)
		}
	}
}

func TestChangeAccountStatusIsIdempotent(t *testing.T) {
	h := newHarness(t)
	id := h.open(account.User)
	change := func(key, status, reason string) (string, bool, error) {
		ctx, header := call(t.Context(), rpc.Caller{})
		res, err := h.ChangeAccountStatus(ctx, &accountv1.ChangeAccountStatusRequest{AccountId: id, Status: status, Reason: reason, IdempotencyKey: &key})
		return res.GetAccount().GetStatus(), header.replayed(), err
	}
	if got, replayed, err := change("k-1", "suspended", "fraud"); err != nil || got != "suspended" || replayed {
		t.Fatalf("%s, %v, %v", got, replayed, err)
	}
	if got, _, err := change("k-2", "active", "cleared"); err != nil || got != "active" {
		t.Fatalf("%s, %v", got, err)
	}
	if got, replayed, err := change("k-1", "suspended", "fraud"); err != nil || got != "active" || !replayed {
		t.Errorf("a late repeat: %s, %v, %v", got, replayed, err)
	}
	for _, other := range [][2]string{{"active", "fraud"}, {"suspended", "other"}} {
		if _, _, err := change("k-1", other[0], other[1]); rpc.ErrorOf(err).Reason != "IDEMPOTENCY_CONFLICT" {
			t.Errorf("%v: %v", other, err)
		}
	}
	if n := h.count(id, "AccountStatusChanged"); n != 2 {
		t.Errorf("%d changes", n)
	}
}

func TestChangeAccountStatusChecksItsRequest(t *testing.T) {
	h := newHarness(t)
	id := h.open(account.User)
	for name, tc := range map[string]struct {
		req   *accountv1.ChangeAccountStatusRequest
		field string
	}{
		"no UUID":        {&accountv1.ChangeAccountStatusRequest{AccountId: "x", Status: "closed", Reason: "asked"}, "accountId"},
		"unknown status": {&accountv1.ChangeAccountStatusRequest{AccountId: id, Status: "open", Reason: "asked"}, "status"},
		"no reason":      {&accountv1.ChangeAccountStatusRequest{AccountId: id, Status: "closed"}, "reason"},
		"version 0":      {&accountv1.ChangeAccountStatusRequest{AccountId: id, Status: "closed", Reason: "asked", ExpectedVersion: proto.Int32(0)}, "expectedVersion"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := h.ChangeAccountStatus(t.Context(), tc.req)
			if e := rpc.ErrorOf(err); e == nil || e.Reason != "INVALID_ARGUMENT" || len(e.Violations) != 1 || e.Violations[0].Field != tc.field {
				t.Errorf("got %v", err)
			}
		})
	}
	_, err := h.ChangeAccountStatus(t.Context(), &accountv1.ChangeAccountStatusRequest{AccountId: uuid.NewString(), Status: "closed", Reason: "asked"})
	if refusal(err) != "ACCOUNT_NOT_FOUND" {
		t.Errorf("got %v", err)
	}
}
