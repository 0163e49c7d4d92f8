package api

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sync/errgroup"

	"example.com/billing/pkg/batch"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/rpc"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/edge"
	"example.com/billing/services/transaction"
)

// batchFlights is how many of a batch's items are asked for at the same time: as many as the executor takes in one group.
const batchFlights = 256

// Batch asks for many transactions. Each item stands alone, as if it had been sent in a request of its own; but the call is admitted
// as a whole, or shed as a whole.
func (s *Server) Batch(ctx context.Context, req *transactionv1.BatchRequest) (*transactionv1.BatchResponse, error) {
	items := req.GetTransactions()
	if n := len(items); n == 0 || n > edge.BatchMax {
		return nil, rpc.Invalid(rpc.Violation{Field: "transactions", Rule: fmt.Sprintf("items:1..%d", edge.BatchMax), Value: strconv.Itoa(n)})
	}
	if err := s.admit(ctx, len(items)); err != nil {
		return nil, err
	}
	// The key of the request's metadata is nobody's here.
	caller := rpc.CallerFrom(ctx)
	caller.IdempotencyKey, caller.Wait = "", ""
	ctx = rpc.WithCaller(ctx, caller)
	res := &transactionv1.BatchResponse{Results: make([]*transactionv1.BatchResult, len(items))}
	var g errgroup.Group
	g.SetLimit(batchFlights)
	for i, item := range items {
		g.Go(func() error {
			res.Results[i] = s.item(ctx, item)
			return nil
		})
	}
	_ = g.Wait() // an item's error is its result
	return res, nil
}

func (s *Server) item(ctx context.Context, item *transactionv1.BatchItem) *transactionv1.BatchResult {
	var v rpc.Fields
	r, err := s.readItem(ctx, &v, item)
	if err = errors.Join(v.Err(), err); err != nil {
		return failed(err)
	}
	out, err := s.accept(ctx, r)
	if err != nil {
		return failed(err)
	}
	p, err := toProto(r.ID, out.State)
	if err != nil {
		return failed(err)
	}
	return &transactionv1.BatchResult{Transaction: p, Replayed: len(out.Events) == 0 || out.Replayed}
}

// itemTypes are the types that a batch can ask for.
var itemTypes = []transaction.Type{transaction.Topup, transaction.Withdrawal, transaction.Transfer, transaction.Payment, transaction.Refund}

// readItem reads an item as the request of its type.
func (s *Server) readItem(ctx context.Context, v *rpc.Fields, x *transactionv1.BatchItem) (transaction.Request, error) {
	t := transaction.Type(x.GetType())
	foreign(v, t, x)
	switch t {
	case transaction.Topup, transaction.Withdrawal, transaction.Transfer:
		return s.readMove(ctx, v, t, &transactionv1.TransferRequest{
			IdempotencyKey: x.GetIdempotencyKey(), SourceAccountId: x.GetSourceAccountId(), DestinationAccountId: x.GetDestinationAccountId(),
			Amount: x.GetAmount(), Currency: x.GetCurrency(), Reference: x.Reference, Metadata: x.GetMetadata(),
		}), nil
	case transaction.Payment:
		return s.readPayment(ctx, v, &transactionv1.PayRequest{
			IdempotencyKey: x.GetIdempotencyKey(), CustomerAccountId: x.GetCustomerAccountId(), MerchantAccountId: x.GetMerchantAccountId(),
			Amount: x.GetAmount(), Currency: x.GetCurrency(), Reference: x.Reference, Metadata: x.GetMetadata(),
		}), nil
	case transaction.Refund:
		return s.readRefund(ctx, v, &transactionv1.RefundRequest{
			IdempotencyKey: x.GetIdempotencyKey(), PaymentId: x.GetPaymentId(), Amount: x.Amount, Reason: x.Reason, Metadata: x.GetMetadata(),
		})
	}
	edge.OneOf(v, "type", x.GetType(), itemTypes)
	v.Required("type", x.GetType())
	return transaction.Request{}, nil
}

// foreign notes fields that belong to another type: what is silently ignored was meant for something.
func foreign(v *rpc.Fields, t transaction.Type, x *transactionv1.BatchItem) {
	move := t == transaction.Topup || t == transaction.Withdrawal || t == transaction.Transfer
	for _, f := range []struct {
		name, value string
		given, own  bool
	}{
		{"sourceAccountId", x.GetSourceAccountId(), x.GetSourceAccountId() != "", move},
		{"destinationAccountId", x.GetDestinationAccountId(), x.GetDestinationAccountId() != "", move},
		{"customerAccountId", x.GetCustomerAccountId(), x.GetCustomerAccountId() != "", t == transaction.Payment},
		{"merchantAccountId", x.GetMerchantAccountId(), x.GetMerchantAccountId() != "", t == transaction.Payment},
		{"paymentId", x.GetPaymentId(), x.GetPaymentId() != "", t == transaction.Refund},
		{"reason", x.GetReason(), x.Reason != nil, t == transaction.Refund},
		{"reference", x.GetReference(), x.Reference != nil, t != transaction.Refund},
		{"currency", x.GetCurrency(), x.GetCurrency() != "", t != transaction.Refund},
	} {
		if f.given && !f.own && t != "" {
			v.Add(f.name, "absent_for:"+string(t), f.value)
		}
	}
}

// failed says why an item was not accepted.
func failed(err error) *transactionv1.BatchResult {
	e := &transactionv1.BatchError{Reason: rpc.ReasonInternal}
	var own *rpc.Error
	refusal := es.RefusalOf(err)
	switch {
	case errors.As(err, &own):
		e.Reason, e.Detail = own.Reason, own.Message
		for _, f := range own.Violations {
			e.Errors = append(e.Errors, &transactionv1.BatchViolation{Field: f.Field, Rule: f.Rule, Value: f.Value})
		}
	case refusal != nil:
		e.Reason, e.Detail = refusal.Reason, refusal.Message
	case errors.Is(err, batch.ErrFull):
		e.Reason, e.Detail = rpc.ReasonOverloaded, "Too many requests at the moment; ask again with the same key."
	default:
		e.Reason, e.Detail = rpc.ReasonUnavailable, "It is not known whether it was accepted; ask again with the same key."
	}
	return &transactionv1.BatchResult{Error: e}
}
