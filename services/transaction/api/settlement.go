package api

import (
	"context"
	"errors"
	"strconv"
	"time"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/es"
	"example.com/billing/pkg/failpoint"
	"example.com/billing/pkg/rpc"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/edge"
	"example.com/billing/services/transaction"
)

// ends maps the API's settlements to the domain's.
var ends = map[transactionv1.SettlementKind]transaction.Status{
	transactionv1.SettlementKind_SETTLEMENT_KIND_COMPLETE:   transaction.Completed,
	transactionv1.SettlementKind_SETTLEMENT_KIND_FAIL:       transaction.Failed,
	transactionv1.SettlementKind_SETTLEMENT_KIND_COMPENSATE: transaction.Compensated,
}

// Settle ends many sagas' transactions. Each settlement stands alone.
func (s *Server) Settle(ctx context.Context, req *transactionv1.SettleRequest) (*transactionv1.SettleResponse, error) {
	settlements := req.GetSettlements()
	if len(settlements) == 0 || len(settlements) > edge.BatchMax {
		return nil, rpc.Invalid(rpc.Violation{Field: "settlements", Rule: "items:1..1000"})
	}
	results := make([]*transactionv1.SettlementResult, len(settlements))
	var (
		cmds []es.Command[transaction.Command]
		at   []int // index of each command's settlement
	)
	for i, x := range settlements {
		cmd, err := settleCommand(x)
		if err != nil {
			results[i] = undecided(err)
			continue
		}
		cmds, at = append(cmds, cmd), append(at, i)
	}
	failpoint.Hit("settlement.before_commit")
	outcomes := s.Executor.ExecuteAll(ctx, cmds)
	failpoint.Hit("settlement.after_commit")
	for j, out := range outcomes {
		if out.Err != nil {
			results[at[j]] = undecided(out.Err)
			continue
		}
		t := out.Value.State
		if len(out.Value.Events) > 0 && !out.Value.Replayed {
			s.Admission.Settled(time.Since(t.CreatedAt))
		}
		version, err := edge.Version(t.Version)
		if err != nil {
			results[at[j]] = undecided(err)
			continue
		}
		results[at[j]] = &transactionv1.SettlementResult{Status: string(t.Status), Version: version}
	}
	return &transactionv1.SettleResponse{Results: results}, nil
}

func settleCommand(x *transactionv1.Settlement) (es.Command[transaction.Command], error) {
	var v rpc.Fields
	id := v.UUID("transactionId", x.GetTransactionId())
	v.Required("step", x.GetStep())
	for field, text := range map[string]string{
		"step": x.GetStep(), "errorReason": x.GetErrorReason(), "correlationId": x.GetCorrelationId(), "causedBy": x.GetCausedBy(),
		"tenantId": x.GetTenantId(), "actor": x.GetActor(),
	} {
		v.MaxLen(field, text, edge.KeyMax)
	}
	v.MaxLen("errorMessage", x.GetErrorMessage(), 4*edge.ReferenceMax)
	other := x.GetReservedOn()
	if other != "" {
		other = v.UUID("reservedOn", other)
	}
	if other != "" && other == id {
		v.Add("reservedOn", "different_from:transactionId", other)
	}
	status, ok := ends[x.GetKind()]
	if !ok {
		v.Add("kind", "one_of:COMPLETE,FAIL,COMPENSATE", x.GetKind().String())
	}
	c := cqrs.New(transaction.Settle{Status: status, SagaID: id, ReservedOn: other, ErrorReason: x.GetErrorReason(), ErrorMessage: x.GetErrorMessage()},
		cqrs.Origin{CorrelationID: x.GetCorrelationId(), TenantID: x.GetTenantId(), Actor: x.GetActor()})
	md := c.Metadata()
	md["sagaId"], md["step"] = id, x.GetStep()
	if x.GetCausedBy() != "" {
		md["causedBy"] = x.GetCausedBy()
	}
	return es.Command[transaction.Command]{
		ID: c.ID, StreamID: id, OtherID: other, Key: id + "/" + x.GetStep(), At: c.At, CorrelationID: c.CorrelationID, Metadata: md, Body: c.Body,
	}, v.Err()
}

// undecided says why a settlement was not made: to be asked again, unless a rule or the request itself is the reason.
func undecided(err error) *transactionv1.SettlementResult {
	res := &transactionv1.SettlementResult{ErrorReason: "UNAVAILABLE", ErrorMessage: err.Error()}
	var own *rpc.Error
	if errors.As(err, &own) {
		res.ErrorReason = own.Reason
	}
	if r := es.RefusalOf(err); r != nil {
		res.ErrorReason, res.ErrorMessage = r.Reason, r.Message
	}
	return res
}

// ListOpenTransactions lists transactions that have not ended and name an account.
func (s *Server) ListOpenTransactions(ctx context.Context, req *transactionv1.ListOpenTransactionsRequest) (*transactionv1.ListOpenTransactionsResponse, error) {
	var v rpc.Fields
	id := v.UUID("accountId", req.GetAccountId())
	if err := v.Err(); err != nil {
		return nil, err
	}
	ids, err := s.List.OpenOf(ctx, id, openMax)
	return &transactionv1.ListOpenTransactionsResponse{TransactionIds: ids}, err
}

// openMax is how many open transactions of an account are listed.
const openMax = 100

// FilterOpenTransactions says which of these transactions have not ended.
func (s *Server) FilterOpenTransactions(ctx context.Context, req *transactionv1.FilterOpenTransactionsRequest) (*transactionv1.FilterOpenTransactionsResponse, error) {
	var v rpc.Fields
	if n := len(req.GetTransactionIds()); n > edge.BatchMax {
		v.Add("transactionIds", "max_items:"+strconv.Itoa(edge.BatchMax), strconv.Itoa(n))
	}
	ids := make([]string, len(req.GetTransactionIds()))
	for i, id := range req.GetTransactionIds() {
		ids[i] = v.UUID("transactionIds", id)
	}
	if err := v.Err(); err != nil {
		return nil, err
	}
	open, err := s.List.Open(ctx, ids)
	return &transactionv1.FilterOpenTransactionsResponse{TransactionIds: open}, err
}

// CompareTransactionList compares a page of the list with the events.
func (s *Server) CompareTransactionList(ctx context.Context, req *transactionv1.CompareTransactionListRequest) (*transactionv1.CompareTransactionListResponse, error) {
	var v rpc.Fields
	after := req.GetAfter()
	if after != "" {
		after = v.UUID("after", after)
	}
	if err := v.Err(); err != nil {
		return nil, err
	}
	wrong, last, err := s.List.Compare(ctx, after)
	if err != nil {
		return nil, err
	}
	res := &transactionv1.CompareTransactionListResponse{Last: last}
	for _, d := range wrong {
		res.Differences = append(res.Differences, &transactionv1.TransactionListDifference{TransactionId: d.ID, ExpectedVersion: d.Head, ActualVersion: d.Row})
	}
	return res, nil
}
