package api

import (
	"context"
	"strconv"
	"time"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
	"example.com/billing/services/edge"
)

// GetAccountBalance reads a balance from the account's stream: the present one, or the one at a version or time.
func (s *Server) GetAccountBalance(ctx context.Context, req *accountv1.GetAccountBalanceRequest) (*accountv1.GetAccountBalanceResponse, error) {
	var v rpc.Fields
	id := v.UUID("accountId", req.GetAccountId())
	at := v.Time("at", req.GetAt())
	if req.Version != nil && req.GetVersion() < 1 {
		v.Add("version", "min:1", strconv.Itoa(int(req.GetVersion())))
	}
	if req.Version != nil && at != nil {
		v.Add("version", "absent_with:at", strconv.Itoa(int(req.GetVersion())))
	}
	if err := v.Err(); err != nil {
		return nil, err
	}
	a, err := s.find(ctx, id)
	if err != nil {
		return nil, err
	}
	switch {
	case at != nil:
		a, err = s.atTime(ctx, a, *at)
	case req.Version != nil:
		a, err = s.atVersion(ctx, a, int64(req.GetVersion()))
	}
	if err != nil {
		return nil, err
	}
	edge.SetConsistencyToken(ctx, edge.ConsistencyToken(stream(id), a.state.Version))
	return balanceOf(id, a.state)
}

// balanceOf is a balance, present or past, as an answer shows it.
func balanceOf(id string, a account.Account) (*accountv1.GetAccountBalanceResponse, error) {
	p, err := toProto(id, a)
	if err != nil {
		return nil, err
	}
	return &accountv1.GetAccountBalanceResponse{
		AccountId: id, Balance: p.GetBalance(), Currency: p.GetCurrency(), Status: p.GetStatus(), Version: p.GetVersion(),
		HeldBalance: p.GetHeldBalance(), AvailableBalance: p.GetAvailableBalance(),
	}, nil
}

// atTime is an account as it was after the last event recorded at or before a time.
func (s *Server) atTime(ctx context.Context, now found, at time.Time) (found, error) {
	if err := s.notFuture(ctx, "at", at); err != nil {
		return found{}, err
	}
	version, err := es.VersionAt(ctx, s.Store, stream(now.id), at)
	if err != nil {
		return found{}, err
	}
	return s.past(ctx, now.id, version)
}

// atVersion is an account as it was after this many events.
func (s *Server) atVersion(ctx context.Context, now found, version int64) (found, error) {
	if head := now.state.Version; version > head {
		return found{}, rpc.Invalid(rpc.Violation{
			Field: "version", Rule: "range:1.." + strconv.FormatInt(head, 10), Value: strconv.FormatInt(version, 10),
		})
	}
	return s.past(ctx, now.id, version)
}

// past is an account at a version, which is not there before it was opened.
func (s *Server) past(ctx context.Context, id string, version int64) (found, error) {
	a, err := cqrs.Execute[FindAccountAt, found](ctx, s.Queries, cqrs.New(FindAccountAt{AccountID: id, Version: version}, edge.Origin(ctx)))
	if err == nil && !a.state.Exists() {
		return found{}, rpc.Fail("ACCOUNT_NOT_FOUND", "Account %s was not open yet.", id)
	}
	return a, err
}

func (s *Server) findAccountAt(ctx context.Context, q cqrs.Message[FindAccountAt]) (found, error) {
	r, err := account.Decider().At(ctx, s.Store, q.Body.AccountID, q.Body.Version)
	return found{q.Body.AccountID, r.State}, err
}

// notFuture refuses a time that has not come yet by the store's clock: until then an answer could still change.
func (s *Server) notFuture(ctx context.Context, field string, t time.Time) error {
	now, err := s.Store.Clock(ctx)
	if err != nil {
		return err
	}
	return notAfter(now, field, t)
}

func notAfter(now time.Time, field string, t time.Time) error {
	if t.Before(now) { // at the very moment events may still come
		return nil
	}
	return rpc.Invalid(rpc.Violation{Field: field, Rule: "max:now", Value: t.Format(time.RFC3339Nano)})
}

// event reads one event of an account.
func (s *Server) event(ctx context.Context, id string, version int64) (es.Event, error) {
	for e, err := range es.Between(ctx, s.Store, stream(id), version-1, version) {
		return e, err
	}
	return es.Event{}, nil // not reachable: versions begin at 1
}
