package api

import (
	"context"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/money"
	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
	"example.com/billing/services/edge"
)

// ChangeAccountLimits sets the lowest and highest balance that postings may leave.
func (s *Server) ChangeAccountLimits(ctx context.Context, req *accountv1.ChangeAccountLimitsRequest) (*accountv1.ChangeAccountLimitsResponse, error) {
	var v rpc.Fields
	id := v.UUID("accountId", req.GetAccountId())
	if v.Required("reason", req.GetReason()) {
		v.MaxLen("reason", req.GetReason(), edge.ReferenceMax)
	}
	if req.MinBalance == nil && req.MaxBalance == nil {
		v.Add("minBalance", "required_without:maxBalance", "")
	}
	key := edge.IdempotencyKey(ctx, &v, req.GetIdempotencyKey(), false)
	change := account.ChangeLimits{Reason: req.GetReason(), ExpectedVersion: expectedVersion(&v, req.ExpectedVersion)}
	if err := v.Err(); err != nil {
		return nil, err
	}
	// The account's currency says what an amount may look like.
	a, err := s.find(ctx, id)
	if err != nil {
		return nil, err
	}
	cur, ok := s.Currencies.Find(a.state.Currency)
	if !ok {
		cur = money.Currency{Code: a.state.Currency, Scale: a.state.Scale}
	}
	change.Min, change.Max = newLimit(&v, "minBalance", cur, req.MinBalance), newLimit(&v, "maxBalance", cur, req.MaxBalance)
	if err := v.Err(); err != nil {
		return nil, err
	}
	out, err := cqrs.Execute[ChangeAccountLimits, es.Outcome[account.Account]](ctx, s.Commands,
		cqrs.New(ChangeAccountLimits{AccountID: id, Key: key, Change: change}, edge.Origin(ctx)))
	if err != nil {
		return nil, err
	}
	if out.Replayed {
		f, err := account.Decode(out.Events[0])
		if err != nil {
			return nil, err
		}
		if first, ok := f.(account.LimitsChanged); !ok || !change.SameAs(first) {
			return nil, rpc.Fail("IDEMPOTENCY_CONFLICT", "The idempotency key was used for another change (%s).", f.EventType())
		}
		replayed(ctx)
	}
	p, err := shown(ctx, id, out.State)
	return &accountv1.ChangeAccountLimitsResponse{Account: p}, err
}

func (s *Server) changeLimits(ctx context.Context, c cqrs.Message[ChangeAccountLimits]) (es.Outcome[account.Account], error) {
	key := ""
	if c.Body.Key != "" {
		key = "limits/" + c.TenantID + "/" + c.Body.Key
		c.Body.Change.Keyed = true
	}
	return s.Executor.Execute(ctx, command(c.Info, c.Body.AccountID, key, false, c.Body.Change))
}

// newLimit reads an optional limit; an empty one means no limit.
func newLimit(v *rpc.Fields, field string, cur money.Currency, s *string) account.Limit {
	if s == nil || *s == "" {
		return account.Limit{Set: s != nil}
	}
	return account.Limit{Set: true, Value: balanceLimit(v, field, cur, s)}
}

// expectedVersion reads an optional version.
func expectedVersion(v *rpc.Fields, given *int32) *int64 {
	if given == nil {
		return nil
	}
	n := int64(*given)
	if n < 1 {
		v.Add("expectedVersion", "min:1", "")
	}
	return &n
}

// ListCurrencies lists the currencies that accounts can be opened in.
func (s *Server) ListCurrencies(context.Context, *accountv1.ListCurrenciesRequest) (*accountv1.ListCurrenciesResponse, error) {
	res := &accountv1.ListCurrenciesResponse{}
	for _, code := range s.Currencies.Codes() {
		c, _ := s.Currencies.Find(code)
		res.Currencies = append(res.Currencies, &accountv1.Currency{Code: c.Code, Scale: c.Scale, Kind: string(c.Kind)})
	}
	return res, nil
}
