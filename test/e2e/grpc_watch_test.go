package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
)

// receive reads a stream until it ends or n messages came.
func receive[R any](t *testing.T, stream grpc.ServerStreamingClient[R], err error, n int, say func(*R) string) string {
	t.Helper()
	var got []string
	for err == nil && len(got) < n {
		var r *R
		if r, err = stream.Recv(); err == nil {
			got = append(got, say(r))
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		t.Errorf("after %v: %v", got, err)
	}
	return strings.Join(got, ", ")
}

// A payment and its saga, watched over gRPC from before the first step; and resumed behind each entry.
func TestWatchesOverGRPC(t *testing.T) {
	customer, merchant := funded(t, "100.00"), open(t, "USER")
	tx := call(t, "POST", "/api/v1/transactions/payment", object{
		"idempotencyKey": "watched" + customer, "customerAccountId": customer, "merchantAccountId": merchant, "amount": "10.00", "currency": "USD",
	})
	id, _ := tx.body["transactionId"].(string)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	sagas, transactions := sagav1.NewSagaServiceClient(dial(t, now.saga)), transactionv1.NewTransactionServiceClient(dial(t, now.transaction))

	entries := []string{"1 started", "2 step_completed debit_customer", "3 step_completed credit_merchant", "4 step_completed complete_transaction", "5 completed"}
	for after := range int32(len(entries) + 1) {
		stream, err := sagas.WatchSaga(ctx, &sagav1.WatchSagaRequest{SagaId: id, After: &after})
		got := receive(t, stream, err, len(entries)+1, func(r *sagav1.WatchSagaResponse) string {
			return strings.TrimSpace(fmt.Sprint(r.GetEntry().GetId(), " ", r.GetEntry().GetType(), " ", r.GetEntry().GetStep()))
		})
		if want := strings.Join(entries[after:], ", "); got != want {
			t.Errorf("the saga behind %d: %s, want %s", after, got, want)
		}
	}
	// Over REST a stream that has nothing more to say, ever, tells a browser not to come back.
	if a := call(t, "GET", "/api/v1/sagas/"+id+"/watch", nil, "Last-Event-ID", "5"); a.status != http.StatusNoContent {
		t.Errorf("behind the end: %d %s", a.status, a.raw)
	}

	refund := must(t, http.StatusOK, "POST", "/api/v1/transactions/refund?wait=30s", object{"idempotencyKey": "refund" + customer, "paymentId": id})
	if refund["status"] != "completed" || refund["amount"] != "10.00" {
		t.Errorf("refund %v", refund)
	}
	events := []string{"1 PaymentRequested", "2 PaymentCompleted", "3 PaymentRefundReserved", "4 PaymentRefunded"}
	for after := range int32(len(events)) {
		stream, err := transactions.WatchTransaction(ctx, &transactionv1.WatchTransactionRequest{TransactionId: id, After: &after})
		got := receive(t, stream, err, len(events)-int(after), func(r *transactionv1.WatchTransactionResponse) string {
			return fmt.Sprint(r.GetEvent().GetVersion(), " ", r.GetEvent().GetEventType())
		})
		if want := strings.Join(events[after:], ", "); got != want {
			t.Errorf("the payment behind %d: %s, want %s", after, got, want)
		}
	}
}
