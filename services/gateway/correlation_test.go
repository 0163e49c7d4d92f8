package gateway_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/billing/pkg/rpc"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
)

// A service shares its call to another service among several requests, so that call's error has an id of its own.
func sharedCallFailed(t *testing.T) error {
	t.Helper()
	st, err := status.New(codes.Internal, rpc.BrokenMessage("c-other")).WithDetails(
		&errdetails.ErrorInfo{Reason: "INTERNAL", Domain: "billing", Metadata: map[string]string{"correlationId": "c-other"}})
	if err != nil {
		t.Fatal(err)
	}
	return st.Err()
}

func TestProblemNamesOneCorrelationID(t *testing.T) {
	for name, err := range map[string]error{
		"defect": errors.New("secret"), "shared call": sharedCallFailed(t), "own error of a shared call": rpc.ErrorOf(sharedCallFailed(t)),
		"refusal": rpc.Fail("INSUFFICIENT_FUNDS", "Short by 1."), "bare status": status.Error(codes.Unavailable, "secret"),
		"deadline": context.DeadlineExceeded, "newer reason": rpc.Fail("NOT_KNOWN_YET", "Newer."),
	} {
		t.Run(name, func(t *testing.T) {
			b := &backend{err: err}
			url := start(t, b)
			id := []string{"X-Correlation-ID", "c-1"}
			asked := map[string]answer{
				"a path of nothing": ask(t, "GET", url+"/nothing", "", id...),
				"a wrong method":    ask(t, "DELETE", url+account, "", id...),
				"a wrong path":      ask(t, "GET", url+account+"/a%2Fb", "", id...),
				"a wrong body":      ask(t, "POST", url+account, "{", id...),
				"a wrong field":     ask(t, "POST", url+account, `{"x":1}`, id...),
				"a wrong query":     ask(t, "GET", url+account+"?x=1", "", id...),
				"a wrong type":      ask(t, "POST", url+account, "{}", "X-Correlation-ID", "c-1", "Content-Encoding", "gzip"),
				"unknown service":   ask(t, "GET", url+"/api/v1/outbox/ledger/stats", "", id...),
				"read":              ask(t, "GET", url+account+"/a", "", id...),
				"command":           ask(t, "POST", url+topup, "{}", id...),
				"batch":             ask(t, "POST", url+batch, `{"transactions":[{}]}`, id...),
				"watch":             ask(t, "GET", url+account+"/a/watch", "", id...),
				"outbox":            ask(t, "GET", url+"/api/v1/outbox/saga/stats", "", id...),
				"read model":        ask(t, "POST", url+"/api/v1/readmodels/accounts/rebuild", "", id...),
			}
			for what, a := range asked {
				p := problemIn(t, a)
				if p.CorrelationID != "c-1" || !slices.Equal(a.header.Values("X-Correlation-ID"), []string{"c-1"}) || strings.Contains(a.body, "c-other") {
					t.Errorf("%s: %v %s", what, a.header, a.body)
				}
				if p.Reason == "INTERNAL" && !strings.HasSuffix(p.Detail, "correlation id c-1.") {
					t.Errorf("%s: detail %q", what, p.Detail)
				}
			}
		})
	}
}

func TestBatchItemNamesTheRequestsCorrelationID(t *testing.T) {
	url := start(t, &backend{results: []*transactionv1.BatchResult{
		{Error: &transactionv1.BatchError{Reason: "INTERNAL", Detail: rpc.BrokenMessage("c-other")}},
	}})
	a := ask(t, "POST", url+batch, `{"transactions":[{}]}`, "X-Correlation-ID", "c-1")
	if a.status != 200 || strings.Contains(a.body, "c-other") || !strings.Contains(a.body, "correlation id c-1.") {
		t.Errorf("got %+v", a)
	}
}
