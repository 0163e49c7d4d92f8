package api

import (
	"context"
	"slices"
	"time"

	"github.com/shopspring/decimal"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/money"
	"example.com/billing/pkg/page"
	"example.com/billing/pkg/rpc"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/edge"
	"example.com/billing/services/transaction"
	"example.com/billing/services/transaction/readmodel"
)

// stuckAge is how long a transaction is pending before it counts as stuck.
const stuckAge = 30 * time.Second

// ListTransactions lists from the read model; stuck ones from the service's own tables.
func (s *Server) ListTransactions(ctx context.Context, req *transactionv1.ListTransactionsRequest) (*transactionv1.ListTransactionsResponse, error) {
	var v rpc.Fields
	f := s.readFilter(ctx, &v, req)
	list := s.list
	if req.GetStuck() {
		onlyStuck(&v, req)
		list = s.stuck
	}
	entries, next, err := list(ctx, &v, f, req.GetPageSize(), req.GetPageToken(), req.GetConsistencyToken())
	if err != nil {
		return nil, err
	}
	res := &transactionv1.ListTransactionsResponse{NextPageToken: next}
	for _, e := range entries {
		p, err := toProto(e.ID, e.Transaction)
		if err != nil {
			return nil, err
		}
		res.Transactions = append(res.Transactions, p)
	}
	return res, nil
}

func (s *Server) readFilter(ctx context.Context, v *rpc.Fields, req *transactionv1.ListTransactionsRequest) readmodel.Filter {
	f := readmodel.Filter{TenantID: edge.Origin(ctx).TenantID}
	if req.GetAccountId() != "" {
		f.AccountID = v.UUID("accountId", req.GetAccountId())
	}
	if req.GetPaymentId() != "" {
		f.PaymentID = v.UUID("paymentId", req.GetPaymentId())
	}
	f.Type = edge.OneOf(v, "type", req.GetType(), transaction.Types())
	f.Status = edge.OneOf(v, "status", req.GetStatus(), transaction.Statuses())
	f.Currency = edge.OneOf(v, "currency", req.GetCurrency(), s.Currencies.Codes())
	f.MinAmount, f.MaxAmount = readBound(v, "minAmount", req.GetMinAmount()), readBound(v, "maxAmount", req.GetMaxAmount())
	f.From, f.To = v.Time("createdFrom", req.GetCreatedFrom()), v.Time("createdTo", req.GetCreatedTo())
	return f
}

// boundScale is the largest scale that a currency can have.
const boundScale = 18

// readBound reads a bound of amounts: a decimal of any currency's scale.
func readBound(v *rpc.Fields, field, value string) *decimal.Decimal {
	if value == "" {
		return nil
	}
	d, err := money.Currency{Scale: boundScale}.Parse(value)
	if err != nil {
		v.Add(field, "amount", value)
		return nil
	}
	return &d
}

// onlyStuck: the service's own tables can be filtered by account and type.
func onlyStuck(v *rpc.Fields, req *transactionv1.ListTransactionsRequest) {
	for field, given := range map[string]bool{
		"status": req.GetStatus() != "", "currency": req.GetCurrency() != "", "minAmount": req.GetMinAmount() != "", "maxAmount": req.GetMaxAmount() != "",
		"createdFrom": req.GetCreatedFrom() != nil, "createdTo": req.GetCreatedTo() != nil, "paymentId": req.GetPaymentId() != "",
		"consistencyToken": req.GetConsistencyToken() != "",
	} {
		if given {
			v.Add(field, "absent_with:stuck", "")
		}
	}
}

// list reads a page of the read model, once it shows what the token stands for.
func (s *Server) list(ctx context.Context, v *rpc.Fields, f readmodel.Filter, pageSize int32, pageToken, consistencyToken string) (entries []readmodel.Entry, next string, err error) {
	versions := edge.ReadConsistencyToken(v, consistencyToken)
	size, err := readPage(v, &f, pageSize, pageToken)
	if err != nil {
		return nil, "", err
	}
	if err := edge.AwaitShown(ctx, s.Watches.Stopping(), s.List.Wait, s.Store, versions); err != nil {
		return nil, "", err
	}
	entries, err = cqrs.Execute[ListTransactions, []readmodel.Entry](ctx, s.queries, cqrs.New(ListTransactions{Filter: f}, edge.Origin(ctx)))
	if err != nil || len(entries) <= size {
		return entries, "", err
	}
	return entries[:size], tokenBehind(entries[size-1]), nil
}

// stuck reads a page of transactions that have been pending for too long.
func (s *Server) stuck(ctx context.Context, v *rpc.Fields, f readmodel.Filter, pageSize int32, pageToken, _ string) (entries []readmodel.Entry, next string, err error) {
	size, err := readPage(v, &f, pageSize, pageToken)
	if err != nil {
		return nil, "", err
	}
	found, err := cqrs.Execute[ListStuck, stuckPage](ctx, s.queries, cqrs.New(ListStuck{Filter: f}, edge.Origin(ctx)))
	if err != nil || len(found.places) <= size {
		return found.entries, "", err
	}
	// The page may be shorter than asked for: what has ended meanwhile is left out.
	last := found.places[size-1]
	entries = slices.DeleteFunc(found.entries, func(e readmodel.Entry) bool { return e.ID == found.places[size].ID })
	return entries, rpc.EncodePageToken(last), nil
}

// stuckPage is places in the order of pending transactions, and those of them that still are.
type stuckPage struct {
	places  []page.Cursor
	entries []readmodel.Entry
}

func (s *Server) listStuck(ctx context.Context, q cqrs.Message[ListStuck]) (stuckPage, error) {
	places, err := s.List.Stuck(ctx, stuckAge, q.Body.Filter)
	if err != nil {
		return stuckPage{}, err
	}
	ids := make([]string, len(places))
	for i, p := range places {
		ids[i] = p.ID
	}
	found, err := s.Executor.GetEach(ctx, ids)
	if err != nil {
		return stuckPage{}, err
	}
	out := stuckPage{places: places}
	for i, f := range found {
		if f.Err == nil && !f.Value.State.Ended() { // one that cannot be read must not hide the others
			out.entries = append(out.entries, readmodel.Entry{ID: ids[i], Transaction: f.Value.State})
		}
	}
	return out, nil
}

// readPage reads how long a page is and where it begins, and fails if anything was wrong with the request.
func readPage(v *rpc.Fields, f *readmodel.Filter, pageSize int32, pageToken string) (size int, err error) {
	n := v.PageSize("pageSize", pageSize, edge.PageSize, edge.PageSizeMax)
	if err := v.Err(); err != nil {
		return 0, err
	}
	if err := rpc.DecodePageToken(pageToken, &f.Before); err != nil {
		return 0, err
	}
	f.Limit = int(n) + 1
	return int(n), nil
}

// tokenBehind is where the page behind an entry begins.
func tokenBehind(e readmodel.Entry) string {
	return rpc.EncodePageToken(page.Cursor{CreatedAt: e.Transaction.CreatedAt, ID: e.ID})
}
