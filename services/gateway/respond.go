package gateway

import (
	"context"
	"net/http"
	"net/url"

	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"

	"google.golang.org/protobuf/proto"
)

// outgoingHeader lets through the one header that services say something to the caller with.
func outgoingHeader(key string) (string, bool) {
	return "Idempotency-Replayed", key == "idempotency-replayed"
}

// respond gives each kind of answer its HTTP status and headers; services know nothing of HTTP.
func respond(_ context.Context, w http.ResponseWriter, message proto.Message) error {
	out, ok := w.(*recorder)
	if !ok || message == nil {
		return nil
	}
	switch m := message.ProtoReflect().Interface().(type) { // not message itself: the generated code wraps it
	case *accountv1.CreateAccountResponse:
		if w.Header().Get("Idempotency-Replayed") != "true" {
			out.success = http.StatusCreated
		}
		w.Header().Set("Location", "/api/v1/accounts/"+url.PathEscape(m.GetAccount().GetAccountId()))
	case *transactionv1.TopupResponse:
		accepted(out, m.GetTransaction())
	case *transactionv1.WithdrawResponse:
		accepted(out, m.GetTransaction())
	case *transactionv1.TransferResponse:
		accepted(out, m.GetTransaction())
	case *sagav1.ListSagasResponse:
		if token := m.GetNextPageToken(); token != "" {
			w.Header().Set("X-Next-Page-Token", token)
		}
	}
	return nil
}

func accepted(out *recorder, transaction *transactionv1.Transaction) {
	if transaction.GetStatus() == "pending" {
		out.success = http.StatusAccepted
	}
	out.Header().Set("Location", "/api/v1/transactions/"+url.PathEscape(transaction.GetTransactionId()))
}

// recorder remembers the status, and holds the one a success shall have until the body is there: an answer that then cannot be
// written as JSON still becomes a problem.
type recorder struct {
	http.ResponseWriter
	success int // 0 = 200
	status  int // 0 = nothing sent yet
}

// WriteHeader remembers the final status.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 && status >= http.StatusOK {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write sends the status of a success first.
func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		if r.success == 0 {
			r.success = http.StatusOK
		}
		r.WriteHeader(r.success)
	}
	return r.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
