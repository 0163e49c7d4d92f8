package gateway

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	outboxv1 "example.com/billing/proto/gen/go/billing/outbox/v1"
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
func OpenAPI() (*openapi3.T, error) {
	var v2 openapi2.T
	if err := json.Unmarshal(swagger, &v2); err != nil {
		return nil, fmt.Errorf("openapi: %w", err)
	}
	document, err := openapi2conv.ToV3(&v2)
	if err != nil {
		return nil, fmt.Errorf("openapi: convert: %w", err)
	}
	document.Servers = openapi3.Servers{{URL: "/"}}
	addComponents(document.Components)
	for path, item := range document.Paths.Map() {
		for method, op := range item.Operations() {
			describe(document.Components, path, method, op)
		}
	}
	if err := markRequired(document.Components.Schemas); err != nil {
		return nil, fmt.Errorf("openapi: %w", err)
	}
	if err := prune(document); err != nil {
		return nil, fmt.Errorf("openapi: %w", err)
	}
	return document, nil
}

// requiredInRequests are the fields that a request cannot do without. The idempotency key is not here: it may be a header.
var requiredInRequests = map[string][]string{
	"CreateAccountRequest":    {"ownerId", "ownerType", "accountType", "currency"},
	"ChangeAccountStatusBody": {"status", "reason"},
	"TopupRequest":            {"sourceAccountId", "destinationAccountId", "amount", "currency"},
	"WithdrawRequest":         {"sourceAccountId", "destinationAccountId", "amount", "currency"},
	"TransferRequest":         {"sourceAccountId", "destinationAccountId", "amount", "currency"},
}

// answers are the messages that are answered with; what has no presence is always printed, and the fields named besides are
// always set.
var answers = []struct {
	message proto.Message
	set     []string
}{
	{&accountv1.Account{}, []string{"createdAt", "updatedAt"}},
	{&accountv1.GetAccountBalanceResponse{}, nil},
	{&accountv1.ListAccountsResponse{}, nil},
	{&accountv1.GetBooksResponse{}, []string{"asOf"}},
	{&accountv1.CurrencyBooks{}, nil},
	{&transactionv1.Transaction{}, []string{"createdAt", "updatedAt"}},
	{&transactionv1.ListTransactionsResponse{}, nil},
	{&sagav1.Saga{}, []string{"createdAt", "updatedAt"}},
	{&sagav1.CompensationAction{}, []string{"timestamp"}},
	{&outboxv1.GetOutboxStatsResponse{}, nil},
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
	for name, fields := range required {
		schema, ok := schemas[name]
		if !ok {
			return fmt.Errorf("no schema %s", name)
		}
		if strings.HasSuffix(name, "Request") {
			delete(schema.Value.Properties, "wait") // over REST it is a query parameter
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
