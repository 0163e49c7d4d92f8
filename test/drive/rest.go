package drive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// REST carries a driver's gRPC calls over REST, to the gateway at this address: http://127.0.0.1:8080.
type REST string

// restRoutes are the methods that a driver calls, as proto/gateway.yaml maps them: verb, path, and the field of the answer that the
// body is.
var restRoutes = map[string][3]string{
	"/billing.account.v1.AccountService/CreateAccount":          {"POST", "accounts", "account"},
	"/billing.account.v1.AccountService/GetAccount":             {"GET", "accounts/{accountId}", "account"},
	"/billing.account.v1.AccountService/ChangeAccountStatus":    {"PATCH", "accounts/{accountId}/status", "account"},
	"/billing.account.v1.AccountService/ChangeAccountLimits":    {"PATCH", "accounts/{accountId}/limits", "account"},
	"/billing.transaction.v1.TransactionService/Topup":          {"POST", "transactions/topup", "transaction"},
	"/billing.transaction.v1.TransactionService/Withdraw":       {"POST", "transactions/withdraw", "transaction"},
	"/billing.transaction.v1.TransactionService/Transfer":       {"POST", "transactions/transfer", "transaction"},
	"/billing.transaction.v1.TransactionService/Pay":            {"POST", "transactions/payment", "transaction"},
	"/billing.transaction.v1.TransactionService/Refund":         {"POST", "transactions/refund", "transaction"},
	"/billing.transaction.v1.TransactionService/Batch":          {"POST", "transactions/batch", ""},
	"/billing.transaction.v1.TransactionService/GetTransaction": {"GET", "transactions/{transactionId}", "transaction"},
	"/billing.transaction.v1.HoldService/PlaceHold":             {"POST", "holds", "hold"},
	"/billing.transaction.v1.HoldService/GetHold":               {"GET", "holds/{holdId}", "hold"},
	"/billing.transaction.v1.HoldService/CaptureHold":           {"POST", "holds/{holdId}/capture", "transaction"},
	"/billing.transaction.v1.HoldService/VoidHold":              {"POST", "holds/{holdId}/void", "hold"},
}

// Invoke is grpc.ClientConnInterface's. A problem document comes out as the status that gRPC would have.
func (r REST) Invoke(ctx context.Context, method string, req, res any, opts ...grpc.CallOption) error {
	route := restRoutes[method]
	httpReq, err := r.request(ctx, route[0], route[1], req.(proto.Message))
	if err != nil {
		return err
	}
	got, err := http.DefaultClient.Do(httpReq)
	if err != nil {
		return err
	}
	defer got.Body.Close()
	raw, err := io.ReadAll(got.Body)
	if err != nil {
		return err
	}
	for _, o := range opts {
		if o, ok := o.(grpc.HeaderCallOption); ok && got.Header.Get("Idempotency-Replayed") == "true" {
			*o.HeaderAddr = metadata.Pairs("idempotency-replayed", "true")
		}
	}
	if got.StatusCode >= http.StatusMultipleChoices {
		return problem(got.StatusCode, raw)
	}
	if route[2] != "" {
		raw = fmt.Appendf(nil, `{%q:%s}`, route[2], raw)
	}
	return protojson.Unmarshal(raw, res.(proto.Message))
}

var pathField = regexp.MustCompile(`\{(\w+)\}`)

// request moves what belongs there from the body to the path and the query.
func (r REST) request(ctx context.Context, verb, path string, req proto.Message) (*http.Request, error) {
	raw, err := protojson.Marshal(req)
	if err != nil {
		return nil, err
	}
	var body map[string]any
	if err := json.Unmarshal(raw, &body); err != nil {
		return nil, err
	}
	take := func(name string) string {
		s, _ := body[name].(string)
		delete(body, name)
		return s
	}
	path = pathField.ReplaceAllStringFunc(path, func(field string) string { return take(strings.Trim(field, "{}")) })
	if wait := take("wait"); wait != "" {
		path += "?wait=" + wait
	}
	var content io.Reader = http.NoBody
	if verb != http.MethodGet {
		if raw, err = json.Marshal(body); err != nil {
			return nil, err
		}
		content = bytes.NewReader(raw)
	}
	out, err := http.NewRequestWithContext(ctx, verb, string(r)+"/api/v1/"+path, content)
	if err == nil && verb != http.MethodGet {
		out.Header.Set("Content-Type", "application/json")
	}
	return out, err
}

func problem(code int, raw []byte) error {
	var p struct {
		Reason string `json:"reason"`
	}
	if err := json.Unmarshal(raw, &p); err != nil || p.Reason == "" {
		return fmt.Errorf("status %d, no problem document: %s", code, raw)
	}
	return Refusal(p.Reason, string(raw))
}

// Refusal is an error as gRPC brings it: a status with its reason, where there is one.
func Refusal(reason, text string) error {
	st := status.New(codes.Unknown, text)
	if reason == "" {
		return st.Err()
	}
	st, err := st.WithDetails(&errdetails.ErrorInfo{Reason: reason})
	if err != nil {
		return err
	}
	return st.Err()
}

// NewStream is grpc.ClientConnInterface's; a driver watches nothing.
func (REST) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errors.New("no streams over REST")
}
