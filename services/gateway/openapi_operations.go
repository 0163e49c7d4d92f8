package gateway

import "slices"

// answerKind is which statuses and headers an operation's success has.
type answerKind int

const (
	plain200    answerKind = iota
	createdOr              // 201 for the new one, 200 for the one that the key made before
	transaction            // 200 when it has ended, 202 before; Location
	hold                   // 200 when it is placed or refused, 202 before; Location
	release                // 200 when it is given back, 202 before; a repeat needs no key to be marked as one
	background             // 200 when it has ended, 202 before
	events                 // a stream; a saga's can have nothing more to say: 204
)

// facts are what HTTP adds to one operation of the contracts.
type facts struct {
	answer  answerKind
	keyed   bool     // takes the header Idempotency-Key
	waits   bool     // takes the query parameter wait
	token   bool     // may answer with X-Consistency-Token
	reasons []string // that this operation can be answered with, besides those of all
}

var (
	// anywhere are the reasons that every operation can be answered with.
	anywhere = []string{"INVALID_ARGUMENT", reasonOverloaded, "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
	// withBody are those of operations that take a JSON document.
	withBody = []string{reasonBodyTooLarge, reasonMediaType}
	// moving are the reasons that accounts give before a transaction is accepted.
	moving = []string{
		"ACCOUNT_NOT_FOUND", "IDEMPOTENCY_CONFLICT", "CURRENCY_MISMATCH", "ACCOUNT_SUSPENDED", "ACCOUNT_CLOSED", "ACCOUNT_CLOSING",
		"ACCOUNT_TYPE_NOT_ALLOWED", "SAME_ACCOUNT",
	}
	operating = []string{"SAGA_NOT_FOUND", "SAGA_ENDED", "SAGA_NOT_WAITING", "SAGA_CHANGED"}
	changing  = []string{"ACCOUNT_NOT_FOUND", "IDEMPOTENCY_CONFLICT", "VERSION_CONFLICT"}
)

func also(reasons []string, more ...string) []string { return slices.Concat(reasons, more) }

// operations are all of the document's; one that is missing here is an error.
var operations = map[string]facts{
	"AccountService_CreateAccount":       {answer: createdOr, keyed: true, token: true, reasons: []string{"IDEMPOTENCY_CONFLICT"}},
	"AccountService_GetAccount":          {token: true, reasons: []string{"ACCOUNT_NOT_FOUND"}},
	"AccountService_GetAccountBalance":   {token: true, reasons: []string{"ACCOUNT_NOT_FOUND"}},
	"AccountService_GetAccountHistory":   {reasons: []string{"ACCOUNT_NOT_FOUND"}},
	"AccountService_GetAccountStatement": {reasons: []string{"ACCOUNT_NOT_FOUND"}},
	"AccountService_WatchAccount":        {answer: events, reasons: []string{"ACCOUNT_NOT_FOUND", "HISTORY_LOST"}},
	"AccountService_ListAccounts":        {reasons: []string{"HISTORY_LOST"}},
	"AccountService_ListCurrencies":      {},
	"AccountService_ChangeAccountStatus": {
		keyed: true, token: true,
		reasons: also(changing, "STATUS_NOT_ALLOWED", "BALANCE_NOT_ZERO", "HOLDS_OPEN"),
	},
	"AccountService_ChangeAccountLimits": {keyed: true, token: true, reasons: also(changing, "LIMITS_NOT_ALLOWED", "ACCOUNT_CLOSED")},

	"BooksService_GetBooks":          {},
	"BooksService_Reconcile":         {answer: background, waits: true, reasons: []string{"ACCOUNT_NOT_FOUND"}},
	"BooksService_GetReconciliation": {},

	"TransactionService_Topup":    {answer: transaction, keyed: true, waits: true, token: true, reasons: moving},
	"TransactionService_Withdraw": {answer: transaction, keyed: true, waits: true, token: true, reasons: moving},
	"TransactionService_Transfer": {answer: transaction, keyed: true, waits: true, token: true, reasons: moving},
	"TransactionService_Pay":      {answer: transaction, keyed: true, waits: true, token: true, reasons: moving},
	"TransactionService_Refund": {
		answer: transaction, keyed: true, waits: true, token: true,
		reasons: also(moving, "TRANSACTION_NOT_FOUND", "NOT_REFUNDABLE", "REFUND_EXCEEDS_PAYMENT"),
	},
	"TransactionService_Batch":            {},
	"TransactionService_GetTransaction":   {token: true, reasons: []string{"TRANSACTION_NOT_FOUND"}},
	"TransactionService_ListTransactions": {reasons: []string{"HISTORY_LOST"}},
	"TransactionService_WatchTransaction": {answer: events, reasons: []string{"TRANSACTION_NOT_FOUND", "HISTORY_LOST"}},

	"HoldService_PlaceHold": {answer: hold, keyed: true, waits: true, token: true, reasons: also(moving, "TOO_MANY_HOLDS")},
	"HoldService_GetHold":   {token: true, reasons: []string{"HOLD_NOT_FOUND"}},
	"HoldService_ListHolds": {reasons: []string{"HISTORY_LOST"}},
	"HoldService_CaptureHold": {
		answer: transaction, keyed: true, waits: true, token: true,
		reasons: also(moving, "HOLD_NOT_FOUND", "HOLD_NOT_ACTIVE", "CAPTURE_EXCEEDS_HOLD"),
	},
	"HoldService_VoidHold": {answer: release, waits: true, token: true, reasons: []string{"HOLD_NOT_FOUND", "HOLD_NOT_ACTIVE", "CAPTURE_UNDER_WAY"}},

	"SagaService_GetSaga":   {reasons: []string{"SAGA_NOT_FOUND"}},
	"SagaService_ListSagas": {},
	"SagaService_WatchSaga": {answer: events, reasons: []string{"SAGA_NOT_FOUND"}},

	"SagaService_GetSagaTimeline": {reasons: []string{"SAGA_NOT_FOUND"}},
	"SagaService_CountSagas":      {},
	"SagaService_RetrySaga":       {reasons: operating},
	"SagaService_SkipSaga":        {reasons: also(operating, "SAGA_STEP_NOT_DONE")},
	"SagaService_CompensateSaga":  {reasons: also(operating, "SAGA_PIVOT_DONE")},
	"SagaService_ResumeSaga":      {reasons: also(operating, "SAGA_STEP_CLOSED")},
	"SagaService_ResolveSaga":     {reasons: also(operating, "SAGA_STEP_NOT_DONE", "SAGA_MONEY_IN_TRANSIT")},

	"OutboxService_GetOutboxStats":      {reasons: []string{reasonServiceNotFound}},
	"OutboxService_ListParked":          {reasons: []string{reasonServiceNotFound}},
	"OutboxService_RequeueParked":       {reasons: []string{reasonServiceNotFound, "PARKED_NOT_FOUND"}},
	"OutboxService_DiscardParked":       {reasons: []string{reasonServiceNotFound, "PARKED_NOT_FOUND", "NOT_DISCARDABLE"}},
	"ReadModelService_RebuildReadModel": {answer: background, waits: true, reasons: []string{reasonReadModel}},
	"ReadModelService_GetRebuild":       {reasons: []string{reasonReadModel}},
}

// mayBeEmpty are the operations whose body may be absent.
var mayBeEmpty = []string{"HoldService_VoidHold", "BooksService_Reconcile", "ReadModelService_RebuildReadModel"}
