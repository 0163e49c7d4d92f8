package api

import (
	"context"
	"errors"
	"regexp"

	"github.com/shopspring/decimal"
	"google.golang.org/protobuf/types/known/timestamppb"

	"example.com/billing/pkg/batch"
	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/failpoint"
	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
	"example.com/billing/services/account/books"
	"example.com/billing/services/edge"
)

// InspectAccounts reads what a transaction must know of its accounts, from their streams. An account
// that is active as far as this process knows may be frozen by another one just now: then its own stream refuses what comes of it.
func (s *Server) InspectAccounts(ctx context.Context, req *accountv1.InspectAccountsRequest) (*accountv1.InspectAccountsResponse, error) {
	var v rpc.Fields
	ids := make([]string, len(req.GetAccountIds()))
	if len(ids) > edge.BatchMax {
		v.Add("accountIds", "max_items:1000", "")
	}
	for i, id := range req.GetAccountIds() {
		ids[i] = v.UUID("accountIds", id)
	}
	if err := v.Err(); err != nil {
		return nil, err
	}
	res := &accountv1.InspectAccountsResponse{Accounts: make([]*accountv1.InspectedAccount, len(ids))}
	var unsure []string // what does not take part as far as is known here may take part by now
	var at []int        // index of each
	for i, id := range ids {
		if known, ok := s.Executor.Recall(id); ok && known.State.Status == account.Active {
			res.Accounts[i] = inspected(id, known.State)
			continue
		}
		unsure, at = append(unsure, id), append(at, i)
	}
	if len(unsure) == 0 {
		return res, nil
	}
	found, err := s.Executor.GetEach(ctx, unsure)
	if err != nil {
		return nil, err
	}
	for j, f := range found {
		if f.Err != nil { // many callers' questions come in one request: the others get their answers
			res.Accounts[at[j]] = &accountv1.InspectedAccount{AccountId: unsure[j], ErrorMessage: f.Err.Error()}
			continue
		}
		res.Accounts[at[j]] = inspected(unsure[j], f.Value.State)
	}
	return res, nil
}

func inspected(id string, a account.Account) *accountv1.InspectedAccount {
	return &accountv1.InspectedAccount{AccountId: id, Found: a.Exists(), AccountType: string(a.Type), Currency: a.Currency, Status: string(a.Status)}
}

// Post carries out many sagas' steps. Each posting stands alone.
func (s *Server) Post(ctx context.Context, req *accountv1.PostRequest) (*accountv1.PostResponse, error) {
	if n := len(req.GetPostings()); n == 0 || n > edge.BatchMax {
		return nil, rpc.Invalid(rpc.Violation{Field: "postings", Rule: "items:1..1000"})
	}
	results := make([]*accountv1.PostingResult, len(req.GetPostings()))
	var first, second []posting
	for i, p := range req.GetPostings() {
		x, err := s.read(p)
		if err != nil {
			results[i] = undecided(err)
			continue
		}
		x.index = i
		first = append(first, x)
	}
	for j, out := range s.execute(ctx, first) {
		x := first[j]
		r, err := register(out)
		if x.GetKind() == accountv1.PostingKind_POSTING_KIND_ROLLBACK && err == nil && r.Outcome == account.Done {
			if r.Direction == account.Hold {
				results[x.index] = undecided(notMoney(x.GetUndoStep()))
				continue
			}
			// What was done is there to be undone, by as much as its register says.
			x.key = rollbackKey(x.sagaID, x.GetUndoStep())
			x.body = account.Rollback{
				SagaID: x.sagaID, Step: x.GetStep(), Direction: r.Direction, Amount: r.Amount, Reason: x.GetReason(), HoldID: r.HoldID,
			}
			second = append(second, x)
			continue
		}
		results[x.index] = x.result(out)
	}
	for j, out := range s.execute(ctx, second) {
		results[second[j].index] = second[j].result(out)
	}
	failpoint.Hit("account.before_answer")
	return &accountv1.PostResponse{Results: results}, nil
}

// posting is a posting whose shape is checked, with ids in their canonical form: an id in another case would be another
// register, or another account.
type posting struct {
	*accountv1.Posting
	index                     int // in the request
	sagaID, accountID, holdID string
	amount                    decimal.Decimal // debit, credit, hold
	key                       string          // of the register that body writes
	body                      account.Command
}

// stepPattern keeps the parts of a register's key apart.
var stepPattern = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

// read checks a posting's shape. A rollback begins by closing the register of the step it undoes.
func (s *Server) read(p *accountv1.Posting) (posting, error) {
	var v rpc.Fields
	x := posting{Posting: p, sagaID: v.UUID("sagaId", p.GetSagaId()), accountID: v.UUID("accountId", p.GetAccountId())}
	for field, text := range map[string]string{
		"reason": p.GetReason(), "correlationId": p.GetCorrelationId(), "causedBy": p.GetCausedBy(), "tenantId": p.GetTenantId(), "actor": p.GetActor(),
	} {
		v.MaxLen(field, text, edge.KeyMax)
	}
	target := readStep(&v, "step", p.GetStep())
	switch p.GetKind() {
	case accountv1.PostingKind_POSTING_KIND_DEBIT, accountv1.PostingKind_POSTING_KIND_CREDIT:
		x.amount = s.readAmount(&v, p)
		if p.GetHoldId() != "" && p.GetKind() == accountv1.PostingKind_POSTING_KIND_DEBIT {
			x.holdID = v.UUID("holdId", p.GetHoldId())
		}
		x.body = account.Post{
			SagaID: x.sagaID, Step: target, Direction: direction(p), Amount: x.amount, Currency: p.GetCurrency(), Reason: p.GetReason(), HoldID: x.holdID,
		}
	case accountv1.PostingKind_POSTING_KIND_HOLD:
		x.amount, x.holdID = s.readAmount(&v, p), v.UUID("holdId", p.GetHoldId())
		x.body = account.PlaceHold{SagaID: x.sagaID, Step: target, HoldID: x.holdID, Amount: x.amount, Currency: p.GetCurrency()}
	case accountv1.PostingKind_POSTING_KIND_RELEASE:
		x.holdID = v.UUID("holdId", p.GetHoldId())
		x.body = account.ReleaseHold{SagaID: x.sagaID, Step: target, HoldID: x.holdID}
	case accountv1.PostingKind_POSTING_KIND_CANCEL:
		x.body = account.Cancel{SagaID: x.sagaID, Step: target}
	case accountv1.PostingKind_POSTING_KIND_ROLLBACK:
		target = readUndoStep(&v, target, p.GetUndoStep())
		x.body = account.Cancel{SagaID: x.sagaID, Step: target}
	default:
		v.Add("kind", "one_of:DEBIT,CREDIT,CANCEL,ROLLBACK,HOLD,RELEASE", p.GetKind().String())
	}
	x.key = registerKey(x.sagaID, target)
	return x, v.Err()
}

// readAmount reads an amount in the posting's currency.
func (s *Server) readAmount(v *rpc.Fields, p *accountv1.Posting) decimal.Decimal {
	cur, ok := s.Currencies.Find(p.GetCurrency())
	if !ok {
		v.OneOf("currency", p.GetCurrency(), s.Currencies.Codes()...)
		return decimal.Zero
	}
	d, err := cur.ParsePositive(p.GetAmount())
	if err != nil {
		addMoneyError(v, "amount", err)
	}
	return d
}

func direction(p *accountv1.Posting) account.Direction {
	switch p.GetKind() {
	case accountv1.PostingKind_POSTING_KIND_DEBIT:
		return account.Debit
	case accountv1.PostingKind_POSTING_KIND_HOLD:
		return account.Hold
	}
	return account.Credit
}

// execute sends each posting's command to its account, with the step's register as its key.
func (s *Server) execute(ctx context.Context, postings []posting) []batch.Result[es.Outcome[account.Account]] {
	cmds := make([]es.Command[account.Command], len(postings))
	for i, x := range postings {
		c := cqrs.New(x.body, cqrs.Origin{CorrelationID: x.GetCorrelationId(), TenantID: x.GetTenantId(), Actor: x.GetActor()})
		cmds[i] = command(c.Info, x.accountID, x.key, false, x.body)
		cmds[i].Metadata["sagaId"], cmds[i].Metadata["step"] = x.sagaID, x.GetStep()
		if x.GetCausedBy() != "" {
			cmds[i].Metadata["causedBy"] = x.GetCausedBy()
		}
	}
	if len(cmds) == 0 {
		return nil
	}
	failpoint.Hit("account.before_commit")
	outcomes := s.Executor.ExecuteAll(ctx, cmds)
	failpoint.Hit("account.after_commit")
	return outcomes
}

// register reads the register that a command wrote or found.
func register(out batch.Result[es.Outcome[account.Account]]) (account.Register, error) {
	if out.Err != nil {
		return account.Register{}, out.Err
	}
	if len(out.Value.Events) == 0 {
		return account.Register{}, errors.New("the command wrote no register")
	}
	return readRegister(out.Value.Events[0])
}

// result answers a posting from its register.
func (x posting) result(out batch.Result[es.Outcome[account.Account]]) *accountv1.PostingResult {
	r, err := register(out)
	if err == nil {
		err = x.sameContent(r)
	}
	if err != nil {
		return undecided(err)
	}
	version, err := edge.Version(out.Value.Events[0].Version)
	if err != nil {
		return undecided(err)
	}
	res := &accountv1.PostingResult{Replayed: out.Value.Replayed, Version: version}
	switch {
	case r.Outcome == account.Done:
		res.Outcome, res.NewBalance, res.AvailableBalance = accountv1.PostingOutcome_POSTING_OUTCOME_DONE, r.NewBalance, r.Available
	case r.Outcome == account.Cancelled, x.GetKind() == accountv1.PostingKind_POSTING_KIND_ROLLBACK:
		// Of a rollback: the step never happened, so there is nothing to undo.
		res.Outcome = accountv1.PostingOutcome_POSTING_OUTCOME_CANCELLED
	default:
		res.Outcome, res.ErrorReason, res.ErrorMessage = accountv1.PostingOutcome_POSTING_OUTCOME_REFUSED, r.Reason, r.Message
	}
	return res
}

// sameContent: a repeated debit, credit or hold asks for what its register tells of.
func (x posting) sameContent(r account.Register) error {
	if x.amount.IsZero() || r.Outcome == account.Cancelled || x.amount.Equal(r.Amount) && direction(x.Posting) == r.Direction && x.GetCurrency() == r.Currency &&
		(r.Outcome == account.Refused || x.holdID == r.HoldID) {
		return nil
	}
	return rpc.Fail("IDEMPOTENCY_CONFLICT", "Step %s of saga %s asked for %s of %s %s, not %s of %s %s.",
		x.GetStep(), x.sagaID, r.Direction, r.Amount, r.Currency, direction(x.Posting), x.amount, x.GetCurrency())
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
	if s.Fresh != nil {
		if err := s.Fresh(ctx); err != nil {
			return nil, err
		}
	}
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
