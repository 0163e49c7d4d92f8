package api

import (
	"context"
	"fmt"
	"iter"

	"github.com/shopspring/decimal"
	"google.golang.org/protobuf/types/known/timestamppb"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/es"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
	"example.com/billing/services/edge"
)

// line is a posting as a statement shows it.
type line struct {
	account.BalanceChanged
	event es.Event
}

func (l line) toProto(a account.Account) (*accountv1.StatementLine, error) {
	version, err := edge.Version(l.event.Version)
	if err != nil {
		return nil, fmt.Errorf("show a statement of %s: %w", l.event.Stream, err)
	}
	return &accountv1.StatementLine{
		Version: version, RecordedAt: timestamppb.New(l.event.RecordedAt),
		TransactionId: l.SagaID, Step: l.Step, Reason: l.Reason, Direction: string(l.ChangeType),
		Amount: a.Format(decimal.Decimal(l.ChangeAmount)), Balance: a.Format(decimal.Decimal(l.NewBalance)),
	}, nil
}

// readStatement reads the postings of one page.
func (s *Server) readStatement(ctx context.Context, q cqrs.Message[ReadStatement]) ([]line, error) {
	var lines []line
	for l, err := range s.postings(ctx, q.Body.AccountID, q.Body.Statement.After, q.Body.Statement.Last) {
		if err != nil {
			return nil, err
		}
		if lines = append(lines, l); len(lines) == q.Body.Limit {
			break
		}
	}
	return lines, nil
}

// postings yields what moved money on an account behind version after, up to version last.
func (s *Server) postings(ctx context.Context, id string, after, last int64) iter.Seq2[line, error] {
	return func(yield func(line, error) bool) {
		for e, err := range es.Between(ctx, s.Store, stream(id), after, last) {
			if err == nil && e.Type != (account.BalanceChanged{}).EventType() {
				continue
			}
			var l line
			if err == nil {
				l, err = readLine(e)
			}
			if !yield(l, err) {
				return
			}
		}
	}
}

func readLine(e es.Event) (line, error) {
	f, err := account.Decode(e)
	if err != nil {
		return line{}, err
	}
	changed, _ := f.(account.BalanceChanged) // its type says so
	return line{BalanceChanged: changed, event: e}, nil
}
