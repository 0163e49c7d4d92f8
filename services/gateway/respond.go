package gateway

import (
	"context"
	"net/http"
	"net/url"

	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	readmodelv1 "example.com/billing/proto/gen/go/billing/readmodel/v1"
	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"

	"google.golang.org/protobuf/proto"
)

// outgoingHeader lets through the headers that services say something to the caller with.
func outgoingHeader(key string) (string, bool) {
	switch key {
	case "idempotency-replayed":
		return "Idempotency-Replayed", true
	case "consistency-token":
		return "X-Consistency-Token", true
	}
	return "", false
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
		locate(out, "accounts", m.GetAccount().GetAccountId())
	case interface {
		GetTransaction() *transactionv1.Transaction
	}:
		if _, read := m.(*transactionv1.GetTransactionResponse); !read {
			accepted(out, m.GetTransaction().GetStatus() == "pending")
			locate(out, "transactions", m.GetTransaction().GetTransactionId())
		}
	case *transactionv1.PlaceHoldResponse:
		accepted(out, m.GetHold().GetStatus() == "pending")
		locate(out, "holds", m.GetHold().GetHoldId())
	case *transactionv1.VoidHoldResponse:
		accepted(out, m.GetHold().GetStatus() == "releasing")
	case *accountv1.ReconcileResponse:
		accepted(out, m.GetReconciliation().GetStatus() == "running")
	case *readmodelv1.RebuildReadModelResponse:
		accepted(out, m.GetRebuild().GetStatus() == "running")
	case *sagav1.ListSagasResponse:
		if token := m.GetNextPageToken(); token != "" {
			w.Header().Set("X-Next-Page-Token", token)
		}
	}
	return nil
}

// accepted is the status of what may not have ended yet.
func accepted(out *recorder, underWay bool) {
	if underWay {
		out.success = http.StatusAccepted
	}
}

// locate says where the resource is read.
func locate(out *recorder, collection, id string) {
	out.Header().Set("Location", "/api/v1/"+collection+"/"+url.PathEscape(id))
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
