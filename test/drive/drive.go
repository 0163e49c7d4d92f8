// Package drive lets package model's walks ask the system through its public gRPC contracts, whatever carries the calls: gRPC,
// REST, or the servers' own methods.
package drive

import (
	"context"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/test/model"
)

// waitMax is how long an answer waits for a transaction's end: as long as the API allows.
const waitMax = 30 * time.Second

// Failer stops a test.
type Failer interface {
	Fatalf(format string, args ...any)
}

// Driver is most of a model.System. Who embeds it adds how holds expire and how the books are read.
type Driver struct {
	t            Failer
	ctx          context.Context
	accounts     accountv1.AccountServiceClient
	transactions transactionv1.TransactionServiceClient
	holds        transactionv1.HoldServiceClient
	wait         *durationpb.Duration   // nil = for nothing
	expires      *timestamppb.Timestamp // of holds; nil = by default
}

// New makes a driver on connections to the account and the transaction service.
func New(ctx context.Context, t Failer, account, transaction grpc.ClientConnInterface) *Driver {
	return &Driver{
		t: t, ctx: ctx, accounts: accountv1.NewAccountServiceClient(account),
		transactions: transactionv1.NewTransactionServiceClient(transaction), holds: transactionv1.NewHoldServiceClient(transaction),
		wait: durationpb.New(waitMax),
	}
}

// Waiting is a driver whose answers wait no longer than this for a transaction's end; 0 = not at all.
func (d *Driver) Waiting(most time.Duration) *Driver {
	other := *d
	if other.wait = nil; most > 0 {
		other.wait = durationpb.New(most)
	}
	return &other
}

// Expiring is a driver that places holds which expire then.
func (d *Driver) Expiring(at time.Time) *Driver {
	other := *d
	other.expires = timestamppb.New(at)
	return &other
}

// Open is model.System's.
func (d *Driver) Open(key string, o model.Opening) model.Answer {
	var h metadata.MD
	req := &accountv1.CreateAccountRequest{
		OwnerId: "walker", OwnerType: "person", AccountType: o.Type, Currency: o.Currency, MinBalance: amount(o.Min), MaxBalance: amount(o.Max), IdempotencyKey: &key,
	}
	res, err := d.accounts.CreateAccount(d.ctx, req, grpc.Header(&h))
	return d.answer("open an account", err, h, model.Answer{ID: res.GetAccount().GetAccountId(), Status: res.GetAccount().GetStatus()})
}

func amount(cents *int64) *string {
	if cents == nil {
		return nil
	}
	s := model.Format(*cents)
	return &s
}

// answer is what was said, or why not. An error without a reason, or whose reason is that something is broken, fails the test.
func (d *Driver) answer(what string, err error, h metadata.MD, a model.Answer) model.Answer {
	if err == nil {
		a.Replayed = len(h.Get("idempotency-replayed")) > 0
		return a
	}
	switch reason := Reason(err); reason {
	case "", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "OVERLOADED":
		d.t.Fatalf("%s: %v", what, err)
		return a
	default:
		return model.Answer{Refused: reason}
	}
}

// Reason is an error's reason; empty if it carries none.
func Reason(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

// Ask is model.System's.
func (d *Driver) Ask(o model.Order) model.Answer {
	var (
		h   metadata.MD
		res interface {
			GetTransaction() *transactionv1.Transaction
		}
		err  error
		wait = d.wait
		head = grpc.Header(&h)
	)
	switch o.Kind {
	case "topup":
		res, err = d.transactions.Topup(d.ctx, &transactionv1.TopupRequest{
			IdempotencyKey: o.Key, SourceAccountId: o.Source, DestinationAccountId: o.Destination, Amount: o.Amount, Currency: o.Currency, Wait: wait,
		}, head)
	case "withdrawal":
		res, err = d.transactions.Withdraw(d.ctx, &transactionv1.WithdrawRequest{
			IdempotencyKey: o.Key, SourceAccountId: o.Source, DestinationAccountId: o.Destination, Amount: o.Amount, Currency: o.Currency, Wait: wait,
		}, head)
	case "transfer":
		res, err = d.transactions.Transfer(d.ctx, &transactionv1.TransferRequest{
			IdempotencyKey: o.Key, SourceAccountId: o.Source, DestinationAccountId: o.Destination, Amount: o.Amount, Currency: o.Currency, Wait: wait,
		}, head)
	case "payment":
		res, err = d.transactions.Pay(d.ctx, &transactionv1.PayRequest{
			IdempotencyKey: o.Key, CustomerAccountId: o.Source, MerchantAccountId: o.Destination, Amount: o.Amount, Currency: o.Currency, Wait: wait,
		}, head)
	case "refund":
		res, err = d.transactions.Refund(d.ctx, &transactionv1.RefundRequest{IdempotencyKey: o.Key, PaymentId: o.On, Amount: optional(o.Amount), Wait: wait}, head)
	case "capture":
		res, err = d.holds.CaptureHold(d.ctx, &transactionv1.CaptureHoldRequest{
			HoldId: o.On, IdempotencyKey: o.Key, Amount: optional(o.Amount), DestinationAccountId: optional(o.Destination), Wait: wait,
		}, head)
	case "hold":
		return d.place(o)
	}
	if err != nil {
		return d.answer(o.Kind, err, h, model.Answer{})
	}
	return d.answer(o.Kind, nil, h, ended(res.GetTransaction()))
}

func ended(t *transactionv1.Transaction) model.Answer {
	return model.Answer{ID: t.GetTransactionId(), Status: t.GetStatus(), Reason: t.GetErrorReason(), Amount: t.GetAmount()}
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (d *Driver) place(o model.Order) model.Answer {
	var h metadata.MD
	res, err := d.holds.PlaceHold(d.ctx, &transactionv1.PlaceHoldRequest{
		IdempotencyKey: o.Key, AccountId: o.Source, DestinationAccountId: optional(o.Destination), Amount: o.Amount, Currency: o.Currency, Wait: d.wait,
		ExpiresAt: d.expires,
	}, grpc.Header(&h))
	hold := res.GetHold()
	a := model.Answer{ID: hold.GetHoldId(), Status: "completed", Reason: hold.GetErrorReason(), Amount: hold.GetAmount()}
	if hold.GetStatus() == "failed" || hold.GetStatus() == "pending" {
		a.Status = hold.GetStatus()
	}
	return d.answer("hold", err, h, a)
}

// Batch is model.System's. The answers are those after each transaction's end: asking again with the same key waits for it.
func (d *Driver) Batch(orders []model.Order) []model.Answer {
	req := &transactionv1.BatchRequest{}
	for _, o := range orders {
		x := &transactionv1.BatchItem{Type: o.Kind, IdempotencyKey: o.Key, Amount: optional(o.Amount)}
		switch o.Kind {
		case "refund":
			x.PaymentId = o.On
		case "payment":
			x.CustomerAccountId, x.MerchantAccountId, x.Currency = o.Source, o.Destination, o.Currency
		default:
			x.SourceAccountId, x.DestinationAccountId, x.Currency = o.Source, o.Destination, o.Currency
		}
		req.Transactions = append(req.Transactions, x)
	}
	res, err := d.transactions.Batch(d.ctx, req)
	if err != nil || len(res.GetResults()) != len(orders) {
		d.t.Fatalf("batch: %v %v", res, err)
	}
	answers := make([]model.Answer, len(orders))
	for i, r := range res.GetResults() {
		if r.GetError() != nil {
			answers[i] = model.Answer{Refused: r.GetError().GetReason()}
			continue
		}
		answers[i] = d.Ask(orders[i])
		if !answers[i].Replayed || answers[i].ID != r.GetTransaction().GetTransactionId() {
			d.t.Fatalf("batch item %+v was answered with %v, its repeat with %+v", orders[i], r, answers[i])
		}
		answers[i].Replayed = r.GetReplayed()
	}
	return answers
}

// Void is model.System's.
func (d *Driver) Void(hold string) model.Answer {
	var h metadata.MD
	res, err := d.holds.VoidHold(d.ctx, &transactionv1.VoidHoldRequest{HoldId: hold, Wait: d.wait}, grpc.Header(&h))
	return d.answer("void", err, h, model.Answer{ID: res.GetHold().GetHoldId(), Status: res.GetHold().GetStatus(), Amount: res.GetHold().GetAmount()})
}

const why = "a walk"

// SetStatus is model.System's.
func (d *Driver) SetStatus(account, key, to string) model.Answer {
	var h metadata.MD
	res, err := d.accounts.ChangeAccountStatus(d.ctx, &accountv1.ChangeAccountStatusRequest{
		AccountId: account, Status: to, Reason: why, IdempotencyKey: optional(key),
	}, grpc.Header(&h))
	return d.answer("change of status", err, h, model.Answer{ID: res.GetAccount().GetAccountId(), Status: res.GetAccount().GetStatus()})
}

// SetLimits is model.System's.
func (d *Driver) SetLimits(account, key string, lowest, highest model.Limit) model.Answer {
	var h metadata.MD
	res, err := d.accounts.ChangeAccountLimits(d.ctx, &accountv1.ChangeAccountLimitsRequest{
		AccountId: account, MinBalance: limit(lowest), MaxBalance: limit(highest), Reason: why, IdempotencyKey: optional(key),
	}, grpc.Header(&h))
	return d.answer("change of limits", err, h, model.Answer{ID: res.GetAccount().GetAccountId(), Status: res.GetAccount().GetStatus()})
}

func limit(l model.Limit) *string {
	if l.Set && l.To == nil {
		return new(string)
	}
	if !l.Set {
		return nil
	}
	return amount(l.To)
}

// Account is model.System's.
func (d *Driver) Account(id string) model.AccountView {
	res, err := d.accounts.GetAccount(d.ctx, &accountv1.GetAccountRequest{AccountId: id})
	if err != nil {
		d.t.Fatalf("account %s: %v", id, err)
	}
	a := res.GetAccount()
	return model.AccountView{
		Status: a.GetStatus(), Balance: a.GetBalance(), Held: a.GetHeldBalance(), Available: a.GetAvailableBalance(), Min: a.GetMinBalance(), Max: a.GetMaxBalance(),
	}
}

// Transaction is model.System's.
func (d *Driver) Transaction(id string) model.TransactionView {
	res, err := d.transactions.GetTransaction(d.ctx, &transactionv1.GetTransactionRequest{TransactionId: id})
	if err != nil {
		d.t.Fatalf("transaction %s: %v", id, err)
	}
	t := res.GetTransaction()
	return model.TransactionView{
		Status: t.GetStatus(), Reason: t.GetErrorReason(), Amount: t.GetAmount(), Refunded: t.GetRefundedAmount(), Refunding: t.GetRefundingAmount(),
	}
}

// Hold is model.System's.
func (d *Driver) Hold(id string) model.HoldView {
	res, err := d.holds.GetHold(d.ctx, &transactionv1.GetHoldRequest{HoldId: id})
	if err != nil {
		d.t.Fatalf("hold %s: %v", id, err)
	}
	h := res.GetHold()
	return model.HoldView{
		Status: h.GetStatus(), Reason: h.GetErrorReason(), Amount: h.GetAmount(), Captured: h.GetCapturedAmount(), Capturing: h.GetCapturingAmount(),
		Remaining: h.GetRemainingAmount(),
	}
}
