package edge

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"example.com/billing/pkg/inbox"
	"example.com/billing/pkg/outbox"
	"example.com/billing/pkg/page"
	"example.com/billing/pkg/parking"
	"example.com/billing/pkg/rpc"
	outboxv1 "example.com/billing/proto/gen/go/billing/outbox/v1"
)

// direction is which way parked events were on.
type direction string

const (
	outgoing direction = "outgoing"
	incoming direction = "incoming"
)

// lanes are the service's parked events, by direction.
func (s *OutboxServer) lanes() map[direction]parking.Lanes {
	return map[direction]parking.Lanes{outgoing: outbox.Lanes(s.Pool), incoming: inbox.Lanes(s.Pool)}
}

// ListParked lists both directions together, newest first.
func (s *OutboxServer) ListParked(ctx context.Context, req *outboxv1.ListParkedRequest) (*outboxv1.ListParkedResponse, error) {
	if err := s.isMe(req.GetService()); err != nil {
		return nil, err
	}
	var (
		v rpc.Fields
		f parking.Filter
	)
	only := OneOf(&v, "direction", req.GetDirection(), []direction{outgoing, incoming})
	size := v.PageSize("pageSize", req.GetPageSize(), PageSize, PageSizeMax)
	if err := v.Err(); err != nil {
		return nil, err
	}
	if err := rpc.DecodePageToken(req.GetPageToken(), &f.Before); err != nil {
		return nil, err
	}
	f.Limit = int(size) + 1
	var all []*outboxv1.ParkedEvent
	for d, lanes := range s.lanes() {
		if only != "" && only != string(d) {
			continue
		}
		rows, err := lanes.List(ctx, f)
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			all = append(all, parkedToProto(d, r))
		}
	}
	slices.SortFunc(all, func(a, b *outboxv1.ParkedEvent) int {
		return cmp.Or(b.GetParkedAt().AsTime().Compare(a.GetParkedAt().AsTime()), cmp.Compare(b.GetId(), a.GetId()))
	})
	res := &outboxv1.ListParkedResponse{Parked: all}
	if len(all) > int(size) {
		last := all[size-1]
		res.Parked = all[:size]
		res.NextPageToken = rpc.EncodePageToken(page.Cursor{CreatedAt: last.GetParkedAt().AsTime(), ID: last.GetId()})
	}
	return res, nil
}

// RequeueParked sends a lane on its way again, and tells what became of the event that was named.
func (s *OutboxServer) RequeueParked(ctx context.Context, req *outboxv1.RequeueParkedRequest) (*outboxv1.RequeueParkedResponse, error) {
	id, err := s.decision(req)
	if err != nil {
		return nil, err
	}
	for d, lanes := range s.lanes() {
		row, _, err := lanes.Requeue(ctx, id, Origin(ctx).Actor, req.GetReason())
		switch {
		case err == nil:
			return &outboxv1.RequeueParkedResponse{Parked: parkedToProto(d, row)}, nil
		case !errors.Is(err, parking.ErrUnknown):
			return nil, err
		}
	}
	return nil, s.noneParked(id)
}

// DiscardParked gives up an incoming message. Outgoing events are the service's history: they have to get out some day.
func (s *OutboxServer) DiscardParked(ctx context.Context, req *outboxv1.DiscardParkedRequest) (*outboxv1.DiscardParkedResponse, error) {
	id, err := s.decision(req)
	if err != nil {
		return nil, err
	}
	row, err := inbox.Lanes(s.Pool).Discard(ctx, id, Origin(ctx).Actor, req.GetReason())
	switch {
	case err == nil:
		return &outboxv1.DiscardParkedResponse{Parked: parkedToProto(incoming, row)}, nil
	case errors.Is(err, parking.ErrDone):
		return nil, rpc.Fail("NOT_DISCARDABLE", "The message was handled after all, or is on its way.")
	case !errors.Is(err, parking.ErrUnknown):
		return nil, err
	}
	if _, err := outbox.Lanes(s.Pool).Get(ctx, id); err == nil {
		return nil, rpc.Fail("NOT_DISCARDABLE", "An outgoing event is part of the service's history: have Kafka take it, and requeue it.")
	} else if !errors.Is(err, parking.ErrUnknown) {
		return nil, err
	}
	return nil, s.noneParked(id)
}

// decision reads what an operator decides on, and wants a reason for it.
func (s *OutboxServer) decision(req interface {
	GetService() string
	GetId() string
	GetReason() string
}) (id string, err error) {
	if err := s.isMe(req.GetService()); err != nil {
		return "", err
	}
	var v rpc.Fields
	id = v.UUID("id", req.GetId())
	if v.Required("reason", req.GetReason()) {
		v.MaxLen("reason", req.GetReason(), ReferenceMax)
	}
	return id, v.Err()
}

func (s *OutboxServer) noneParked(id string) error {
	return rpc.Fail("PARKED_NOT_FOUND", "Nothing that service %s parked has the id %s.", s.Service, id)
}

func parkedToProto(d direction, r parking.Row) *outboxv1.ParkedEvent {
	return &outboxv1.ParkedEvent{
		Id: r.ID, Direction: string(d), Subscription: Optional(r.Subscription), EventId: r.EventID, EventType: r.EventType,
		AggregateType: r.AggregateType, AggregateId: r.AggregateID, AggregateVersion: Count(r.Version), Attempts: Count(r.Attempts),
		LastError: r.LastError, ParkedAt: Timestamp(r.ParkedAt), Status: r.Status,
		DecidedAt: Timestamp(r.DecidedAt), DecidedBy: Optional(r.DecidedBy), DecidedReason: Optional(r.Reason), DoneAt: Timestamp(r.DoneAt),
	}
}
