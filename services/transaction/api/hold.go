package api

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/rpc"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/edge"
	"example.com/billing/services/transaction"
	"example.com/billing/services/transaction/readmodel"
)

// How long a hold lasts.
const (
	holdDefault = 7 * 24 * time.Hour
	holdMax     = 90 * 24 * time.Hour
)

// PlaceHold reserves an amount.
func (s *Server) PlaceHold(ctx context.Context, req *transactionv1.PlaceHoldRequest) (*transactionv1.PlaceHoldResponse, error) {
	id, t, err := s.carryOut(ctx, req.GetWait(), func(ctx context.Context, v *rpc.Fields) (transaction.Request, error) {
		return s.readHold(ctx, v, req), nil
	})
	if err != nil {
		return nil, err
	}
	p, err := shownHold(ctx, id, t)
	return &transactionv1.PlaceHoldResponse{Hold: p}, err
}

func (s *Server) readHold(ctx context.Context, v *rpc.Fields, req *transactionv1.PlaceHoldRequest) transaction.Request {
	r := transaction.Request{Type: transaction.Hold}
	s.keyed(ctx, v, &r, req.GetIdempotencyKey())
	r.SourceID = v.UUID("accountId", req.GetAccountId())
	if req.DestinationAccountId != nil {
		r.DestinationID = v.UUID("destinationAccountId", req.GetDestinationAccountId())
	}
	s.money(v, &r, req.GetAmount(), req.GetCurrency())
	described(v, &r, req.Reference, req.GetMetadata())
	now := time.Now().UTC().Truncate(time.Millisecond)
	if req.GetExpiresAt() == nil {
		r.ExpiresAt, r.DefaultExpiry = now.Add(holdDefault), true
		return r
	}
	at := v.Time("expiresAt", req.GetExpiresAt())
	if at == nil {
		return r
	}
	r.ExpiresAt = at.Truncate(time.Millisecond)
	// Not a violation of the shape: a repeat gets the answer of the first request, although its time may be over by now.
	if given := r.ExpiresAt.Format(time.RFC3339Nano); !r.ExpiresAt.After(now) {
		r.Checked = rpc.Invalid(rpc.Violation{Field: "expiresAt", Rule: "after:now", Value: given})
	} else if r.ExpiresAt.After(now.Add(holdMax)) {
		r.Checked = rpc.Invalid(rpc.Violation{Field: "expiresAt", Rule: "within_days:" + strconv.Itoa(int(holdMax.Hours()/24)), Value: given})
	}
	return r
}

// GetHold reads a hold from its stream.
func (s *Server) GetHold(ctx context.Context, req *transactionv1.GetHoldRequest) (*transactionv1.GetHoldResponse, error) {
	var v rpc.Fields
	id := v.UUID("holdId", req.GetHoldId())
	if err := v.Err(); err != nil {
		return nil, err
	}
	t, err := s.findHold(ctx, id)
	if err != nil {
		return nil, err
	}
	p, err := shownHold(ctx, id, t)
	return &transactionv1.GetHoldResponse{Hold: p}, err
}

func (s *Server) findHold(ctx context.Context, id string) (transaction.Transaction, error) {
	t, err := s.find(ctx, id)
	if err == nil && t.Type != transaction.Hold {
		err = rpc.Fail("HOLD_NOT_FOUND", "There is no hold %s.", id)
	}
	return t, err
}

// ListHolds lists from the read model.
func (s *Server) ListHolds(ctx context.Context, req *transactionv1.ListHoldsRequest) (*transactionv1.ListHoldsResponse, error) {
	var v rpc.Fields
	f := readmodel.Filter{TenantID: edge.Origin(ctx).TenantID, Type: string(transaction.Hold)}
	if req.GetAccountId() != "" {
		f.SourceID = v.UUID("accountId", req.GetAccountId())
	}
	f.HoldStatus = edge.OneOf(&v, "status", req.GetStatus(), transaction.HoldStatuses())
	entries, next, err := s.list(ctx, &v, f, req.GetPageSize(), req.GetPageToken(), req.GetConsistencyToken())
	if err != nil {
		return nil, err
	}
	res := &transactionv1.ListHoldsResponse{NextPageToken: next}
	for _, e := range entries {
		p, err := holdProto(e.ID, e.Transaction)
		if err != nil {
			return nil, err
		}
		res.Holds = append(res.Holds, p)
	}
	return res, nil
}

// CaptureHold pays from a hold.
func (s *Server) CaptureHold(ctx context.Context, req *transactionv1.CaptureHoldRequest) (*transactionv1.CaptureHoldResponse, error) {
	t, err := s.order(ctx, req.GetWait(), func(ctx context.Context, v *rpc.Fields) (transaction.Request, error) {
		return s.readCapture(ctx, v, req)
	})
	return &transactionv1.CaptureHoldResponse{Transaction: t}, err
}

// readCapture looks at the hold for what the payment takes over from it. All that never changes once it was accepted; what
// does is decided in the hold's stream.
func (s *Server) readCapture(ctx context.Context, v *rpc.Fields, req *transactionv1.CaptureHoldRequest) (transaction.Request, error) {
	r := transaction.Request{Type: transaction.Payment, Whole: req.Amount == nil, At: time.Now().UTC()}
	s.keyed(ctx, v, &r, req.GetIdempotencyKey())
	r.HoldID = v.UUID("holdId", req.GetHoldId())
	if req.DestinationAccountId != nil {
		r.DestinationID = v.UUID("destinationAccountId", req.GetDestinationAccountId())
	}
	described(v, &r, req.Reference, req.GetMetadata())
	if !v.OK() {
		return r, nil
	}
	on, err := s.findHold(ctx, r.HoldID)
	if err != nil {
		return r, err
	}
	switch r.SourceID = on.SourceID; {
	case r.DestinationID == "" && on.DestinationID == "":
		v.Add("destinationAccountId", "required", "")
	case r.DestinationID == "":
		r.DestinationID = on.DestinationID
	case on.DestinationID != "" && on.DestinationID != r.DestinationID:
		v.Add("destinationAccountId", "equal_to:the hold's", r.DestinationID)
	}
	s.share(v, &r, on, req.Amount)
	return r, nil
}

// VoidHold gives back what is left of a hold.
func (s *Server) VoidHold(ctx context.Context, req *transactionv1.VoidHoldRequest) (*transactionv1.VoidHoldResponse, error) {
	var id string
	_, _, err := s.carryOut(ctx, req.GetWait(), func(ctx context.Context, v *rpc.Fields) (transaction.Request, error) {
		id = v.UUID("holdId", req.GetHoldId())
		v.MaxLen("reason", req.GetReason(), edge.ReferenceMax)
		if !v.OK() {
			return transaction.Request{}, nil
		}
		on, err := s.findHold(ctx, id)
		return s.release(edge.Origin(ctx), id, on, transaction.Void, req.Reason), err
	})
	if err != nil {
		return nil, err
	}
	t, err := s.find(ctx, id)
	if err != nil {
		return nil, err
	}
	p, err := shownHold(ctx, id, t)
	return &transactionv1.VoidHoldResponse{Hold: p}, err
}

// release asks for the release of a hold. A hold is released once: the release's id is the hold's.
func (s *Server) release(origin cqrs.Origin, id string, on transaction.Transaction, cause transaction.Cause, reason *string) transaction.Request {
	return transaction.Request{
		ID:   edge.DeriveID(s.Secret, "Release", origin.TenantID, id),
		Type: transaction.Release, HoldID: id, SourceID: on.SourceID, Currency: on.Currency, Scale: on.Scale, Cause: cause, Reason: reason,
	}
}

// shownHold is a hold as an answer of its own shows it, with the token that lists wait for.
func shownHold(ctx context.Context, id string, t transaction.Transaction) (*transactionv1.Hold, error) {
	edge.SetConsistencyToken(ctx, token(id, t))
	return holdProto(id, t)
}

func holdProto(id string, t transaction.Transaction) (*transactionv1.Hold, error) {
	version, err := edge.Version(t.Version)
	if err != nil {
		return nil, fmt.Errorf("show hold %s: %w", id, err)
	}
	return &transactionv1.Hold{
		HoldId: id, Status: string(t.HoldStatus), AccountId: t.SourceID, DestinationAccountId: edge.Optional(t.DestinationID),
		Amount: t.Format(t.Amount), CapturedAmount: t.Format(t.Used), CapturingAmount: t.Format(t.Reserved), RemainingAmount: t.Format(t.Remaining()),
		Currency: t.Currency, Reference: t.Reference, Metadata: edge.Struct(t.Metadata), IdempotencyKey: t.IdempotencyKey,
		ErrorReason: edge.Optional(t.ErrorReason), ErrorMessage: edge.Optional(t.ErrorMessage), Version: version,
		ExpiresAt: timestamppb.New(t.ExpiresAt), CreatedAt: timestamppb.New(t.CreatedAt), UpdatedAt: timestamppb.New(t.UpdatedAt),
	}, nil
}
