package gateway

import (
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
)

// What amounts look like. Balances and sums may be negative and may outgrow what one amount can be.
const (
	amountPattern  = `^(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?$`
	limitPattern   = `^-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?$`
	noLimitPattern = `^(-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?)?$` // "" takes a limit away
	balancePattern = `^-?(0|[1-9][0-9]*)(\.[0-9]{1,18})?$`
	codePattern    = `^[A-Z][A-Z0-9]{1,11}$`
	base64URL      = `^[A-Za-z0-9_-]*$`
)

// shape narrows a schema down to what the services enforce, or always answer.
type shape func(*openapi3.Schema)

func uuid(s *openapi3.Schema) { s.Format = "uuid" }

func oneOf(values ...string) shape {
	return func(s *openapi3.Schema) {
		for _, value := range values {
			s.Enum = append(s.Enum, value)
		}
	}
}

func matching(pattern string) shape { return func(s *openapi3.Schema) { s.Pattern = pattern } }

func upTo(longest uint64) shape { return func(s *openapi3.Schema) { s.MaxLength = &longest } }

// filled is text of 1 to longest characters.
func filled(longest uint64) shape {
	return func(s *openapi3.Schema) { s.MinLength, s.MaxLength = 1, &longest }
}

func atLeast(lowest float64) shape { return func(s *openapi3.Schema) { s.Min = &lowest } }

func between(lowest, highest float64) shape {
	return func(s *openapi3.Schema) { s.Min, s.Max = &lowest, &highest }
}

var (
	accountTypes      = oneOf("USER", "EXTERNAL", "SYSTEM")
	accountStatuses   = oneOf("active", "suspended", "closing", "closed")
	transactionTypes  = oneOf("topup", "withdrawal", "transfer", "payment", "refund", "hold", "release")
	transactionStatus = oneOf("pending", "completed", "failed", "compensated")
	holdStatuses      = oneOf("pending", "failed", "active", "releasing", "captured", "voided", "expired")
	sagaStatuses      = oneOf("in_progress", "completed", "compensating", "compensated", "failed", "needs_attention")
	readModelNames    = oneOf("accounts", "transactions")
	serviceNames      = oneOf("account", "transaction", "saga")
	directions        = oneOf("outgoing", "incoming")
)

// shapes are the schemas' and parameters' by "Schema.field" or "Operation.parameter"; else by the name alone.
var shapes = map[string]shape{
	"accountId": uuid, "sourceAccountId": uuid, "destinationAccountId": uuid, "customerAccountId": uuid, "merchantAccountId": uuid,
	"transactionId": uuid, "paymentId": uuid, "holdId": uuid, "sagaId": uuid, "eventId": uuid,
	"Transaction.destinationAccountId": nil, // empty for some types
	"Finding.accountId":                nil, // empty where none can be named
	"Finding.transactionId":            nil,

	"currency": matching(codePattern), "amount": matching(amountPattern),
	"CurrencyBooks.user": matching(balancePattern), "CurrencyBooks.external": matching(balancePattern), "CurrencyBooks.system": matching(balancePattern),
	"CurrencyBooks.inTransit": matching(balancePattern), "CurrencyBooks.difference": matching(balancePattern),
	"minAmount": matching(amountPattern), "maxAmount": matching(amountPattern),
	"minBalance": matching(limitPattern), "maxBalance": matching(limitPattern),
	"ChangeAccountLimitsBody.minBalance": matching(noLimitPattern), "ChangeAccountLimitsBody.maxBalance": matching(noLimitPattern),
	"balance": matching(balancePattern), "heldBalance": matching(balancePattern), "availableBalance": matching(balancePattern),
	"openingBalance": matching(balancePattern), "closingBalance": matching(balancePattern),
	"totalCredits": matching(balancePattern), "totalDebits": matching(balancePattern),
	"capturedAmount": matching(amountPattern), "capturingAmount": matching(amountPattern), "remainingAmount": matching(amountPattern),
	"refundedAmount": matching(amountPattern), "refundingAmount": matching(amountPattern),

	"accountType": accountTypes, "sagaType": transactionTypes,
	"Account.status": accountStatuses, "GetAccountBalanceResponse.status": accountStatuses, "AccountService_ListAccounts.status": accountStatuses,
	"ChangeAccountStatusBody.status": oneOf("active", "suspended", "closed"),
	"Transaction.type":               transactionTypes, "TransactionService_ListTransactions.type": transactionTypes, "SagaService_ListSagas.type": transactionTypes,
	"SagaService_CountSagas.type": transactionTypes, "SagaService_CountSagas.status": sagaStatuses, "SagaCount.status": sagaStatuses, "GetSagaTimelineResponse.status": sagaStatuses,
	"SagaStep.status":                   oneOf("pending", "done", "skipped", "refused", "unknown", "undone", "cancelled"),
	"SagaService_ListSagas.errorReason": upTo(128), "SagaService_CountSagas.errorReason": upTo(128),
	"RetrySagaBody.reason": filled(256), "SkipSagaBody.reason": filled(256), "CompensateSagaBody.reason": filled(256), "ResumeSagaBody.reason": filled(256), "ResolveSagaBody.reason": filled(256),
	"BatchItem.type":     oneOf("topup", "withdrawal", "transfer", "payment", "refund"),
	"Transaction.status": transactionStatus, "TransactionService_ListTransactions.status": transactionStatus,
	"Hold.status": holdStatuses, "HoldService_ListHolds.status": holdStatuses,
	"Saga.status": sagaStatuses, "SagaService_ListSagas.status": sagaStatuses,
	"SagaEntry.type": oneOf("started", "step_completed", "refused", "step_cancelled", "compensation_completed", "no_answer", "given_up", "overdue", "operator",
		"completed", "compensated", "failed", "needs_attention"),
	"SagaEntry.verb":          oneOf("retry", "skip", "compensate", "resume", "resolve"),
	"StatementLine.direction": oneOf("CREDIT", "DEBIT"),
	"Reconciliation.status":   oneOf("running", "clean", "differences", "failed", "never"),
	"Finding.kind":            oneOf("sequence", "arithmetic", "state", "read_model", "books", "transit"),
	"Rebuild.status":          oneOf("running", "switched", "failed", "never"),
	"Rebuild.name":            readModelNames, "ReadModelService_RebuildReadModel.name": readModelNames, "ReadModelService_GetRebuild.name": readModelNames,
	"service":        serviceNames,
	"ParkedEvent.id": uuid, "OutboxService_RequeueParked.id": uuid, "OutboxService_DiscardParked.id": uuid,
	"ParkedEvent.eventId":   nil, // empty where the message cannot be read
	"ParkedEvent.direction": directions, "OutboxService_ListParked.direction": directions,
	"ParkedEvent.status": oneOf("parked", "requeued", "discarded"),
	"Currency.kind":      oneOf("fiat", "crypto", "points"),
	"Currency.code":      matching(codePattern), "Currency.scale": between(0, 18),

	"CreateAccountRequest.ownerId": filled(128), "CreateAccountRequest.ownerType": filled(64),
	"AccountService_ListAccounts.ownerId": filled(128), "AccountService_ListAccounts.ownerType": filled(64),
	"CreateAccountRequest.idempotencyKey": upTo(128), "ChangeAccountStatusBody.idempotencyKey": upTo(128), "ChangeAccountLimitsBody.idempotencyKey": upTo(128),
	"TopupRequest.idempotencyKey": upTo(128), "WithdrawRequest.idempotencyKey": upTo(128), "TransferRequest.idempotencyKey": upTo(128),
	"PayRequest.idempotencyKey": upTo(128), "RefundRequest.idempotencyKey": upTo(128), "PlaceHoldRequest.idempotencyKey": upTo(128),
	"CaptureHoldBody.idempotencyKey": upTo(128), "BatchItem.idempotencyKey": filled(128),
	"reference":                      upTo(256),
	"ChangeAccountStatusBody.reason": filled(256), "ChangeAccountLimitsBody.reason": filled(256),
	"RequeueParkedBody.reason": filled(256), "DiscardParkedBody.reason": filled(256),
	"RefundRequest.reason": upTo(256), "VoidHoldBody.reason": upTo(256), "BatchItem.reason": upTo(256),
	"expectedVersion": atLeast(1), "version": atLeast(1), "after": atLeast(0), "SagaEntry.id": atLeast(1),
	"pageSize": between(1, 200),
	"pageToken": func(s *openapi3.Schema) {
		upTo(1024)(s) // empty is the first page's: what the last page answers with may be sent
		s.Pattern = base64URL
	},
	"consistencyToken": upTo(4096),
	"BatchRequest.transactions": func(s *openapi3.Schema) {
		s.MinItems, s.MaxItems = 1, new(uint64(batchItemsMax))
	},
}

// narrow gives a field or parameter its shape.
func narrow(of, name string, s *openapi3.SchemaRef) {
	form, ok := shapes[of+"."+name]
	if !ok {
		form = shapes[name]
	}
	if form != nil && s != nil && s.Ref == "" {
		form(s.Value)
	}
}

// narrowAll gives all schemas' fields their shapes. Requests take no fields besides theirs.
func narrowAll(schemas openapi3.Schemas) {
	for name, schema := range schemas {
		for field, s := range schema.Value.Properties {
			narrow(name, field, s)
		}
		if isRequest(name) || name == "BatchItem" {
			schema.Value.AdditionalProperties = openapi3.AdditionalProperties{Has: new(false)}
		}
	}
	oneRequired(&schemas["ChangeAccountLimitsBody"].Value.AnyOf, "minBalance", "maxBalance")
	oneRequired(&schemas["BatchResult"].Value.OneOf, "transaction", "error")
}

func oneRequired(into *openapi3.SchemaRefs, fields ...string) {
	for _, field := range fields {
		*into = append(*into, &openapi3.SchemaRef{Value: &openapi3.Schema{Required: []string{field}}})
	}
}

func isRequest(schema string) bool {
	return strings.HasSuffix(schema, "Request") || strings.HasSuffix(schema, "Body")
}
