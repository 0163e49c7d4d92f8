// Package api is the transaction service over gRPC.
package api

import (
	"context"
	"errors"
	"time"

	"github.com/shopspring/decimal"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/money"
	"example.com/billing/pkg/page"
	"example.com/billing/pkg/rpc"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/edge"
	"example.com/billing/services/transaction"
	"example.com/billing/services/transaction/readmodel"
)

// waitMax is the longest a caller may wait for a transaction to end.
const waitMax = 30 * time.Second

// Executor carries out commands on transactions.
type Executor = es.Executor[transaction.Transaction, transaction.Command]

// Accounts tells what a transaction must know of its accounts.
type Accounts interface {
	Sides(ctx context.Context, source, destination string) (s, d transaction.Side, err error)
}

// Server is the service's gRPC API: TransactionService and SettlementService. Safe for concurrent use.
type Server struct {
	transactionv1.UnimplementedTransactionServiceServer
	transactionv1.UnimplementedSettlementServiceServer
	executor   *Executor
	accounts   Accounts
	commands   *cqrs.Bus
	queries    *cqrs.Bus
	currencies money.Catalogue
	secret     []byte
	store      es.Store
	watches    *edge.Watches
}

// New makes the server and registers its handlers on buses of its own. store is the executor's; watches are told of its commits.
func New(x *Executor, store es.Store, watches *edge.Watches, accounts Accounts, list *readmodel.Transactions, currencies money.Catalogue, secret []byte,
	mw ...cqrs.Middleware,
) *Server {
	s := &Server{
		executor: x, store: store, watches: watches, accounts: accounts, commands: cqrs.NewBus(mw...), queries: cqrs.NewBus(mw...),
		currencies: currencies, secret: secret,
	}
	cqrs.Handle(s.commands, s.requestTransaction)
	cqrs.Handle(s.queries, func(ctx context.Context, q cqrs.Message[FindTransaction]) (transaction.Transaction, error) {
		out, err := x.Get(ctx, q.Body.TransactionID)
		return out.State, err
	})
	cqrs.Handle(s.queries, func(ctx context.Context, q cqrs.Message[ListTransactions]) ([]readmodel.Entry, error) {
		return list.List(ctx, q.Body.Filter)
	})
	return s
}

// Register puts the services on a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	transactionv1.RegisterTransactionServiceServer(r, s)
	transactionv1.RegisterSettlementServiceServer(r, s)
}

// The commands and queries of the public API.
type (
	// RequestTransaction asks for a transaction.
	RequestTransaction struct {
		TransactionID string
		Request       transaction.Request
	}
	// FindTransaction reads one transaction.
	FindTransaction struct{ TransactionID string }
	// ListTransactions reads a page of the read model.
	ListTransactions struct{ Filter readmodel.Filter }
)

// Topup asks for a top-up.
func (s *Server) Topup(ctx context.Context, req *transactionv1.TopupRequest) (*transactionv1.TopupResponse, error) {
	t, err := s.request(ctx, transaction.Topup, req)
	return &transactionv1.TopupResponse{Transaction: t}, err
}

// Withdraw asks for a withdrawal.
func (s *Server) Withdraw(ctx context.Context, req *transactionv1.WithdrawRequest) (*transactionv1.WithdrawResponse, error) {
	t, err := s.request(ctx, transaction.Withdrawal, req)
	return &transactionv1.WithdrawResponse{Transaction: t}, err
}

// Transfer asks for a transfer.
func (s *Server) Transfer(ctx context.Context, req *transactionv1.TransferRequest) (*transactionv1.TransferResponse, error) {
	t, err := s.request(ctx, transaction.Transfer, req)
	return &transactionv1.TransferResponse{Transaction: t}, err
}

// asked is what the three requests have in common.
type asked interface {
	GetIdempotencyKey() string
	GetSourceAccountId() string
	GetDestinationAccountId() string
	GetAmount() string
	GetCurrency() string
	GetReference() string
	GetMetadata() *structpb.Struct
	GetWait() *durationpb.Duration
}

// reference tells an absent reference from an empty one.
func reference(req asked) *string {
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

// request accepts a transaction, or finds the one that its key asked for before, and waits for its end if the caller wants.
func (s *Server) request(ctx context.Context, t transaction.Type, req asked) (*transactionv1.Transaction, error) {
	r, forEnd, err := s.read(ctx, t, req)
	if err != nil {
		return nil, err
	}
	origin := edge.Origin(ctx)
	id := edge.DeriveID(s.secret, transaction.AggregateType, origin.TenantID, r.IdempotencyKey)
	out, err := cqrs.Execute[RequestTransaction, es.Outcome[transaction.Transaction]](ctx, s.commands, cqrs.New(RequestTransaction{TransactionID: id, Request: r}, origin))
	if err != nil {
		return nil, err
	}
	if len(out.Events) == 0 || out.Replayed {
		_ = grpc.SetHeader(ctx, metadata.Pairs("idempotency-replayed", "true")) // fails only outside of a call
	}
	state := out.State
	if forEnd > 0 && !state.Ended() {
		look := func(ctx context.Context) (bool, error) {
			out, err := s.executor.Get(ctx, id)
			state = out.State
			return out.State.Ended(), err
		}
		news, leave := s.watches.Hub.Listen(stream(id))
		defer leave()
		if err := wait(ctx, news, forEnd, look); err != nil {
			return nil, err
		}
	}
	return toProto(id, state), nil
}

// read checks a request's shape.
func (s *Server) read(ctx context.Context, t transaction.Type, req asked) (transaction.Request, time.Duration, error) {
	var v rpc.Fields
	r := transaction.Request{Type: t, Currency: req.GetCurrency(), Reference: reference(req), Metadata: edge.Metadata(req.GetMetadata())}
	r.IdempotencyKey = edge.IdempotencyKey(ctx, &v, req.GetIdempotencyKey(), true)
	r.SourceID = v.UUID("sourceAccountId", req.GetSourceAccountId())
	r.DestinationID = v.UUID("destinationAccountId", req.GetDestinationAccountId())
	if cur, ok := s.currencies.Find(req.GetCurrency()); ok {
		r.Scale = cur.Scale
		r.Amount = readAmount(&v, cur, req.GetAmount())
	} else {
		v.OneOf("currency", req.GetCurrency(), s.currencies.Codes()...)
	}
	v.MaxLen("reference", req.GetReference(), edge.ReferenceMax)
	v.Struct("metadata", req.GetMetadata(), edge.MetadataMax)
	forEnd := waitTime(ctx, &v, req)
	return r, forEnd, v.Err()
}

func readAmount(v *rpc.Fields, cur money.Currency, s string) decimal.Decimal {
	d, err := cur.ParsePositive(s)
	var m *money.Error
	if errors.As(err, &m) {
		v.Add("amount", m.Rule, m.Value)
	}
	return d
}

// waitTime is how long the caller wants to wait, by the request or by its metadata.
func waitTime(ctx context.Context, v *rpc.Fields, req asked) time.Duration {
	if req.GetWait() == nil {
		d, err := rpc.CallerFrom(ctx).WaitFor(waitMax)
		if err != nil {
			v.Add("wait", "range:0s.."+waitMax.String(), rpc.CallerFrom(ctx).Wait)
		}
		return d
	}
	d := req.GetWait().AsDuration()
	if req.GetWait().CheckValid() != nil || d < 0 || d > waitMax {
		v.Add("wait", "range:0s.."+waitMax.String(), d.String())
	}
	return d
}

// requestTransaction asks the accounts' own streams first; what they say is decided in the transaction's stream, where a
// repeat finds its answer whatever the accounts say now.
func (s *Server) requestTransaction(ctx context.Context, c cqrs.Message[RequestTransaction]) (es.Outcome[transaction.Transaction], error) {
	r := c.Body.Request
	source, destination, err := s.accounts.Sides(ctx, r.SourceID, r.DestinationID)
	if err != nil {
		r.Checked = err
	} else if refusal := transaction.Check(r.Type, r.Currency, source, destination, r.SourceID, r.DestinationID); refusal != nil {
		r.Checked = refusal
	}
	return s.executor.Execute(ctx, es.Command[transaction.Command]{
		ID: c.ID, StreamID: c.Body.TransactionID, At: c.At, CorrelationID: c.CorrelationID, Metadata: c.Metadata(), Creates: true, Body: r,
	})
}

// GetTransaction reads a transaction from its stream.
func (s *Server) GetTransaction(ctx context.Context, req *transactionv1.GetTransactionRequest) (*transactionv1.GetTransactionResponse, error) {
	var v rpc.Fields
	id := v.UUID("transactionId", req.GetTransactionId())
	if err := v.Err(); err != nil {
		return nil, err
	}
	t, err := cqrs.Execute[FindTransaction, transaction.Transaction](ctx, s.queries, cqrs.New(FindTransaction{TransactionID: id}, edge.Origin(ctx)))
	if err != nil {
		return nil, err
	}
	if !t.Exists() {
		return nil, rpc.Fail("TRANSACTION_NOT_FOUND", "There is no transaction %s.", id)
	}
	return &transactionv1.GetTransactionResponse{Transaction: toProto(id, t)}, nil
}

// ListTransactions lists from the read model.
func (s *Server) ListTransactions(ctx context.Context, req *transactionv1.ListTransactionsRequest) (*transactionv1.ListTransactionsResponse, error) {
	var v rpc.Fields
	origin := edge.Origin(ctx)
	f := readmodel.Filter{TenantID: origin.TenantID}
	if req.GetAccountId() != "" {
		f.AccountID = v.UUID("accountId", req.GetAccountId())
	}
	size := v.PageSize("pageSize", req.GetPageSize(), edge.PageSize, edge.PageSizeMax)
	if err := v.Err(); err != nil {
		return nil, err
	}
	if req.GetPageToken() != "" {
		if err := rpc.DecodePageToken(req.GetPageToken(), &f.Before); err != nil {
			return nil, err
		}
	}
	f.Limit = int(size) + 1
	entries, err := cqrs.Execute[ListTransactions, []readmodel.Entry](ctx, s.queries, cqrs.New(ListTransactions{Filter: f}, origin))
	if err != nil {
		return nil, err
	}
	res := &transactionv1.ListTransactionsResponse{}
	if len(entries) > int(size) {
		entries = entries[:size]
		last := entries[size-1]
		res.NextPageToken = rpc.EncodePageToken(page.Cursor{CreatedAt: last.Transaction.CreatedAt, ID: last.ID})
	}
	for _, e := range entries {
		res.Transactions = append(res.Transactions, toProto(e.ID, e.Transaction))
	}
	return res, nil
}

func toProto(id string, t transaction.Transaction) *transactionv1.Transaction {
	p := &transactionv1.Transaction{
		TransactionId: id, Type: string(t.Type), Status: string(t.Status), SourceAccountId: t.SourceID, DestinationAccountId: t.DestinationID,
		Amount: t.Amount.StringFixed(t.Scale), Currency: t.Currency, Reference: t.Reference, Metadata: edge.Struct(t.Metadata),
		IdempotencyKey: t.IdempotencyKey, Version: int32(t.Version), //nolint:gosec // two events
		CreatedAt: timestamppb.New(t.CreatedAt), UpdatedAt: timestamppb.New(t.UpdatedAt),
	}
	if t.ErrorReason != "" {
		p.ErrorReason, p.ErrorMessage = &t.ErrorReason, &t.ErrorMessage
	}
	return p
}
