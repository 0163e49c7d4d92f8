// Package api is the transaction service over gRPC.
package api

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/money"
	"example.com/billing/pkg/rpc"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/edge"
	"example.com/billing/services/transaction"
	"example.com/billing/services/transaction/admission"
	"example.com/billing/services/transaction/readmodel"
)

// Executor carries out commands on transactions.
type Executor = es.Executor[transaction.Transaction, transaction.Command]

// Accounts tells what a transaction must know of its accounts.
type Accounts interface {
	Sides(ctx context.Context, source, destination string) (s, d transaction.Side, err error)
}

// Parts are what the API stands on.
type Parts struct {
	Executor   *Executor
	Store      es.Store      // the executor's
	Watches    *edge.Watches // told of the store's commits
	Accounts   Accounts
	List       *readmodel.Transactions
	Currencies money.Catalogue
	Secret     []byte
	Admission  *admission.Controller // nil = everything is admitted
}

// Server is the service's gRPC API: TransactionService, HoldService and SettlementService. Safe for concurrent use.
type Server struct {
	// Unsafe, as grpc-go calls it, has no stand-ins: a method of the contract that nobody wrote does not compile.
	transactionv1.UnsafeTransactionServiceServer
	transactionv1.UnsafeHoldServiceServer
	transactionv1.UnsafeSettlementServiceServer
	Parts
	commands *cqrs.Bus
	queries  *cqrs.Bus
}

// New makes the server and registers its handlers on buses of its own.
func New(p Parts, mw ...cqrs.Middleware) *Server {
	s := &Server{Parts: p, commands: cqrs.NewBus(mw...), queries: cqrs.NewBus(mw...)}
	cqrs.Handle(s.commands, s.requestTransaction)
	cqrs.Handle(s.queries, func(ctx context.Context, q cqrs.Message[FindTransaction]) (transaction.Transaction, error) {
		out, err := s.Executor.Get(ctx, q.Body.TransactionID)
		return out.State, err
	})
	cqrs.Handle(s.queries, func(ctx context.Context, q cqrs.Message[ListTransactions]) ([]readmodel.Entry, error) {
		return s.List.List(ctx, q.Body.Filter)
	})
	cqrs.Handle(s.queries, s.listStuck)
	return s
}

// Register puts the services on a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	transactionv1.RegisterTransactionServiceServer(r, s)
	transactionv1.RegisterHoldServiceServer(r, s)
	transactionv1.RegisterSettlementServiceServer(r, s)
}

// The commands and queries of the public API.
type (
	// RequestTransaction asks for a transaction.
	RequestTransaction struct{ Request transaction.Request }
	// FindTransaction reads one transaction.
	FindTransaction struct{ TransactionID string }
	// ListTransactions reads a page of the read model.
	ListTransactions struct{ Filter readmodel.Filter }
	// ListStuck reads a page of the transactions that have been pending for too long.
	ListStuck struct{ Filter readmodel.Filter }
)

// Topup asks for a top-up.
func (s *Server) Topup(ctx context.Context, req *transactionv1.TopupRequest) (*transactionv1.TopupResponse, error) {
	t, err := s.order(ctx, req.GetWait(), func(ctx context.Context, v *rpc.Fields) (transaction.Request, error) {
		return s.readMove(ctx, v, transaction.Topup, req), nil
	})
	return &transactionv1.TopupResponse{Transaction: t}, err
}

// Withdraw asks for a withdrawal.
func (s *Server) Withdraw(ctx context.Context, req *transactionv1.WithdrawRequest) (*transactionv1.WithdrawResponse, error) {
	t, err := s.order(ctx, req.GetWait(), func(ctx context.Context, v *rpc.Fields) (transaction.Request, error) {
		return s.readMove(ctx, v, transaction.Withdrawal, req), nil
	})
	return &transactionv1.WithdrawResponse{Transaction: t}, err
}

// Transfer asks for a transfer.
func (s *Server) Transfer(ctx context.Context, req *transactionv1.TransferRequest) (*transactionv1.TransferResponse, error) {
	t, err := s.order(ctx, req.GetWait(), func(ctx context.Context, v *rpc.Fields) (transaction.Request, error) {
		return s.readMove(ctx, v, transaction.Transfer, req), nil
	})
	return &transactionv1.TransferResponse{Transaction: t}, err
}

// Pay asks for a payment.
func (s *Server) Pay(ctx context.Context, req *transactionv1.PayRequest) (*transactionv1.PayResponse, error) {
	t, err := s.order(ctx, req.GetWait(), func(ctx context.Context, v *rpc.Fields) (transaction.Request, error) {
		return s.readPayment(ctx, v, req), nil
	})
	return &transactionv1.PayResponse{Transaction: t}, err
}

// Refund asks for a refund.
func (s *Server) Refund(ctx context.Context, req *transactionv1.RefundRequest) (*transactionv1.RefundResponse, error) {
	t, err := s.order(ctx, req.GetWait(), func(ctx context.Context, v *rpc.Fields) (transaction.Request, error) {
		return s.readRefund(ctx, v, req)
	})
	return &transactionv1.RefundResponse{Transaction: t}, err
}

// GetTransaction reads a transaction from its stream.
func (s *Server) GetTransaction(ctx context.Context, req *transactionv1.GetTransactionRequest) (*transactionv1.GetTransactionResponse, error) {
	var v rpc.Fields
	id := v.UUID("transactionId", req.GetTransactionId())
	if err := v.Err(); err != nil {
		return nil, err
	}
	t, err := s.existing(ctx, id)
	if err != nil {
		return nil, err
	}
	p, err := shown(ctx, id, t)
	return &transactionv1.GetTransactionResponse{Transaction: p}, err
}

// existing reads a transaction that has to be there.
func (s *Server) existing(ctx context.Context, id string) (transaction.Transaction, error) {
	t, err := s.find(ctx, id)
	if err == nil && !t.Exists() {
		err = rpc.Fail("TRANSACTION_NOT_FOUND", "There is no transaction %s.", id)
	}
	return t, err
}

// find reads a transaction from its stream; one that is not there does not exist.
func (s *Server) find(ctx context.Context, id string) (transaction.Transaction, error) {
	return cqrs.Execute[FindTransaction, transaction.Transaction](ctx, s.queries, cqrs.New(FindTransaction{TransactionID: id}, edge.Origin(ctx)))
}

// replayed marks the answer as an earlier request's.
func replayed(ctx context.Context) {
	_ = grpc.SetHeader(ctx, metadata.Pairs("idempotency-replayed", "true")) // fails only outside of a call
}

// shown is a transaction as an answer of its own shows it, with the token that lists wait for.
func shown(ctx context.Context, id string, t transaction.Transaction) (*transactionv1.Transaction, error) {
	edge.SetConsistencyToken(ctx, token(id, t))
	return toProto(id, t)
}

func token(id string, t transaction.Transaction) string {
	return edge.ConsistencyToken(stream(id), t.Version)
}

func toProto(id string, t transaction.Transaction) (*transactionv1.Transaction, error) {
	version, err := edge.Version(t.Version)
	if err != nil {
		return nil, fmt.Errorf("show transaction %s: %w", id, err)
	}
	p := &transactionv1.Transaction{
		TransactionId: id, Type: string(t.Type), Status: string(t.Status), SourceAccountId: t.SourceID, DestinationAccountId: t.DestinationID,
		Amount: t.Format(t.Amount), Currency: t.Currency, Reference: t.Reference, Metadata: edge.Struct(t.Metadata),
		IdempotencyKey: t.IdempotencyKey, Version: version,
		CreatedAt: timestamppb.New(t.CreatedAt), UpdatedAt: timestamppb.New(t.UpdatedAt),
		PaymentId: edge.Optional(t.PaymentID), HoldId: edge.Optional(t.HoldID), Reason: t.Reason,
		ErrorReason: edge.Optional(t.ErrorReason), ErrorMessage: edge.Optional(t.ErrorMessage),
	}
	if t.Type == transaction.Payment {
		refunded, refunding := t.Format(t.Used), t.Format(t.Reserved)
		p.RefundedAmount, p.RefundingAmount = &refunded, &refunding
	}
	return p, nil
}
