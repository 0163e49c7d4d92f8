package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"example.com/billing/deploy/local/system"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
)

// rpcs are the methods that the table calls, by name.
func rpcs() map[string]struct {
	addr    string
	req, to proto.Message
} {
	type m = struct {
		addr    string
		req, to proto.Message
	}
	const a, t, s = "/billing.account.v1.AccountService/", "/billing.transaction.v1.TransactionService/", "/billing.saga.v1.SagaService/"
	const h, b = "/billing.transaction.v1.HoldService/", "/billing.account.v1.BooksService/"
	return map[string]m{
		a + "CreateAccount":       {now.account, &accountv1.CreateAccountRequest{}, &accountv1.CreateAccountResponse{}},
		a + "GetAccount":          {now.account, &accountv1.GetAccountRequest{}, &accountv1.GetAccountResponse{}},
		a + "ListAccounts":        {now.account, &accountv1.ListAccountsRequest{}, &accountv1.ListAccountsResponse{}},
		a + "ChangeAccountLimits": {now.account, &accountv1.ChangeAccountLimitsRequest{}, &accountv1.ChangeAccountLimitsResponse{}},
		a + "ChangeAccountStatus": {now.account, &accountv1.ChangeAccountStatusRequest{}, &accountv1.ChangeAccountStatusResponse{}},
		t + "Topup":               {now.transaction, &transactionv1.TopupRequest{}, &transactionv1.TopupResponse{}},
		t + "Withdraw":            {now.transaction, &transactionv1.WithdrawRequest{}, &transactionv1.WithdrawResponse{}},
		t + "Transfer":            {now.transaction, &transactionv1.TransferRequest{}, &transactionv1.TransferResponse{}},
		a + "GetAccountBalance":   {now.account, &accountv1.GetAccountBalanceRequest{}, &accountv1.GetAccountBalanceResponse{}},
		a + "GetAccountHistory":   {now.account, &accountv1.GetAccountHistoryRequest{}, &accountv1.GetAccountHistoryResponse{}},
		a + "GetAccountStatement": {now.account, &accountv1.GetAccountStatementRequest{}, &accountv1.GetAccountStatementResponse{}},
		b + "Reconcile":           {now.account, &accountv1.ReconcileRequest{}, &accountv1.ReconcileResponse{}},
		t + "Pay":                 {now.transaction, &transactionv1.PayRequest{}, &transactionv1.PayResponse{}},
		t + "Refund":              {now.transaction, &transactionv1.RefundRequest{}, &transactionv1.RefundResponse{}},
		t + "Batch":               {now.transaction, &transactionv1.BatchRequest{}, &transactionv1.BatchResponse{}},
		h + "PlaceHold":           {now.transaction, &transactionv1.PlaceHoldRequest{}, &transactionv1.PlaceHoldResponse{}},
		h + "GetHold":             {now.transaction, &transactionv1.GetHoldRequest{}, &transactionv1.GetHoldResponse{}},
		h + "ListHolds":           {now.transaction, &transactionv1.ListHoldsRequest{}, &transactionv1.ListHoldsResponse{}},
		h + "CaptureHold":         {now.transaction, &transactionv1.CaptureHoldRequest{}, &transactionv1.CaptureHoldResponse{}},
		h + "VoidHold":            {now.transaction, &transactionv1.VoidHoldRequest{}, &transactionv1.VoidHoldResponse{}},
		t + "GetTransaction":      {now.transaction, &transactionv1.GetTransactionRequest{}, &transactionv1.GetTransactionResponse{}},
		t + "ListTransactions":    {now.transaction, &transactionv1.ListTransactionsRequest{}, &transactionv1.ListTransactionsResponse{}},
		s + "GetSaga":             {now.saga, &sagav1.GetSagaRequest{}, &sagav1.GetSagaResponse{}},
		s + "ListSagas":           {now.saga, &sagav1.ListSagasRequest{}, &sagav1.ListSagasResponse{}},
	}
}

const (
	accounts     = "/billing.account.v1.AccountService/"
	transactions = "/billing.transaction.v1.TransactionService/"
	sagas        = "/billing.saga.v1.SagaService/"
	holds        = "/billing.transaction.v1.HoldService/"
	books        = "/billing.account.v1.BooksService/"
)

// Every refusal, over REST and gRPC: the same reason, the right status, the field where there is one, and nothing written.
func TestRefusals(t *testing.T) {
	bank, user, other := open(t, "EXTERNAL"), funded(t, "100.00"), open(t, "USER")
	euro, suspended, closed := open(t, "USER", "currency", "EUR"), open(t, "USER"), open(t, "USER")
	patch := func(id, status string) {
		must(t, http.StatusOK, "PATCH", "/api/v1/accounts/"+id+"/status", object{"status": status, "reason": "test"})
	}
	patch(suspended, "suspended")
	patch(closed, "closed")
	used := order(user, other, "1.00")
	must(t, http.StatusOK, "POST", "/api/v1/transactions/transfer?wait=30s", used)
	unknown := uuid.NewString()
	transferred := must(t, http.StatusOK, "POST", "/api/v1/transactions/transfer?wait=30s", used)["transactionId"].(string)
	payment, held, gone := pay(t, user, other, "10.00"), hold(t, user, other, "5.00"), hold(t, user, other, "1.00")
	must(t, http.StatusOK, "POST", "/api/v1/holds/"+gone+"/void?wait=30s", nil)
	holding := open(t, "USER", "minBalance", "-5.00")
	anyone := must(t, http.StatusOK, "POST", "/api/v1/holds?wait=30s", object{"idempotencyKey": uuid.NewString(), "accountId": holding, "amount": "1.00", "currency": "USD"})["holdId"].(string)
	paying := func(change object) object {
		o := object{"idempotencyKey": uuid.NewString(), "customerAccountId": user, "merchantAccountId": other, "amount": "1.00", "currency": "USD"}
		for k, v := range change {
			if o[k] = v; v == nil {
				delete(o, k)
			}
		}
		return o
	}
	refunding := func(change object) object {
		o := object{"idempotencyKey": uuid.NewString(), "paymentId": payment, "amount": "1.00"}
		for k, v := range change {
			o[k] = v
		}
		return o
	}
	holdingOn := func(change object) object {
		o := object{"idempotencyKey": uuid.NewString(), "accountId": user, "amount": "1.00", "currency": "USD"}
		for k, v := range change {
			o[k] = v
		}
		return o
	}
	capturing := func(change object) object {
		o := object{"idempotencyKey": uuid.NewString(), "amount": "1.00"}
		for k, v := range change {
			o[k] = v
		}
		return o
	}

	// with is a transfer with some keys changed; nil removes one.
	with := func(change object) object {
		o := order(user, other, "1.00")
		for k, v := range change {
			if o[k] = v; v == nil {
				delete(o, k)
			}
		}
		return o
	}
	opened := func(change object) object {
		o := object{"ownerId": "o", "ownerType": "person", "accountType": "USER", "currency": "USD"}
		for k, v := range change {
			if o[k] = v; v == nil {
				delete(o, k)
			}
		}
		return o
	}
	long := func(n int) string { return strings.Repeat("x", n) }

	type refusal struct {
		name   string
		rpc    string // full gRPC method; empty = REST only
		kind   string // of the transaction, or a REST path with its method
		body   any
		status int
		code   codes.Code
		reason string
		field  string
	}
	table := []refusal{
		// shape
		{"no key", transactions + "Transfer", "transfer", with(object{"idempotencyKey": nil}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "idempotencyKey"},
		{"long key", transactions + "Transfer", "transfer", with(object{"idempotencyKey": long(129)}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "idempotencyKey"},
		{"no source", transactions + "Transfer", "transfer", with(object{"sourceAccountId": nil}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "sourceAccountId"},
		{"source no UUID", transactions + "Transfer", "transfer", with(object{"sourceAccountId": "{" + user + "}"}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "sourceAccountId"},
		{"destination no UUID", transactions + "Transfer", "transfer", with(object{"destinationAccountId": "bob"}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "destinationAccountId"},
		{"no amount", transactions + "Transfer", "transfer", with(object{"amount": nil}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "amount"},
		{"zero", transactions + "Transfer", "transfer", with(object{"amount": "0.00"}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "amount"},
		{"negative", transactions + "Transfer", "transfer", with(object{"amount": "-1.00"}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "amount"},
		{"too many digits", transactions + "Transfer", "transfer", with(object{"amount": "1.001"}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "amount"},
		{"too large", transactions + "Transfer", "transfer", with(object{"amount": "1000000000000000000"}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "amount"},
		{"exponent", transactions + "Transfer", "transfer", with(object{"amount": "1e2"}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "amount"},
		{"unknown currency", transactions + "Transfer", "transfer", with(object{"currency": "XXX"}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "currency"},
		{"long reference", transactions + "Transfer", "transfer", with(object{"reference": long(257)}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "reference"},
		{"large metadata", transactions + "Transfer", "transfer", with(object{"metadata": object{"x": long(16 << 10)}}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "metadata"},
		{"amount as number", "", "transfer", with(object{"amount": 1.5}), 400, 0, "INVALID_ARGUMENT", "amount"},
		{"unknown field", "", "transfer", with(object{"colour": "red"}), 400, 0, "INVALID_ARGUMENT", "colour"},
		{"no JSON", "", "transfer", `{"amount":`, 400, 0, "INVALID_ARGUMENT", ""},
		{"wait too long", "", "transfer?wait=31s", with(nil), 400, 0, "INVALID_ARGUMENT", "wait"},
		{"wait no duration", "", "transfer?wait=soon", with(nil), 400, 0, "INVALID_ARGUMENT", "wait"},
		{"body too large", "", "transfer", with(object{"metadata": object{"x": long(1 << 20)}}), 413, 0, "BODY_TOO_LARGE", ""},
		{"account without owner", accounts + "CreateAccount", "POST /api/v1/accounts", opened(object{"ownerId": nil}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "ownerId"},
		{"account type", accounts + "CreateAccount", "POST /api/v1/accounts", opened(object{"accountType": "BANK"}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "accountType"},
		{"account currency", accounts + "CreateAccount", "POST /api/v1/accounts", opened(object{"currency": "usd"}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "currency"},
		{"account limits cross", accounts + "CreateAccount", "POST /api/v1/accounts", opened(object{"minBalance": "5.00", "maxBalance": "4.00"}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "maxBalance"},
		{"external with limit", accounts + "CreateAccount", "POST /api/v1/accounts", opened(object{"accountType": "EXTERNAL", "maxBalance": "4.00"}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "maxBalance"},
		{"page size", accounts + "ListAccounts", "GET /api/v1/accounts?pageSize=201", object{"pageSize": 201}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "pageSize"},
		{"page token", transactions + "ListTransactions", "GET /api/v1/transactions?pageToken=nonsense", object{"pageToken": "nonsense"}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "pageToken"},
		{"forged page token", sagas + "ListSagas", "GET /api/v1/sagas?pageToken=eyJ0IjoiMjAyNi0wMS0wMVQwMDowMDowMFoiLCJpZCI6IngifQ", object{"pageToken": "eyJ0IjoiMjAyNi0wMS0wMVQwMDowMDowMFoiLCJpZCI6IngifQ"}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "pageToken"},
		{"forged page token of accounts", accounts + "ListAccounts", "GET /api/v1/accounts?pageToken=eyJ0IjoiMjAyNi0wMS0wMVQwMDowMDowMFoiLCJpZCI6IngifQ", object{"pageToken": "eyJ0IjoiMjAyNi0wMS0wMVQwMDowMDowMFoiLCJpZCI6IngifQ"}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "pageToken"},
		{"filter", sagas + "ListSagas", "GET /api/v1/sagas?status=done", object{"status": "done"}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "status"},
		{"saga type", sagas + "ListSagas", "GET /api/v1/sagas?type=gift", object{"type": "gift"}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "type"},
		{"unknown filter", "", "GET /api/v1/sagas?colour=red", nil, 400, 0, "INVALID_ARGUMENT", "colour"},
		// not there
		{"unknown source", transactions + "Transfer", "transfer", with(object{"sourceAccountId": unknown}), 404, codes.NotFound, "ACCOUNT_NOT_FOUND", ""},
		{"unknown destination", transactions + "Transfer", "transfer", with(object{"destinationAccountId": unknown}), 404, codes.NotFound, "ACCOUNT_NOT_FOUND", ""},
		{"unknown account", accounts + "GetAccount", "GET /api/v1/accounts/" + unknown, object{"accountId": unknown}, 404, codes.NotFound, "ACCOUNT_NOT_FOUND", ""},
		{"unknown transaction", transactions + "GetTransaction", "GET /api/v1/transactions/" + unknown, object{"transactionId": unknown}, 404, codes.NotFound, "TRANSACTION_NOT_FOUND", ""},
		{"unknown saga", sagas + "GetSaga", "GET /api/v1/sagas/" + unknown, object{"sagaId": unknown}, 404, codes.NotFound, "SAGA_NOT_FOUND", ""},
		{"saga id no UUID", sagas + "GetSaga", "GET /api/v1/sagas/1", object{"sagaId": "1"}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "sagaId"},
		{"unknown service", "", "GET /api/v1/outbox/ledger/stats", nil, 404, 0, "SERVICE_NOT_FOUND", ""},
		{"parked of an unknown service", "", "GET /api/v1/outbox/ledger/parked", nil, 404, 0, "SERVICE_NOT_FOUND", ""},
		{"parked on no way", "", "GET /api/v1/outbox/saga/parked?direction=up", nil, 400, 0, "INVALID_ARGUMENT", "direction"},
		{"requeue of nothing parked", "", "POST /api/v1/outbox/saga/parked/" + unknown + "/requeue", object{"reason": "r"}, 404, 0, "PARKED_NOT_FOUND", ""},
		{"requeue without a reason", "", "POST /api/v1/outbox/saga/parked/" + unknown + "/requeue", object{}, 400, 0, "INVALID_ARGUMENT", "reason"},
		{"discard of nothing parked", "", "POST /api/v1/outbox/account/parked/" + unknown + "/discard", object{"reason": "r"}, 404, 0, "PARKED_NOT_FOUND", ""},
		{"discard by no UUID", "", "POST /api/v1/outbox/account/parked/one/discard", object{"reason": "r"}, 400, 0, "INVALID_ARGUMENT", "id"},
		{"unknown path", "", "GET /api/v1/nothing", nil, 404, 0, "ROUTE_NOT_FOUND", ""},
		{"wrong method", "", "DELETE /api/v1/accounts", nil, 405, 0, "METHOD_NOT_ALLOWED", ""},
		// rules
		{"same account", transactions + "Transfer", "transfer", with(object{"destinationAccountId": user}), 422, codes.FailedPrecondition, "SAME_ACCOUNT", ""},
		{"source currency", transactions + "Transfer", "transfer", with(object{"sourceAccountId": euro}), 422, codes.FailedPrecondition, "CURRENCY_MISMATCH", ""},
		{"destination currency", transactions + "Transfer", "transfer", with(object{"destinationAccountId": euro}), 422, codes.FailedPrecondition, "CURRENCY_MISMATCH", ""},
		{"request currency", transactions + "Transfer", "transfer", with(object{"currency": "EUR"}), 422, codes.FailedPrecondition, "CURRENCY_MISMATCH", ""},
		{"suspended source", transactions + "Transfer", "transfer", with(object{"sourceAccountId": suspended}), 422, codes.FailedPrecondition, "ACCOUNT_SUSPENDED", ""},
		{"suspended destination", transactions + "Transfer", "transfer", with(object{"destinationAccountId": suspended}), 422, codes.FailedPrecondition, "ACCOUNT_SUSPENDED", ""},
		{"closed destination", transactions + "Transfer", "transfer", with(object{"destinationAccountId": closed}), 422, codes.FailedPrecondition, "ACCOUNT_CLOSED", ""},
		{"transfer from external", transactions + "Transfer", "transfer", with(object{"sourceAccountId": bank}), 422, codes.FailedPrecondition, "ACCOUNT_TYPE_NOT_ALLOWED", ""},
		{"transfer to external", transactions + "Transfer", "transfer", with(object{"destinationAccountId": bank}), 422, codes.FailedPrecondition, "ACCOUNT_TYPE_NOT_ALLOWED", ""},
		{"top-up from user", transactions + "Topup", "topup", with(nil), 422, codes.FailedPrecondition, "ACCOUNT_TYPE_NOT_ALLOWED", ""},
		{"withdrawal to user", transactions + "Withdraw", "withdraw", with(nil), 422, codes.FailedPrecondition, "ACCOUNT_TYPE_NOT_ALLOWED", ""},
		{"key used otherwise", transactions + "Transfer", "transfer", with(object{"idempotencyKey": used["idempotencyKey"], "amount": "2.00"}), 409, codes.AlreadyExists, "IDEMPOTENCY_CONFLICT", ""},
		{"stale version", accounts + "ChangeAccountStatus", "PATCH /api/v1/accounts/" + user + "/status", object{"status": "suspended", "reason": "r", "expectedVersion": 1}, 409, codes.Aborted, "VERSION_CONFLICT", ""},
		{"reopen", accounts + "ChangeAccountStatus", "PATCH /api/v1/accounts/" + closed + "/status", object{"status": "active", "reason": "r"}, 422, codes.FailedPrecondition, "STATUS_NOT_ALLOWED", ""},
		{"close with money", accounts + "ChangeAccountStatus", "PATCH /api/v1/accounts/" + user + "/status", object{"status": "closed", "reason": "r"}, 422, codes.FailedPrecondition, "BALANCE_NOT_ZERO", ""},
		{"limits of external", accounts + "ChangeAccountLimits", "PATCH /api/v1/accounts/" + bank + "/limits", object{"maxBalance": "5.00", "reason": "r"}, 422, codes.FailedPrecondition, "LIMITS_NOT_ALLOWED", ""},
		{"limits cross", accounts + "ChangeAccountLimits", "PATCH /api/v1/accounts/" + user + "/limits", object{"maxBalance": "-1.00", "reason": "r"}, 422, codes.FailedPrecondition, "LIMITS_NOT_ALLOWED", ""},
		{"no limits", accounts + "ChangeAccountLimits", "PATCH /api/v1/accounts/" + user + "/limits", object{"reason": "r"}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "minBalance"},
		{"limit's digits", accounts + "ChangeAccountLimits", "PATCH /api/v1/accounts/" + user + "/limits", object{"maxBalance": "1.001", "reason": "r"}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "maxBalance"},
		{"account filter", accounts + "ListAccounts", "GET /api/v1/accounts?accountType=BANK", object{"accountType": "BANK"}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "accountType"},
		{"no reason", accounts + "ChangeAccountStatus", "PATCH /api/v1/accounts/" + user + "/status", object{"status": "suspended"}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "reason"},
		// payments and refunds
		{"payment to external", transactions + "Pay", "payment", paying(object{"merchantAccountId": bank}), 422, codes.FailedPrecondition, "ACCOUNT_TYPE_NOT_ALLOWED", ""},
		{"payment to oneself", transactions + "Pay", "payment", paying(object{"merchantAccountId": user}), 422, codes.FailedPrecondition, "SAME_ACCOUNT", ""},
		{"payment without a merchant", transactions + "Pay", "payment", paying(object{"merchantAccountId": nil}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "merchantAccountId"},
		{"payment with a transfer's key", transactions + "Pay", "payment", paying(object{"idempotencyKey": used["idempotencyKey"]}), 409, codes.AlreadyExists, "IDEMPOTENCY_CONFLICT", ""},
		{"refund of nothing known", transactions + "Refund", "refund", refunding(object{"paymentId": unknown}), 404, codes.NotFound, "TRANSACTION_NOT_FOUND", ""},
		{"refund of a transfer", transactions + "Refund", "refund", refunding(object{"paymentId": transferred}), 422, codes.FailedPrecondition, "NOT_REFUNDABLE", ""},
		{"refund of a hold", transactions + "Refund", "refund", refunding(object{"paymentId": held}), 422, codes.FailedPrecondition, "NOT_REFUNDABLE", ""},
		{"refund of too much", transactions + "Refund", "refund", refunding(object{"amount": "10.01"}), 422, codes.FailedPrecondition, "REFUND_EXCEEDS_PAYMENT", ""},
		{"refund of zero", transactions + "Refund", "refund", refunding(object{"amount": "0.00"}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "amount"},
		{"refund's digits", transactions + "Refund", "refund", refunding(object{"amount": "0.001"}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "amount"},
		{"refund without a payment", transactions + "Refund", "refund", refunding(object{"paymentId": ""}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "paymentId"},
		{"empty batch", transactions + "Batch", "batch", object{"transactions": []object{}}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "transactions"},
		// holds
		{"hold on external", holds + "PlaceHold", "POST /api/v1/holds", holdingOn(object{"accountId": bank}), 422, codes.FailedPrecondition, "ACCOUNT_TYPE_NOT_ALLOWED", ""},
		{"hold on a suspended account", holds + "PlaceHold", "POST /api/v1/holds", holdingOn(object{"accountId": suspended}), 422, codes.FailedPrecondition, "ACCOUNT_SUSPENDED", ""},
		{"hold that has expired", holds + "PlaceHold", "POST /api/v1/holds", holdingOn(object{"expiresAt": "2020-01-01T00:00:00Z"}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "expiresAt"},
		{"hold for too long", holds + "PlaceHold", "POST /api/v1/holds", holdingOn(object{"expiresAt": "2999-01-01T00:00:00Z"}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "expiresAt"},
		{"unknown hold", holds + "GetHold", "GET /api/v1/holds/" + unknown, object{"holdId": unknown}, 404, codes.NotFound, "HOLD_NOT_FOUND", ""},
		{"a payment is no hold", holds + "GetHold", "GET /api/v1/holds/" + payment, object{"holdId": payment}, 404, codes.NotFound, "HOLD_NOT_FOUND", ""},
		{"hold filter", holds + "ListHolds", "GET /api/v1/holds?status=lost", object{"status": "lost"}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "status"},
		{"capture of an unknown hold", holds + "CaptureHold", "POST /api/v1/holds/" + unknown + "/capture", capturing(nil), 404, codes.NotFound, "HOLD_NOT_FOUND", ""},
		{"capture of too much", holds + "CaptureHold", "POST /api/v1/holds/" + held + "/capture", capturing(object{"amount": "5.01"}), 422, codes.FailedPrecondition, "CAPTURE_EXCEEDS_HOLD", ""},
		{"capture of what was voided", holds + "CaptureHold", "POST /api/v1/holds/" + gone + "/capture", capturing(nil), 422, codes.FailedPrecondition, "HOLD_NOT_ACTIVE", ""},
		{"capture for somebody else", holds + "CaptureHold", "POST /api/v1/holds/" + held + "/capture", capturing(object{"destinationAccountId": bank}), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "destinationAccountId"},
		{"capture for nobody", holds + "CaptureHold", "POST /api/v1/holds/" + anyone + "/capture", capturing(nil), 400, codes.InvalidArgument, "INVALID_ARGUMENT", "destinationAccountId"},
		{"void of an unknown hold", holds + "VoidHold", "POST /api/v1/holds/" + unknown + "/void", object{}, 404, codes.NotFound, "HOLD_NOT_FOUND", ""},
		{"close with a hold", accounts + "ChangeAccountStatus", "PATCH /api/v1/accounts/" + holding + "/status", object{"status": "closed", "reason": "r"}, 422, codes.FailedPrecondition, "HOLDS_OPEN", ""},
		{"closing cannot be asked for", accounts + "ChangeAccountStatus", "PATCH /api/v1/accounts/" + user + "/status", object{"status": "closing", "reason": "r"}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "status"},
		// the past, and the proofs
		{"balance of the future", accounts + "GetAccountBalance", "GET /api/v1/accounts/" + user + "/balance?at=2999-01-01T00:00:00Z", object{"at": "2999-01-01T00:00:00Z"}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "at"},
		{"balance before there was one", accounts + "GetAccountBalance", "GET /api/v1/accounts/" + user + "/balance?at=2020-01-01T00:00:00Z", object{"at": "2020-01-01T00:00:00Z"}, 404, codes.NotFound, "ACCOUNT_NOT_FOUND", ""},
		{"balance at a version to come", accounts + "GetAccountBalance", "GET /api/v1/accounts/" + user + "/balance?version=9999", object{"version": 9999}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "version"},
		{"balance at no time", "", "GET /api/v1/accounts/" + user + "/balance?at=yesterday", nil, 400, 0, "INVALID_ARGUMENT", "at"},
		{"statement that ends before it begins", accounts + "GetAccountStatement", "GET /api/v1/accounts/" + user + "/statement?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", object{"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "to"},
		{"history of nobody", accounts + "GetAccountHistory", "GET /api/v1/accounts/" + unknown + "/history", object{"accountId": unknown}, 404, codes.NotFound, "ACCOUNT_NOT_FOUND", ""},
		{"watch of nobody", "", "GET /api/v1/accounts/" + unknown + "/watch", nil, 404, 0, "ACCOUNT_NOT_FOUND", ""},
		{"watch of no transaction", "", "GET /api/v1/transactions/" + unknown + "/watch", nil, 404, 0, "TRANSACTION_NOT_FOUND", ""},
		{"watch of no saga", "", "GET /api/v1/sagas/" + unknown + "/watch", nil, 404, 0, "SAGA_NOT_FOUND", ""},
		{"watch from nowhere", "", "GET /api/v1/accounts/" + user + "/watch?after=-1", nil, 400, 0, "INVALID_ARGUMENT", "after"},
		{"reconcile nobody", books + "Reconcile", "POST /api/v1/books/reconcile", object{"accountId": unknown}, 404, codes.NotFound, "ACCOUNT_NOT_FOUND", ""},
		{"rebuild nothing known", "", "POST /api/v1/readmodels/ledger/rebuild", object{}, 404, codes.NotFound, "READ_MODEL_NOT_FOUND", ""},
		{"rebuild of nothing known", "", "GET /api/v1/readmodels/ledger/rebuild", nil, 404, 0, "READ_MODEL_NOT_FOUND", ""},
		{"stuck ones by status", transactions + "ListTransactions", "GET /api/v1/transactions?stuck=true&status=pending", object{"stuck": true, "status": "pending"}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "status"},
		{"amounts that are none", transactions + "ListTransactions", "GET /api/v1/transactions?minAmount=-1", object{"minAmount": "-1"}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "minAmount"},
		{"no consistency token", transactions + "ListTransactions", "GET /api/v1/transactions?consistencyToken=x", object{"consistencyToken": "x"}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "consistencyToken"},
		{"no such status", accounts + "ChangeAccountStatus", "PATCH /api/v1/accounts/" + user + "/status", object{"status": "frozen", "reason": "r"}, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "status"},
	}
	written := func() [3]int64 {
		return [3]int64{position(t, system.AccountDatabase), position(t, system.TransactionDatabase), position(t, system.SagaDatabase)}
	}
	eventually(t, "the sagas so far have ended", func() bool {
		var n int
		query(t, system.SagaDatabase, "SELECT count(*) FROM saga_state WHERE status IN ('in_progress', 'compensating')", &n)
		return n == 0
	})
	before := written()
	for _, tc := range table {
		method, path, isPath := strings.Cut(tc.kind, " ")
		if !isPath {
			method, path = "POST", "/api/v1/transactions/"+tc.kind
		}
		t.Run("REST "+tc.name, func(t *testing.T) {
			body := tc.body
			if method == "GET" {
				body = nil
			}
			a := call(t, method, path, body, "X-Correlation-ID", "test-"+tc.reason)
			checkProblem(t, a, tc.status, tc.reason, tc.field)
		})
		if tc.rpc != "" {
			t.Run("gRPC "+tc.name, func(t *testing.T) { checkStatus(t, tc.rpc, rpcBody(path, tc.body), tc.code, tc.reason, tc.field) })
		}
	}
	t.Run("keys in body and header differ", func(t *testing.T) {
		checkProblem(t, call(t, "POST", "/api/v1/transactions/transfer", with(nil), "Idempotency-Key", "another", "X-Correlation-ID", "test-INVALID_ARGUMENT"), 400, "INVALID_ARGUMENT", "idempotencyKey")
	})
	t.Run("not JSON by its type", func(t *testing.T) {
		checkProblem(t, call(t, "POST", "/api/v1/transactions/transfer", "<x/>", "Content-Type", "text/xml", "X-Correlation-ID", "test-MEDIA_TYPE_NOT_SUPPORTED"), 415, "MEDIA_TYPE_NOT_SUPPORTED", "")
	})
	if after := written(); after != before {
		t.Errorf("events before the refusals %v, after %v: something was written", before, after)
	}
	// A key that was refused at once is not used.
	key := uuid.NewString()
	must(t, http.StatusUnprocessableEntity, "POST", "/api/v1/transactions/transfer", with(object{"idempotencyKey": key, "destinationAccountId": bank}))
	must(t, http.StatusOK, "POST", "/api/v1/transactions/transfer?wait=30s", with(object{"idempotencyKey": key}))
}

// rpcBody is a REST body as the gRPC request: what stands in the path comes in.
func rpcBody(path string, body any) object {
	o := object{}
	for k, v := range body.(object) {
		o[k] = v
	}
	for prefix, name := range map[string]string{"/api/v1/accounts/": "accountId", "/api/v1/holds/": "holdId"} {
		if rest, ok := strings.CutPrefix(path, prefix); ok {
			o[name], _, _ = strings.Cut(rest, "/")
		}
	}
	return o
}

func checkProblem(t *testing.T, a answer, status int, reason, field string) {
	t.Helper()
	if a.status != status || a.body["status"] != float64(status) || a.body["reason"] != reason {
		t.Fatalf("status %d, want %d %s: %s", a.status, status, reason, a.raw)
	}
	if got := a.header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("Content-Type %q", got)
	}
	if id := "test-" + reason; a.body["correlationId"] != id || a.header.Get("X-Correlation-ID") != id {
		t.Errorf("correlation id %v, %q", a.body["correlationId"], a.header.Get("X-Correlation-ID"))
	}
	for _, key := range []string{"type", "title", "detail"} {
		if s, _ := a.body[key].(string); s == "" {
			t.Errorf("no %s: %s", key, a.raw)
		}
	}
	if field == "" {
		return
	}
	list, _ := a.body["errors"].([]any)
	for _, x := range list {
		if e := x.(object); e["field"] == field && e["rule"] != "" {
			return
		}
	}
	t.Errorf("no error names field %s: %s", field, a.raw)
}

func checkStatus(t *testing.T, method string, body object, code codes.Code, reason, field string) {
	t.Helper()
	m := rpcs()[method]
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	if err := protojson.Unmarshal(b, m.req); err != nil {
		t.Fatal(err)
	}
	err = dial(t, m.addr).Invoke(t.Context(), method, m.req, m.to)
	st := status.Convert(err)
	var got, named bool
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			got = d.GetReason() == reason && d.GetDomain() == "billing" && d.GetMetadata()["correlationId"] != ""
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				named = named || v.GetField() == field
			}
		}
	}
	if st.Code() != code || !got || field != "" && !named {
		t.Errorf("%v %v, want %v %s on field %q", st, st.Details(), code, reason, field)
	}
}
