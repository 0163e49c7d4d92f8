package api

import (
	"context"
	"errors"
	"slices"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/edge"
)

// historyPage is where a page of a history begins.
type historyPage struct {
	Below int64 `json:"v"` // version of the event shown last
}

// GetAccountHistory lists an account's events from its stream, newest first.
func (s *Server) GetAccountHistory(ctx context.Context, req *accountv1.GetAccountHistoryRequest) (*accountv1.GetAccountHistoryResponse, error) {
	var v rpc.Fields
	id := v.UUID("accountId", req.GetAccountId())
	size := int64(v.PageSize("pageSize", req.GetPageSize(), edge.PageSize, edge.PageSizeMax))
	if err := v.Err(); err != nil {
		return nil, err
	}
	a, err := s.find(ctx, id)
	if err != nil {
		return nil, err
	}
	page := historyPage{Below: a.state.Version + 1}
	if req.GetPageToken() != "" {
		if err := rpc.DecodePageToken(req.GetPageToken(), &page); err != nil {
			return nil, err
		}
		if page.Below < 2 || page.Below > a.state.Version {
			return nil, rpc.Invalid(rpc.Violation{Field: "pageToken", Rule: "page_token", Value: req.GetPageToken()})
		}
	}
	events, err := cqrs.Execute[ReadHistory, []es.Event](ctx, s.Queries, cqrs.New(ReadHistory{AccountID: id, Below: page.Below, Limit: int(size)}, edge.Origin(ctx)))
	if err != nil {
		return nil, err
	}
	res := &accountv1.GetAccountHistoryResponse{}
	for _, e := range events {
		shown, err := edge.Recorded(e)
		if err != nil {
			return nil, err
		}
		res.Events = append(res.Events, shown)
	}
	if oldest := events[len(events)-1].Version; oldest > 1 {
		res.NextPageToken = rpc.EncodePageToken(historyPage{Below: oldest})
	}
	return res, nil
}

func (s *Server) readHistory(ctx context.Context, q cqrs.Message[ReadHistory]) ([]es.Event, error) {
	last := q.Body.Below - 1
	var events []es.Event
	for e, err := range es.Between(ctx, s.Store, stream(q.Body.AccountID), max(last-int64(q.Body.Limit), 0), last) {
		if err != nil {
			return nil, err
		}
		events = append(events, e)
	}
	if len(events) == 0 {
		return nil, errors.New("a history without events")
	}
	slices.Reverse(events)
	return events, nil
}
