package gateway

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	eventv1 "example.com/billing/proto/gen/go/billing/event/v1"
	outboxv1 "example.com/billing/proto/gen/go/billing/outbox/v1"
	readmodelv1 "example.com/billing/proto/gen/go/billing/readmodel/v1"
	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"

	"github.com/getkin/kin-openapi/openapi2"
	"github.com/getkin/kin-openapi/openapi2conv"
	"github.com/getkin/kin-openapi/openapi3"
	"google.golang.org/protobuf/proto"
)

// The generated document; buf writes it here, because only files of this module can be embedded.
//
//go:embed openapi/billing.swagger.json
var swagger []byte

// OpenAPI is the API's OpenAPI 3 document: the one generated from the contracts, and what HTTP adds to them.
func OpenAPI(catalog *rpc.Catalog) (*openapi3.T, error) {
	var v2 openapi2.T
	if err := json.Unmarshal(swagger, &v2); err != nil {
		return nil, fmt.Errorf("openapi: %w", err)
	}
	document, err := openapi2conv.ToV3(&v2)
	if err != nil {
		return nil, fmt.Errorf("openapi: convert: %w", err)
	}
	document.Servers = openapi3.Servers{{URL: "/"}}
	addComponents(document.Components, catalog)
	examples, err := readExamples()
	if err != nil {
		return nil, fmt.Errorf("openapi: %w", err)
	}
	d := &describer{components: document.Components, catalog: catalog, examples: examples}
	for path, item := range document.Paths.Map() {
		for method, op := range item.Operations() {
			if err := d.describe(op); err != nil {
				return nil, fmt.Errorf("openapi: %s %s: %w", method, path, err)
			}
		}
	}
	if err := markRequired(document.Components.Schemas); err != nil {
		return nil, fmt.Errorf("openapi: %w", err)
	}
	narrowAll(document.Components.Schemas)
	if err := prune(document); err != nil {
		return nil, fmt.Errorf("openapi: %w", err)
	}
	return document, nil
}

// requiredInRequests are the fields that a request cannot do without. The idempotency key is not here: it may be a header.
var requiredInRequests = map[string][]string{
	"CreateAccountRequest":    {"ownerId", "ownerType", "accountType", "currency"},
	"ChangeAccountStatusBody": {"status", "reason"},
	"ChangeAccountLimitsBody": {"reason"},
	"TopupRequest":            {"sourceAccountId", "destinationAccountId", "amount", "currency"},
	"WithdrawRequest":         {"sourceAccountId", "destinationAccountId", "amount", "currency"},
	"TransferRequest":         {"sourceAccountId", "destinationAccountId", "amount", "currency"},
	"PayRequest":              {"customerAccountId", "merchantAccountId", "amount", "currency"},
	"RefundRequest":           {"paymentId"},
	"PlaceHoldRequest":        {"accountId", "amount", "currency"},
	"BatchRequest":            {"transactions"},
	"BatchItem":               {"type", "idempotencyKey"},
	"RequeueParkedBody":       {"reason"},
	"DiscardParkedBody":       {"reason"},
}

// answers are the messages that are answered with; what has no presence is always printed, and the fields named besides are
// always set.
var answers = []struct {
	message proto.Message
	set     []string
}{
	{&accountv1.Account{}, []string{"createdAt", "updatedAt"}},
	{&accountv1.GetAccountBalanceResponse{}, nil},
	{&accountv1.GetAccountHistoryResponse{}, nil},
	{&accountv1.GetAccountStatementResponse{}, []string{"from", "to"}},
	{&accountv1.StatementLine{}, []string{"recordedAt"}},
	{&eventv1.RecordedEvent{}, []string{"occurredAt", "recordedAt", "data"}},
	{&accountv1.ListAccountsResponse{}, nil},
	{&accountv1.ListCurrenciesResponse{}, nil},
	{&accountv1.Currency{}, nil},
	{&accountv1.GetBooksResponse{}, []string{"asOf"}},
	{&accountv1.CurrencyBooks{}, nil},
	{&accountv1.Reconciliation{}, nil},
	{&accountv1.Finding{}, nil},
	{&transactionv1.Transaction{}, []string{"createdAt", "updatedAt"}},
	{&transactionv1.ListTransactionsResponse{}, nil},
	{&transactionv1.BatchResponse{}, nil},
	{&transactionv1.BatchResult{}, nil},
	{&transactionv1.BatchError{}, nil},
	{&transactionv1.BatchViolation{}, nil},
	{&transactionv1.Hold{}, []string{"expiresAt", "createdAt", "updatedAt"}},
	{&transactionv1.ListHoldsResponse{}, nil},
	{&sagav1.Saga{}, []string{"createdAt", "updatedAt"}},
	{&sagav1.CompensationAction{}, []string{"timestamp"}},
	{&sagav1.SagaEntry{}, []string{"timestamp"}},
	{&sagav1.GetSagaTimelineResponse{}, nil},
	{&sagav1.SagaStep{}, nil},
	{&sagav1.CountSagasResponse{}, nil},
	{&sagav1.SagaCount{}, []string{"oldestAt"}},
	{&outboxv1.GetOutboxStatsResponse{}, nil},
	{&outboxv1.ListParkedResponse{}, nil},
	{&outboxv1.ParkedEvent{}, []string{"parkedAt"}},
	{&readmodelv1.Rebuild{}, nil},
}

func markRequired(schemas openapi3.Schemas) error {
	required := maps.Clone(requiredInRequests)
	for _, answer := range answers {
		described := answer.message.ProtoReflect().Descriptor()
		names := slices.Clone(answer.set)
		fields := described.Fields()
		for i := range fields.Len() {
			field := fields.Get(i)
			if !field.HasPresence() && field.FullName() != "billing.saga.v1.Saga.compensation_actions" {
				names = append(names, field.JSONName())
			}
		}
		required[string(described.Name())] = names
	}
	for name, schema := range schemas {
		if isRequest(name) {
			delete(schema.Value.Properties, "wait") // over REST it is a query parameter
		}
	}
	for name, fields := range required {
		schema, ok := schemas[name]
		if !ok {
			return fmt.Errorf("no schema %s", name)
		}
		for _, field := range fields {
			if schema.Value.Properties[field] == nil {
				return fmt.Errorf("schema %s has no property %s", name, field)
			}
		}
		schema.Value.Required = slices.Sorted(slices.Values(fields))
	}
	return nil
}
