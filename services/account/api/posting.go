package api

import (
	"context"
	"errors"

	"github.com/shopspring/decimal"
	"google.golang.org/protobuf/types/known/timestamppb"

	"example.com/billing/pkg/batch"
	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
	"example.com/billing/services/account/books"
	"example.com/billing/services/edge"
)

// InspectAccounts reads what a transaction must know of its accounts, from their streams.
func (s *Server) InspectAccounts(ctx context.Context, req *accountv1.InspectAccountsRequest) (*accountv1.InspectAccountsResponse, error) {
	ids := req.GetAccountIds()
	if len(ids) > edge.BatchMax {
		return nil, rpc.Invalid(rpc.Violation{Field: "accountIds", Rule: "max_items:1000"})
	}
	found, err := s.Executor.GetAll(ctx, ids)
	if err != nil {
		return nil, err
	}
	res := &accountv1.InspectAccountsResponse{}
	for i, f := range found {
		a := f.State
		res.Accounts = append(res.Accounts, &accountv1.InspectedAccount{
			AccountId: ids[i], Found: a.Exists(), AccountType: string(a.Type), Currency: a.Currency, Status: string(a.Status),
		})
	}
	return res, nil
}

// Post carries out many sagas' steps. Each posting stands alone.
func (s *Server) Post(ctx context.Context, req *accountv1.PostRequest) (*accountv1.PostResponse, error) {
	postings := req.GetPostings()
	if len(postings) == 0 || len(postings) > edge.BatchMax {
		return nil, rpc.Invalid(rpc.Violation{Field: "postings", Rule: "items:1..1000"})
	}
	results := make([]*accountv1.PostingResult, len(postings))
	var (
		cmds []es.Command[account.Command]
		at   []int // index of each command's posting
	)
	for i, p := range postings {
		cmd, err := firstCommand(p)
		if err != nil {
			results[i] = undecided(err)
			continue
		}
		cmds, at = append(cmds, cmd), append(at, i)
	}
	for j, out := range s.Executor.ExecuteAll(ctx, cmds) {
		p := postings[at[j]]
		if p.GetKind() == accountv1.PostingKind_POSTING_KIND_ROLLBACK {
			out = s.rollback(ctx, p, cmds[j], out)
		}
		results[at[j]] = result(p, out)
	}
	return &accountv1.PostResponse{Results: results}, nil
}

// firstCommand is what a posting begins with: a rollback begins by closing the register of the step it undoes.
func firstCommand(p *accountv1.Posting) (es.Command[account.Command], error) {
	var v rpc.Fields
	saga, id := v.UUID("sagaId", p.GetSagaId()), v.UUID("accountId", p.GetAccountId())
	v.Required("step", p.GetStep())
	step := p.GetStep()
	var body account.Command
	switch p.GetKind() {
	case accountv1.PostingKind_POSTING_KIND_DEBIT, accountv1.PostingKind_POSTING_KIND_CREDIT:
		amount, err := decimal.NewFromString(p.GetAmount())
		if err != nil || !amount.IsPositive() {
			v.Add("amount", "decimal above zero", p.GetAmount())
		}
		v.Required("currency", p.GetCurrency())
		body = account.Post{
			SagaID: saga, Step: step, Direction: direction(p), Amount: amount, Currency: p.GetCurrency(), Reason: p.GetReason(),
		}
	case accountv1.PostingKind_POSTING_KIND_CANCEL:
		body = account.Cancel{SagaID: saga, Step: step}
	case accountv1.PostingKind_POSTING_KIND_ROLLBACK:
		if v.Required("undoStep", p.GetUndoStep()) && p.GetUndoStep() == step {
			v.Add("undoStep", "different_from:step", step) // the rollback would find its own register written
		}
		step = p.GetUndoStep()
		body = account.Cancel{SagaID: saga, Step: step}
	default:
		v.Add("kind", "one_of:DEBIT,CREDIT,CANCEL,ROLLBACK", p.GetKind().String())
	}
	return postingCommand(p, saga, id, step, body), v.Err()
}

func direction(p *accountv1.Posting) account.Direction {
	if p.GetKind() == accountv1.PostingKind_POSTING_KIND_DEBIT {
		return account.Debit
	}
	return account.Credit
}

// postingCommand addresses a command to the account, with the step's register as its key. Both ids are in their canonical
// form, whatever the posting has: an id in another case would be another register, or another account.
func postingCommand(p *accountv1.Posting, sagaID, accountID, step string, body account.Command) es.Command[account.Command] {
	c := cqrs.New(body, cqrs.Origin{CorrelationID: p.GetCorrelationId(), TenantID: p.GetTenantId(), Actor: p.GetActor()})
	cmd := command(c.Info, accountID, sagaID+"/"+step, false, body)
	cmd.Metadata["sagaId"], cmd.Metadata["step"] = sagaID, step
	if p.GetCausedBy() != "" {
		cmd.Metadata["causedBy"] = p.GetCausedBy()
	}
	return cmd
}

// rollback credits or debits back what the register that first closed says was done; there is nothing to do if it was not.
func (s *Server) rollback(ctx context.Context, p *accountv1.Posting, first es.Command[account.Command], closed batch.Result[es.Outcome[account.Account]]) batch.Result[es.Outcome[account.Account]] {
	r, err := register(closed)
	if err != nil || r.Outcome != account.Done {
		return closed
	}
	sagaID := first.Body.(account.Cancel).SagaID //nolint:forcetypeassert // a rollback begins with it
	body := account.Rollback{SagaID: sagaID, Step: p.GetStep(), Direction: r.Direction, Amount: r.Amount, Reason: p.GetReason()}
	return s.Executor.ExecuteAll(ctx, []es.Command[account.Command]{postingCommand(p, sagaID, first.StreamID, p.GetStep(), body)})[0]
}

// register reads the register that a command wrote or found.
func register(out batch.Result[es.Outcome[account.Account]]) (account.Register, error) {
	if out.Err != nil {
		return account.Register{}, out.Err
	}
	if len(out.Value.Events) == 0 {
		return account.Register{}, errors.New("the command wrote no register")
	}
	f, err := account.Decode(out.Value.Events[0])
	if err != nil {
		return account.Register{}, err
	}
	r, ok := account.ReadRegister(f)
	if !ok {
		return r, errors.New("the register holds " + f.EventType())
	}
	return r, nil
}

// result answers a posting from its register.
func result(p *accountv1.Posting, out batch.Result[es.Outcome[account.Account]]) *accountv1.PostingResult {
	r, err := register(out)
	if err != nil {
		return undecided(err)
	}
	res := &accountv1.PostingResult{Replayed: out.Value.Replayed, Version: int32(out.Value.Events[0].Version)} //nolint:gosec // two billion events
	switch r.Outcome {
	case account.Done:
		if err := sameContent(p, r); err != nil {
			return undecided(err)
		}
		res.Outcome, res.NewBalance = accountv1.PostingOutcome_POSTING_OUTCOME_DONE, r.NewBalance
	case account.Refused:
		res.Outcome, res.ErrorReason, res.ErrorMessage = accountv1.PostingOutcome_POSTING_OUTCOME_REFUSED, r.Reason, r.Message
	case account.Cancelled:
		res.Outcome = accountv1.PostingOutcome_POSTING_OUTCOME_CANCELLED
	}
	if p.GetKind() == accountv1.PostingKind_POSTING_KIND_ROLLBACK && r.Outcome != account.Done {
		// The step never happened, so there is nothing to undo.
		return &accountv1.PostingResult{Outcome: accountv1.PostingOutcome_POSTING_OUTCOME_CANCELLED, Version: res.Version, Replayed: res.Replayed}
	}
	return res
}

// sameContent: a repeat asks for what the register says was done.
func sameContent(p *accountv1.Posting, r account.Register) error {
	switch p.GetKind() {
	case accountv1.PostingKind_POSTING_KIND_DEBIT, accountv1.PostingKind_POSTING_KIND_CREDIT:
		amount, err := decimal.NewFromString(p.GetAmount())
		if err != nil || !amount.Equal(r.Amount) || direction(p) != r.Direction || p.GetCurrency() != r.Currency {
			return rpc.Fail("IDEMPOTENCY_CONFLICT", "Step %s of saga %s did %s of %s %s, not %s of %s %s.",
				p.GetStep(), p.GetSagaId(), r.Direction, r.Amount, r.Currency, direction(p), p.GetAmount(), p.GetCurrency())
		}
	default:
	}
	return nil
}

// undecided says why a posting has no register: to be asked again, unless the request itself is wrong.
func undecided(err error) *accountv1.PostingResult {
	res := &accountv1.PostingResult{ErrorReason: "UNAVAILABLE", ErrorMessage: err.Error()}
	var own *rpc.Error
	if errors.As(err, &own) {
		res.ErrorReason = own.Reason
	}
	return res
}

// GetBooks reads the sums of all currencies in one snapshot.
func (s *Server) GetBooks(ctx context.Context, _ *accountv1.GetBooksRequest) (*accountv1.GetBooksResponse, error) {
	totals, at, err := books.Read(ctx, s.Pool)
	if err != nil {
		return nil, err
	}
	res := &accountv1.GetBooksResponse{AsOf: timestamppb.New(at)}
	for _, t := range totals {
		cur, ok := s.Currencies.Find(t.Currency)
		if !ok {
			return nil, errors.New("books: unknown currency " + t.Currency)
		}
		res.Currencies = append(res.Currencies, &accountv1.CurrencyBooks{
			Currency: t.Currency, User: cur.Format(t.User), External: cur.Format(t.External), System: cur.Format(t.System),
			InTransit: cur.Format(t.InTransit), Difference: cur.Format(t.Difference()),
		})
	}
	return res, nil
}
