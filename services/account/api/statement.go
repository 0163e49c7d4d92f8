package api

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/shopspring/decimal"
	"google.golang.org/protobuf/types/known/timestamppb"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
	"example.com/billing/services/edge"
)

// statementEventsMax is how many events of the account a period may cover: summing them takes some seconds.
const statementEventsMax = 250_000

// Statement is what the first page of a statement found out, kept in the page token: however many pages follow and whatever
// happens meanwhile, they are of one statement, and the period is summed once.
type Statement struct {
	From    time.Time       `json:"from"`
	To      time.Time       `json:"to"`
	Opening decimal.Decimal `json:"opening"`
	Credits decimal.Decimal `json:"credits"`
	Debits  decimal.Decimal `json:"debits"`
	Closing decimal.Decimal `json:"closing"`
	Last    int64           `json:"last"`  // version at the end of the period
	After   int64           `json:"after"` // the next page has postings behind this version
}

// sealed is a statement in a page token: only this service can have made it, for this account.
type sealed struct {
	Content json.RawMessage `json:"s"`
	Seal    string          `json:"k"`
}

// GetAccountStatement lists the postings of a period, oldest first, with its balances and sums.
func (s *Server) GetAccountStatement(ctx context.Context, req *accountv1.GetAccountStatementRequest) (*accountv1.GetAccountStatementResponse, error) {
	var v rpc.Fields
	id := v.UUID("accountId", req.GetAccountId())
	from, to := v.Time("from", req.GetFrom()), v.Time("to", req.GetTo())
	if from != nil && to != nil && to.Before(*from) {
		v.Add("to", "at_least:from", to.Format(time.RFC3339Nano))
	}
	size := v.PageSize("pageSize", req.GetPageSize(), edge.PageSize, edge.PageSizeMax)
	if err := v.Err(); err != nil {
		return nil, err
	}
	a, err := s.find(ctx, id)
	if err != nil {
		return nil, err
	}
	var st Statement
	if req.GetPageToken() != "" {
		st, err = s.resume(id, req.GetPageToken(), from, to)
	} else {
		st, err = s.begin(ctx, a, from, to)
	}
	if err != nil {
		return nil, err
	}
	lines, err := cqrs.Execute[ReadStatement, []line](ctx, s.Queries, cqrs.New(ReadStatement{AccountID: id, Statement: st, Limit: int(size) + 1}, edge.Origin(ctx)))
	if err != nil {
		return nil, err
	}
	res := &accountv1.GetAccountStatementResponse{
		AccountId: id, Currency: a.state.Currency, From: timestamppb.New(st.From), To: timestamppb.New(st.To),
		OpeningBalance: a.state.Format(st.Opening), ClosingBalance: a.state.Format(st.Closing),
		TotalCredits: a.state.Format(st.Credits), TotalDebits: a.state.Format(st.Debits),
	}
	if len(lines) > int(size) {
		lines = lines[:size]
		st.After = lines[size-1].event.Version
		if res.NextPageToken, err = s.seal(id, st); err != nil {
			return nil, err
		}
	}
	for _, l := range lines {
		p, err := l.toProto(a.state)
		if err != nil {
			return nil, err
		}
		res.Lines = append(res.Lines, p)
	}
	return res, nil
}

// begin draws up the statement of a period: from the opening of the account unless given, until now unless given.
func (s *Server) begin(ctx context.Context, a found, from, to *time.Time) (Statement, error) {
	var st Statement
	now, err := s.Store.Clock(ctx)
	if err != nil {
		return st, err
	}
	if st.To, st.Last, err = s.end(ctx, a, to, now); err != nil {
		return st, err
	}
	if st.From, st.After, err = s.start(ctx, a, from, now); err != nil {
		return st, err
	}
	if st.To.Before(st.From) { // a from of this very moment
		st.To = st.From
	}
	return s.sum(ctx, a, st)
}

// start is where a period begins, and the version the account had before it.
func (s *Server) start(ctx context.Context, a found, from *time.Time, now time.Time) (time.Time, int64, error) {
	if from == nil {
		opened, err := s.event(ctx, a.id, 1)
		return opened.RecordedAt, 0, err
	}
	if err := notAfter(now, "from", *from); err != nil {
		return *from, 0, err
	}
	version, err := s.versionBefore(ctx, a.id, *from)
	return *from, version, err
}

// end is where a period ends, and the version the account had then. One that ends now leaves to the next what is recorded from
// now on: periods that follow each other have every posting once.
func (s *Server) end(ctx context.Context, a found, to *time.Time, now time.Time) (time.Time, int64, error) {
	if to == nil {
		version, err := s.versionBefore(ctx, a.id, now)
		return now, version, err
	}
	if to.After(now) {
		return *to, 0, notAfter(now, "to", *to)
	}
	version, err := s.versionBefore(ctx, a.id, *to)
	if err == nil && version == 0 {
		err = rpc.Fail("ACCOUNT_NOT_FOUND", "Account %s was not open yet.", a.id)
	}
	return *to, version, err
}

// versionBefore is the version the account had just before a time.
func (s *Server) versionBefore(ctx context.Context, id string, t time.Time) (int64, error) {
	return es.VersionAt(ctx, s.Store, stream(id), t.Add(-time.Nanosecond))
}

// sum adds up the period. A statement that does not add up is not shown.
func (s *Server) sum(ctx context.Context, a found, st Statement) (Statement, error) {
	if n := st.Last - st.After; n > statementEventsMax {
		return st, rpc.Invalid(rpc.Violation{Field: "from", Rule: fmt.Sprintf("max_events:%d", statementEventsMax), Value: strconv.FormatInt(n, 10)})
	}
	first := true
	for l, err := range s.postings(ctx, a.id, st.After, st.Last) {
		if err != nil {
			return st, err
		}
		if first {
			st.Opening, first = decimal.Decimal(l.PreviousBalance), false
		}
		if l.ChangeType == account.Credit {
			st.Credits = st.Credits.Add(decimal.Decimal(l.ChangeAmount))
		} else {
			st.Debits = st.Debits.Add(decimal.Decimal(l.ChangeAmount))
		}
		st.Closing = decimal.Decimal(l.NewBalance)
	}
	if first {
		balance, err := s.unmoved(ctx, a, st.Last)
		if err != nil {
			return st, err
		}
		st.Opening, st.Closing = balance, balance
	}
	if is := st.Opening.Add(st.Credits).Sub(st.Debits); !is.Equal(st.Closing) {
		return st, fmt.Errorf("statement of %s: %s and %s and -%s make %s, not %s", stream(a.id), st.Opening, st.Credits, st.Debits, is, st.Closing)
	}
	return st, nil
}

// unmoved is the balance at a version, which is the one before the next posting, or the present one where none followed.
func (s *Server) unmoved(ctx context.Context, a found, version int64) (decimal.Decimal, error) {
	for l, err := range s.postings(ctx, a.id, version, a.state.Version) {
		return decimal.Decimal(l.PreviousBalance), err
	}
	return a.state.Balance, nil
}

// seal makes the page token of what follows.
func (s *Server) seal(id string, st Statement) (string, error) {
	content, err := json.Marshal(st)
	if err != nil {
		return "", fmt.Errorf("page token of a statement: %w", err)
	}
	return rpc.EncodePageToken(sealed{Content: content, Seal: edge.DeriveID(s.Secret, "AccountStatement", id, string(content))}), nil
}

// resume reads a page token. A period given again must be the token's.
func (s *Server) resume(id, token string, from, to *time.Time) (Statement, error) {
	var (
		t  sealed
		st Statement
	)
	if err := rpc.DecodePageToken(token, &t); err != nil {
		return st, err
	}
	if t.Seal != edge.DeriveID(s.Secret, "AccountStatement", id, string(t.Content)) || json.Unmarshal(t.Content, &st) != nil {
		return st, rpc.Invalid(rpc.Violation{Field: "pageToken", Rule: "page_token", Value: token})
	}
	var v rpc.Fields
	if from != nil && !from.Equal(st.From) {
		v.Add("from", "equal_to:pageToken", from.Format(time.RFC3339Nano))
	}
	if to != nil && !to.Equal(st.To) {
		v.Add("to", "equal_to:pageToken", to.Format(time.RFC3339Nano))
	}
	return st, v.Err()
}
