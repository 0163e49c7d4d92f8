package api

import (
	"context"
	"time"

	"example.com/billing/pkg/job"
	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account/reconcile"
	"example.com/billing/services/edge"
)

// Reconcile checks one account at once, or begins a check of all of them, behind one that is under way, and waits for its end
// if the caller wants.
func (s *Server) Reconcile(ctx context.Context, req *accountv1.ReconcileRequest) (*accountv1.ReconcileResponse, error) {
	var v rpc.Fields
	wait := edge.Wait(ctx, &v, req.GetWait(), edge.JobWait)
	if req.AccountId != nil {
		return s.reconcileOne(ctx, &v, req.GetAccountId())
	}
	if err := v.Err(); err != nil {
		return nil, err
	}
	state, report, err := s.Reconciler.Check(ctx, wait)
	if err != nil {
		return nil, err
	}
	return &accountv1.ReconcileResponse{Reconciliation: reconciliation(state, report)}, nil
}

func (s *Server) reconcileOne(ctx context.Context, v *rpc.Fields, accountID string) (*accountv1.ReconcileResponse, error) {
	id := v.UUID("accountId", accountID)
	if err := v.Err(); err != nil {
		return nil, err
	}
	begun := time.Now().UTC()
	report, ok, err := s.Reconciler.One(ctx, id)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, rpc.Fail("ACCOUNT_NOT_FOUND", "There is no account %s.", id)
	}
	p := reconciliation(job.State{Status: job.Done, StartedAt: begun, EndedAt: time.Now().UTC()}, report)
	p.AccountId = &id
	return &accountv1.ReconcileResponse{Reconciliation: p}, nil
}

// GetReconciliation reads the latest check of all accounts.
func (s *Server) GetReconciliation(ctx context.Context, _ *accountv1.GetReconciliationRequest) (*accountv1.GetReconciliationResponse, error) {
	state, report, err := s.Reconciler.Latest(ctx, 0)
	if err != nil {
		return nil, err
	}
	return &accountv1.GetReconciliationResponse{Reconciliation: reconciliation(state, report)}, nil
}

func reconciliation(s job.State, r reconcile.Report) *accountv1.Reconciliation {
	p := &accountv1.Reconciliation{
		Status: s.Status, Accounts: edge.Count(r.Accounts), Events: edge.Count(r.Events), FindingCount: edge.Count(r.Found),
		StartedAt: edge.Timestamp(s.StartedAt), EndedAt: edge.Timestamp(s.EndedAt),
	}
	switch {
	case s.Status == job.Failed:
		p.Error = &s.Error
	case s.Status == job.Done && r.Found > 0:
		p.Status = "differences"
	case s.Status == job.Done:
		p.Status = "clean"
	}
	for _, f := range r.Findings {
		p.Findings = append(p.Findings, &accountv1.Finding{
			Kind: f.Kind, AccountId: f.AccountID, TransactionId: f.TransactionID, Expected: f.Expected, Actual: f.Actual, Detail: f.Detail,
		})
	}
	return p
}
