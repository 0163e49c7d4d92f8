package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"example.com/billing/pkg/rpc"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"

	"google.golang.org/grpc/metadata"
)

const (
	batchItemsMax = 1000
	batchBytesMax = 16 << 20 // the metadata of each item alone may be 16 KiB
)

// batches serves POST /api/v1/transactions/batch. It reads the items one by one, so that one that does not fit the contract
// gets its error in its place and the others are sent on.
type batches struct {
	gateway *gateway
	client  transactionv1.TransactionServiceClient
}

// ServeHTTP answers with a result for each item, in order.
func (b *batches) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g := b.gateway
	items, failure := itemsOf(r)
	if failure != nil {
		g.problem(w, r, failure)
		return
	}
	results, request, places := readItems(items)
	if len(places) > 0 {
		ctx := metadata.NewOutgoingContext(r.Context(), rpc.CallerFrom(r.Context()).Metadata())
		answer, err := b.client.Batch(ctx, request)
		if err == nil && len(answer.GetResults()) != len(places) {
			err = fmt.Errorf("batch: %d results for %d items", len(answer.GetResults()), len(places))
		}
		if err != nil {
			g.onError(r.Context(), nil, nil, w, r, err)
			return
		}
		for i, result := range answer.GetResults() {
			if e := result.GetError(); e.GetReason() == rpc.ReasonInternal { // its text may name the id of another call
				e.Detail = rpc.BrokenMessage(rpc.CallerFrom(r.Context()).CorrelationID)
			}
			results[places[i]] = result
		}
	}
	raw, err := g.marshaler.Marshal(&transactionv1.BatchResponse{Results: results})
	if err != nil {
		g.problem(w, r, rpc.Fail(rpc.ReasonInternal, "").Because(err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	_, _ = w.Write(raw)
}

// itemsOf takes the body apart: {"transactions": [...]} and nothing else.
func itemsOf(r *http.Request) ([]json.RawMessage, *rpc.Error) {
	body, ok := r.Body.(*content)
	if !ok {
		return nil, rpc.Fail(rpc.ReasonInternal, "").Because(errors.New("batch: not a prepared request"))
	}
	members, err := membersOf(body.raw)
	if err != nil {
		return nil, notJSON(err)
	}
	var (
		v     rpc.Fields
		items []json.RawMessage
		given bool
	)
	for _, m := range members {
		switch {
		case m.key != "transactions":
			v.Add(shorten(m.key), "unknown", string(m.value))
		case given:
			v.Add(m.key, "once", "")
		case !bytes.HasPrefix(m.value, []byte("[")) || json.Unmarshal(m.value, &items) != nil:
			v.Add(m.key, "array", string(m.value))
		case len(items) == 0 || len(items) > batchItemsMax:
			v.Add(m.key, fmt.Sprintf("items:1..%d", batchItemsMax), strconv.Itoa(len(items)))
		}
		given = given || m.key == "transactions"
	}
	if !given {
		v.Add("transactions", "required", "")
	}
	if err := v.Err(); err != nil {
		return nil, rpc.ErrorOf(err)
	}
	return items, nil
}

// readItems gives those that do not fit their result; the others are in the request, and places says where each belongs.
func readItems(items []json.RawMessage) (results []*transactionv1.BatchResult, request *transactionv1.BatchRequest, places []int) {
	results = make([]*transactionv1.BatchResult, len(items))
	request = &transactionv1.BatchRequest{}
	for i, raw := range items {
		item := &transactionv1.BatchItem{}
		if failure := decodeItem(raw, item); failure != nil {
			results[i] = &transactionv1.BatchResult{Error: batchError(failure)}
			continue
		}
		request.Transactions = append(request.Transactions, item)
		places = append(places, i)
	}
	return results, request, places
}

func decodeItem(raw json.RawMessage, item *transactionv1.BatchItem) *rpc.Error {
	if !bytes.HasPrefix(raw, []byte("{")) {
		return rpc.Invalid(rpc.Violation{Field: "transaction", Rule: "object", Value: string(raw)})
	}
	return decode(&content{raw: raw}, item)
}

func batchError(e *rpc.Error) *transactionv1.BatchError {
	out := &transactionv1.BatchError{Reason: e.Reason, Detail: e.Message}
	for _, v := range e.Violations {
		out.Errors = append(out.Errors, &transactionv1.BatchViolation{Field: v.Field, Rule: v.Rule, Value: v.Value})
	}
	return out
}
