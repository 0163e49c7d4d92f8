// Package api is the account service over gRPC.
package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/shopspring/decimal"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/money"
	"example.com/billing/pkg/page"
	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
	"example.com/billing/services/account/readmodel"
	"example.com/billing/services/account/reconcile"
	"example.com/billing/services/edge"
)

// Executor carries out commands on accounts.
type Executor = es.Executor[account.Account, account.Command]

// Parts are what the API stands on.
type Parts struct {
	Executor   *Executor
	Store      es.Store                        // the executor's
	Fresh      func(ctx context.Context) error // returns once the database has what the store had; nil = it always has
	Watches    *edge.Watches                   // told of the store's commits
	Accounts   *readmodel.Accounts
	Pool       *pgxpool.Pool
	Currencies money.Catalogue
	Secret     []byte
	Closing    *Closing
	Reconciler *reconcile.Reconciler
}

// Server is the service's gRPC API: AccountService, PostingService and BooksService. Safe for concurrent use.
type Server struct {
	// Unsafe, as grpc-go calls it, has no stand-ins: a method of the contract that nobody wrote does not compile.
	accountv1.UnsafeAccountServiceServer
	accountv1.UnsafePostingServiceServer
	accountv1.UnsafeBooksServiceServer
	Parts
	Commands *cqrs.Bus
	Queries  *cqrs.Bus
}

// New makes the server and registers its handlers on buses of its own.
func New(p Parts, mw ...cqrs.Middleware) *Server {
	s := &Server{Parts: p, Commands: cqrs.NewBus(mw...), Queries: cqrs.NewBus(mw...)}
	cqrs.Handle(s.Commands, s.openAccount)
	cqrs.Handle(s.Commands, s.changeStatus)
	cqrs.Handle(s.Commands, s.changeLimits)
	cqrs.Handle(s.Queries, func(ctx context.Context, q cqrs.Message[FindAccount]) (found, error) {
		out, err := p.Executor.Get(ctx, q.Body.AccountID)
		return found{q.Body.AccountID, out.State}, err
	})
	cqrs.Handle(s.Queries, func(ctx context.Context, q cqrs.Message[ListAccounts]) ([]readmodel.Entry, error) {
		return p.Accounts.List(ctx, q.Body.Filter)
	})
	cqrs.Handle(s.Queries, s.findAccountAt)
	cqrs.Handle(s.Queries, s.readHistory)
	cqrs.Handle(s.Queries, s.readStatement)
	return s
}

// Register puts the services on a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	accountv1.RegisterAccountServiceServer(r, s)
	accountv1.RegisterPostingServiceServer(r, s)
	accountv1.RegisterBooksServiceServer(r, s)
}

// The commands and queries of the public API.
type (
	// OpenAccount opens an account.
	OpenAccount struct {
		AccountID string
		Open      account.Open
	}
	// ChangeAccountStatus changes an account's status.
	ChangeAccountStatus struct {
		AccountID, Key string
		Change         account.ChangeStatus
	}
	// ChangeAccountLimits changes an account's limits.
	ChangeAccountLimits struct {
		AccountID, Key string
		Change         account.ChangeLimits
	}
	// FindAccount reads one account.
	FindAccount struct{ AccountID string }
	// FindAccountAt reads one account as it was at a version.
	FindAccountAt struct {
		AccountID string
		Version   int64
	}
	// ListAccounts reads a page of the read model.
	ListAccounts struct{ Filter readmodel.Filter }
	// ReadHistory reads the newest events below a version.
	ReadHistory struct {
		AccountID string
		Below     int64
		Limit     int
	}
	// ReadStatement reads a page of a statement.
	ReadStatement struct {
		AccountID string
		Statement Statement
		Limit     int
	}
)

// found is an account with its id.
type found struct {
	id    string
	state account.Account
}

// CreateAccount opens an account.
func (s *Server) CreateAccount(ctx context.Context, req *accountv1.CreateAccountRequest) (*accountv1.CreateAccountResponse, error) {
	var v rpc.Fields
	if v.Required("ownerId", req.GetOwnerId()) {
		v.MaxLen("ownerId", req.GetOwnerId(), 128)
	}
	if v.Required("ownerType", req.GetOwnerType()) {
		v.MaxLen("ownerType", req.GetOwnerType(), 64)
	}
	v.OneOf("accountType", req.GetAccountType(), account.Types()...)
	v.Struct("metadata", req.GetMetadata(), edge.MetadataMax)
	key := edge.IdempotencyKey(ctx, &v, req.GetIdempotencyKey(), false)
	open := account.Open{
		OwnerID: req.GetOwnerId(), OwnerType: req.GetOwnerType(), Type: account.Type(req.GetAccountType()),
		Currency: req.GetCurrency(), Metadata: edge.Metadata(req.GetMetadata()),
	}
	if cur, ok := s.Currencies.Find(req.GetCurrency()); ok {
		open.Scale = cur.Scale
		open.MinBalance = balanceLimit(&v, "minBalance", cur, req.MinBalance)
		open.MaxBalance = balanceLimit(&v, "maxBalance", cur, req.MaxBalance)
		checkLimits(&v, open, req)
	} else {
		v.OneOf("currency", req.GetCurrency(), s.Currencies.Codes()...)
	}
	if err := v.Err(); err != nil {
		return nil, err
	}
	hash, err := requestHash(open.Fact())
	if err != nil {
		return nil, err
	}
	open.RequestHash = hash
	origin := edge.Origin(ctx)
	id := uuid.NewString()
	if key != "" {
		id = edge.DeriveID(s.Secret, account.AggregateType, origin.TenantID, key)
	}
	out, err := cqrs.Execute[OpenAccount, es.Outcome[account.Account]](ctx, s.Commands, cqrs.New(OpenAccount{AccountID: id, Open: open}, origin))
	if err != nil {
		return nil, err
	}
	if len(out.Events) == 0 || out.Replayed {
		replayed(ctx)
	}
	p, err := shown(ctx, id, out.State)
	return &accountv1.CreateAccountResponse{Account: p}, err
}

func (s *Server) openAccount(ctx context.Context, c cqrs.Message[OpenAccount]) (es.Outcome[account.Account], error) {
	return s.Executor.Execute(ctx, command(c.Info, c.Body.AccountID, "", true, c.Body.Open))
}

// balanceLimit reads an optional limit.
func balanceLimit(v *rpc.Fields, field string, cur money.Currency, s *string) *decimal.Decimal {
	if s == nil {
		return nil
	}
	d, err := cur.ParseSigned(*s)
	if err != nil {
		addMoneyError(v, field, err)
		return nil
	}
	return &d
}

// checkLimits: EXTERNAL accounts have none, and the limits do not cross.
func checkLimits(v *rpc.Fields, o account.Open, req *accountv1.CreateAccountRequest) {
	if o.Type == account.External {
		if req.MinBalance != nil {
			v.Add("minBalance", "absent_for:EXTERNAL", req.GetMinBalance())
		}
		if req.MaxBalance != nil {
			v.Add("maxBalance", "absent_for:EXTERNAL", req.GetMaxBalance())
		}
		return
	}
	lowest := o.MinBalance
	if lowest == nil && o.Type == account.User {
		lowest = &decimal.Zero
	}
	if lowest != nil && o.MaxBalance != nil && o.MaxBalance.LessThan(*lowest) {
		v.Add("maxBalance", "at_least:minBalance", req.GetMaxBalance())
	}
}

// ChangeAccountStatus suspends, re-activates or closes.
func (s *Server) ChangeAccountStatus(ctx context.Context, req *accountv1.ChangeAccountStatusRequest) (*accountv1.ChangeAccountStatusResponse, error) {
	var v rpc.Fields
	id := v.UUID("accountId", req.GetAccountId())
	v.OneOf("status", req.GetStatus(), string(account.Active), string(account.Suspended), string(account.Closed))
	if v.Required("reason", req.GetReason()) {
		v.MaxLen("reason", req.GetReason(), edge.ReferenceMax)
	}
	key := edge.IdempotencyKey(ctx, &v, req.GetIdempotencyKey(), false)
	change := account.ChangeStatus{
		Status: account.Status(req.GetStatus()), Reason: req.GetReason(), ExpectedVersion: expectedVersion(&v, req.ExpectedVersion),
	}
	if err := v.Err(); err != nil {
		return nil, err
	}
	out, err := cqrs.Execute[ChangeAccountStatus, es.Outcome[account.Account]](ctx, s.Commands,
		cqrs.New(ChangeAccountStatus{AccountID: id, Key: key, Change: change}, edge.Origin(ctx)))
	if err != nil {
		return nil, err
	}
	if out.Replayed {
		if err := sameChange(out.Events[0], change); err != nil {
			return nil, err
		}
		replayed(ctx)
	}
	state := out.State
	if state.Status == account.Closing && change.Status == account.Closed {
		// If this does not work out the account is closing all the same, and is looked after from time to time.
		if now, err := s.Closing.finish(ctx, id, state, edge.Origin(ctx)); err == nil && now != nil {
			state = *now
		}
	}
	p, err := shown(ctx, id, state)
	return &accountv1.ChangeAccountStatusResponse{Account: p}, err
}

func (s *Server) changeStatus(ctx context.Context, c cqrs.Message[ChangeAccountStatus]) (es.Outcome[account.Account], error) {
	key := ""
	if c.Body.Key != "" {
		key = "status/" + c.TenantID + "/" + c.Body.Key
		c.Body.Change.Keyed = true
	}
	return s.Executor.Execute(ctx, command(c.Info, c.Body.AccountID, key, false, c.Body.Change))
}

// sameChange compares a repeat with the change that its key made.
func sameChange(e es.Event, c account.ChangeStatus) error {
	f, err := account.Decode(e)
	if err != nil {
		return err
	}
	first, ok := f.(account.StatusChanged)
	if !ok || !c.SameAs(first) {
		return rpc.Fail("IDEMPOTENCY_CONFLICT", "The idempotency key changed the status to %s (%s).", first.NewStatus, first.Reason)
	}
	return nil
}

// GetAccount reads an account from its stream.
func (s *Server) GetAccount(ctx context.Context, req *accountv1.GetAccountRequest) (*accountv1.GetAccountResponse, error) {
	a, err := s.find(ctx, req.GetAccountId())
	if err != nil {
		return nil, err
	}
	p, err := shown(ctx, a.id, a.state)
	return &accountv1.GetAccountResponse{Account: p}, err
}

func (s *Server) find(ctx context.Context, accountID string) (found, error) {
	var v rpc.Fields
	id := v.UUID("accountId", accountID)
	if err := v.Err(); err != nil {
		return found{}, err
	}
	a, err := cqrs.Execute[FindAccount, found](ctx, s.Queries, cqrs.New(FindAccount{AccountID: id}, edge.Origin(ctx)))
	if err != nil {
		return found{}, err
	}
	if !a.state.Exists() {
		return found{}, rpc.Fail("ACCOUNT_NOT_FOUND", "There is no account %s.", id)
	}
	return a, nil
}

// ListAccounts lists from the read model.
func (s *Server) ListAccounts(ctx context.Context, req *accountv1.ListAccountsRequest) (*accountv1.ListAccountsResponse, error) {
	var v rpc.Fields
	v.MaxLen("ownerId", req.GetOwnerId(), 128)
	v.MaxLen("ownerType", req.GetOwnerType(), 64)
	edge.OneOf(&v, "accountType", req.GetAccountType(), account.Types())
	edge.OneOf(&v, "status", req.GetStatus(), account.Statuses())
	edge.OneOf(&v, "currency", req.GetCurrency(), s.Currencies.Codes())
	size := v.PageSize("pageSize", req.GetPageSize(), edge.PageSize, edge.PageSizeMax)
	seen := edge.ReadConsistencyToken(&v, req.GetConsistencyToken())
	if err := v.Err(); err != nil {
		return nil, err
	}
	origin := edge.Origin(ctx)
	f := readmodel.Filter{TenantID: origin.TenantID, OwnerID: req.GetOwnerId(), OwnerType: req.GetOwnerType(),
		Type: req.GetAccountType(), Status: req.GetStatus(), Currency: req.GetCurrency(), Limit: int(size) + 1}
	if req.GetPageToken() != "" {
		if err := rpc.DecodePageToken(req.GetPageToken(), &f.Before); err != nil {
			return nil, err
		}
	}
	if err := edge.AwaitShown(ctx, s.Watches.Stopping(), s.Accounts.Wait, s.Store, seen); err != nil {
		return nil, err
	}
	entries, err := cqrs.Execute[ListAccounts, []readmodel.Entry](ctx, s.Queries, cqrs.New(ListAccounts{Filter: f}, origin))
	if err != nil {
		return nil, err
	}
	res := &accountv1.ListAccountsResponse{}
	if len(entries) > int(size) {
		entries = entries[:size]
		last := entries[size-1]
		res.NextPageToken = rpc.EncodePageToken(page.Cursor{CreatedAt: last.Account.CreatedAt, ID: last.ID})
	}
	for _, e := range entries {
		p, err := toProto(e.ID, e.Account)
		if err != nil {
			return nil, err
		}
		res.Accounts = append(res.Accounts, p)
	}
	return res, nil
}

// command addresses a domain command to an account.
func command(i cqrs.Info, accountID, key string, creates bool, body account.Command) es.Command[account.Command] {
	return es.Command[account.Command]{
		ID: i.ID, StreamID: accountID, Key: key, At: i.At, CorrelationID: i.CorrelationID, Metadata: i.Metadata(), Creates: creates, Body: body,
	}
}

// shown is an account as an answer carries it, with the token for what it shows.
func shown(ctx context.Context, id string, a account.Account) (*accountv1.Account, error) {
	edge.SetConsistencyToken(ctx, edge.ConsistencyToken(stream(id), a.Version))
	return toProto(id, a)
}

func stream(accountID string) es.Stream {
	return es.Stream{Type: account.AggregateType, ID: accountID}
}

func toProto(id string, a account.Account) (*accountv1.Account, error) {
	version, err := edge.Version(a.Version)
	if err != nil {
		return nil, fmt.Errorf("show account %s: %w", id, err)
	}
	return &accountv1.Account{
		AccountId: id, OwnerId: a.OwnerID, OwnerType: a.OwnerType, AccountType: string(a.Type), Currency: a.Currency,
		Balance: a.Format(a.Balance), HeldBalance: a.Format(a.Held), AvailableBalance: a.Format(a.Available()), Status: string(a.Status), Version: version,
		MinBalance: optional(a, a.MinBalance), MaxBalance: optional(a, a.MaxBalance), Metadata: edge.Struct(a.Metadata),
		CreatedAt: timestamppb.New(a.CreatedAt), UpdatedAt: timestamppb.New(a.UpdatedAt),
	}, nil
}

func optional(a account.Account, d *decimal.Decimal) *string {
	if d == nil {
		return nil
	}
	s := a.Format(*d)
	return &s
}

// requestHash is a digest of what was asked.
func requestHash(v any) (string, error) {
	b, err := es.Marshal(v)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16]), nil
}

func addMoneyError(v *rpc.Fields, field string, err error) {
	var m *money.Error
	if errors.As(err, &m) {
		v.Add(field, m.Rule, m.Value)
	}
}

// replayed marks the answer as an earlier request's.
func replayed(ctx context.Context) {
	_ = grpc.SetHeader(ctx, metadata.Pairs("idempotency-replayed", "true")) // fails only outside of a call
}
