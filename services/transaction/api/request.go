package api

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/shopspring/decimal"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/failpoint"
	"example.com/billing/pkg/money"
	"example.com/billing/pkg/rpc"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/edge"
	"example.com/billing/services/transaction"
	"example.com/billing/services/transaction/admission"
)

// read checks a request's shape and returns what it asks for; what is wrong is noted in v.
type read func(ctx context.Context, v *rpc.Fields) (transaction.Request, error)

// order accepts a transaction, or finds the one that its key asked for before, and waits for its end if the caller wants.
func (s *Server) order(ctx context.Context, wait *durationpb.Duration, read read) (*transactionv1.Transaction, error) {
	id, t, err := s.carryOut(ctx, wait, read)
	if err != nil {
		return nil, err
	}
	return shown(ctx, id, t)
}

// carryOut is order with the domain's transaction as its answer.
func (s *Server) carryOut(ctx context.Context, wait *durationpb.Duration, read read) (string, transaction.Transaction, error) {
	if err := s.admit(ctx, 1); err != nil {
		return "", transaction.Transaction{}, err
	}
	var v rpc.Fields
	r, err := read(ctx, &v)
	if err != nil {
		return "", transaction.Transaction{}, err
	}
	forEnd := edge.Wait(ctx, &v, wait, 0)
	if err := v.Err(); err != nil {
		return "", transaction.Transaction{}, err
	}
	out, err := s.accept(ctx, r)
	if err != nil {
		return "", transaction.Transaction{}, err
	}
	if len(out.Events) == 0 || out.Replayed {
		replayed(ctx)
	}
	t, err := s.await(ctx, r.ID, out.State, forEnd)
	failpoint.Hit("transaction.before_answer")
	return r.ID, t, err
}

// admit refuses a call for n transactions while more is asked for than can be carried out. It comes before everything that costs
// something: what is shed is neither read nor looked up, repeats included.
func (s *Server) admit(ctx context.Context, n int) error {
	caller := rpc.CallerFrom(ctx)
	return s.Admission.Admit(admission.Caller{Tenant: caller.TenantID, Actor: caller.Actor}, n)
}

// accept has a request decided.
func (s *Server) accept(ctx context.Context, r transaction.Request) (es.Outcome[transaction.Transaction], error) {
	return cqrs.Execute[RequestTransaction, es.Outcome[transaction.Transaction]](ctx, s.commands, cqrs.New(RequestTransaction{Request: r}, edge.Origin(ctx)))
}

// await waits for a transaction's end until the time is over.
func (s *Server) await(ctx context.Context, id string, t transaction.Transaction, forEnd time.Duration) (transaction.Transaction, error) {
	if forEnd <= 0 || t.Ended() {
		return t, nil
	}
	glance := func() bool {
		known, ok := s.Executor.Recall(id)
		ended := ok && known.State.Ended() // and it has for every process
		if ended {
			t = known.State
		}
		return ended
	}
	look := func(ctx context.Context) (bool, error) {
		out, err := s.Executor.Get(ctx, id)
		t = out.State
		return out.State.Ended(), err
	}
	news, leave := s.Watches.Hub.Listen(stream(id))
	defer leave()
	err := wait(ctx, s.Watches.Stopping(), news, forEnd, glance, look)
	return t, err
}

// requestTransaction asks the accounts' own streams first; what they say is decided in the transaction's stream, where a
// repeat finds its answer whatever the accounts say now.
func (s *Server) requestTransaction(ctx context.Context, c cqrs.Message[RequestTransaction]) (es.Outcome[transaction.Transaction], error) {
	r := c.Body.Request
	if r.Checked == nil && r.SourceID != "" && r.Type != transaction.Release {
		r.Checked = s.checkAccounts(ctx, r)
	}
	failpoint.Hit("transaction.before_commit")
	out, err := s.Executor.Execute(ctx, es.Command[transaction.Command]{
		ID: c.ID, StreamID: r.ID, OtherID: cmp.Or(r.PaymentID, r.HoldID), At: c.At, CorrelationID: c.CorrelationID, Metadata: c.Metadata(), Creates: true, Body: r,
	})
	failpoint.Hit("transaction.after_commit")
	return out, err
}

// checkAccounts is nil if the accounts take part, a refusal if they do not, another error if that is not known.
func (s *Server) checkAccounts(ctx context.Context, r transaction.Request) error {
	second := r.DestinationID
	if second == "" {
		second = r.SourceID // not looked at
	}
	source, destination, err := s.Accounts.Sides(ctx, r.SourceID, second)
	if err != nil {
		return err
	}
	if refusal := transaction.Check(r.Type, r.Currency, source, destination, r.SourceID, r.DestinationID); refusal != nil {
		return refusal
	}
	return nil
}

// keyed reads the idempotency key and gives the request the id that goes with it.
func (s *Server) keyed(ctx context.Context, v *rpc.Fields, r *transaction.Request, key string) {
	r.IdempotencyKey = edge.IdempotencyKey(ctx, v, key, true)
	r.ID = edge.DeriveID(s.Secret, transaction.AggregateType, edge.Origin(ctx).TenantID, r.IdempotencyKey)
}

// money reads an amount and its currency.
func (s *Server) money(v *rpc.Fields, r *transaction.Request, amount, currency string) {
	r.Currency = currency
	cur, ok := s.Currencies.Find(currency)
	if !ok {
		v.OneOf("currency", currency, s.Currencies.Codes()...)
		return
	}
	r.Scale, r.Amount = cur.Scale, readAmount(v, cur, amount)
}

// described reads what the caller says of the transaction.
func described(v *rpc.Fields, r *transaction.Request, reference *string, metadata *structpb.Struct) {
	if r.Reference = reference; reference != nil {
		v.MaxLen("reference", *reference, edge.ReferenceMax)
	}
	v.Struct("metadata", metadata, edge.MetadataMax)
	r.Metadata = edge.Metadata(metadata)
}

// move is what the requests have in common that name a source and a destination.
type move interface {
	GetIdempotencyKey() string
	GetSourceAccountId() string
	GetDestinationAccountId() string
	GetAmount() string
	GetCurrency() string
	GetMetadata() *structpb.Struct
}

// reference tells an absent reference from an empty one.
func reference(req move) *string {
	switch r := req.(type) {
	case *transactionv1.TopupRequest:
		return r.Reference
	case *transactionv1.WithdrawRequest:
		return r.Reference
	case *transactionv1.TransferRequest:
		return r.Reference
	}
	return nil
}

func (s *Server) readMove(ctx context.Context, v *rpc.Fields, t transaction.Type, req move) transaction.Request {
	r := transaction.Request{Type: t}
	s.keyed(ctx, v, &r, req.GetIdempotencyKey())
	r.SourceID = v.UUID("sourceAccountId", req.GetSourceAccountId())
	r.DestinationID = v.UUID("destinationAccountId", req.GetDestinationAccountId())
	s.money(v, &r, req.GetAmount(), req.GetCurrency())
	described(v, &r, reference(req), req.GetMetadata())
	return r
}

func (s *Server) readPayment(ctx context.Context, v *rpc.Fields, req *transactionv1.PayRequest) transaction.Request {
	r := transaction.Request{Type: transaction.Payment}
	s.keyed(ctx, v, &r, req.GetIdempotencyKey())
	r.SourceID = v.UUID("customerAccountId", req.GetCustomerAccountId())
	r.DestinationID = v.UUID("merchantAccountId", req.GetMerchantAccountId())
	s.money(v, &r, req.GetAmount(), req.GetCurrency())
	described(v, &r, req.Reference, req.GetMetadata())
	return r
}

// readRefund looks at the payment for what the refund takes over from it. All that never changes once it was accepted; what
// does is decided in the payment's stream.
func (s *Server) readRefund(ctx context.Context, v *rpc.Fields, req *transactionv1.RefundRequest) (transaction.Request, error) {
	r := transaction.Request{Type: transaction.Refund, Reason: req.Reason, Whole: req.Amount == nil}
	s.keyed(ctx, v, &r, req.GetIdempotencyKey())
	r.PaymentID = v.UUID("paymentId", req.GetPaymentId())
	v.MaxLen("reason", req.GetReason(), edge.ReferenceMax)
	described(v, &r, nil, req.GetMetadata())
	if !v.OK() {
		return r, nil
	}
	on, err := s.find(ctx, r.PaymentID)
	if err != nil {
		return r, err
	}
	if on.Type == transaction.Payment {
		r.SourceID, r.DestinationID = on.DestinationID, on.SourceID
	}
	s.share(v, &r, on, req.Amount)
	return r, nil
}

// share reads the amount of a refund or capture in the currency of what it is reserved on.
func (s *Server) share(v *rpc.Fields, r *transaction.Request, on transaction.Transaction, amount *string) {
	r.Currency, r.Scale = on.Currency, on.Scale
	if amount == nil || !on.Exists() {
		return
	}
	cur, ok := s.Currencies.Find(on.Currency)
	if !ok {
		cur = money.Currency{Code: on.Currency, Scale: on.Scale}
	}
	r.Amount = readAmount(v, cur, *amount)
}

func readAmount(v *rpc.Fields, cur money.Currency, s string) decimal.Decimal {
	d, err := cur.ParsePositive(s)
	var m *money.Error
	if errors.As(err, &m) {
		v.Add("amount", m.Rule, m.Value)
	}
	return d
}
