package failover

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"example.com/billing/deploy/local/system"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"

	"example.com/billing/pkg/rpc"
	"example.com/billing/test/failover/pgpair"
	"example.com/billing/test/process"
)

// failOver loses what the standby does not have: the primary is gone, and the standby takes its place.
func (s *stack) failOver(p *pgpair.Pair) {
	s.t.Helper()
	s.ok(p.Primary.Kill())
	s.ok(p.Promote(s.t.Context()))
	p.Repoint(p.Standby)
}

// lostEvents is the gauge of events that were there and are not any more.
const lostEvents = "es_lost_events"

const versionOf = `SELECT version FROM es_head WHERE stream_type = 'Account' AND stream_id = $1`

// A top-up is acknowledged and lost. The instance that decided it must not let the lost money be spent, not even where the account has
// the same version again, written by the other instance.
func TestLostTopUpIsNotSpent(t *testing.T) {
	s := newStack(t, pgpair.Options{Mode: pgpair.Async}, nil)
	bank, user, shop := s.open("EXTERNAL"), s.open("USER"), s.open("USER")
	s.complete(0, "topup", order(bank, user, "10.00"))
	s.complete(0, "topup", order(bank, user, "1.01"))
	s.ok(s.pair().WaitCaughtUp(t.Context()))
	s.pair().CutReplication()
	conn, err := rpc.Dial(s.sets[0].accounts)
	s.ok(err)
	defer conn.Close()
	client := accountv1.NewPostingServiceClient(conn)
	post := func(kind accountv1.PostingKind, step, amount string) *accountv1.PostingResult {
		res, err := client.Post(t.Context(), &accountv1.PostRequest{Postings: []*accountv1.Posting{{
			SagaId: uuid.NewString(), Step: step, AccountId: user, Kind: kind, Amount: amount, Currency: "USD", Reason: "transfer",
			CorrelationId: "test", TenantId: "default", Actor: "test",
		}}})
		if err != nil {
			return nil // asked again
		}
		return res.GetResults()[0]
	}
	var credited *accountv1.PostingResult
	s.eventually("the top-up that will be lost", recoverMax, func() bool {
		credited = post(accountv1.PostingKind_POSTING_KIND_CREDIT, "credit_destination", "200.00")
		return credited.GetOutcome() == accountv1.PostingOutcome_POSTING_OUTCOME_DONE
	})
	lost, err := s.pair().Primary.Number(t.Context(), system.AccountDatabase, versionOf, user)
	s.ok(err)
	s.failOver(s.pair())
	// The other instance gives the lost version to another event.
	limits := object{"maxBalance": "100000.00", "reason": "the other history", "idempotencyKey": uuid.NewString()}
	s.must(1, http.StatusOK, "PATCH", "/api/v1/accounts/"+user+"/limits", limits)
	again, err := s.pair().Standby.Number(t.Context(), system.AccountDatabase, versionOf, user)
	s.ok(err)
	if again != lost {
		t.Fatalf("the account has version %d, want the lost one's, %d", again, lost)
	}
	var debited *accountv1.PostingResult
	decided := s.within(recoverMax, func() bool {
		debited = post(accountv1.PostingKind_POSTING_KIND_DEBIT, "debit_source", "99.00")
		return debited.GetOutcome() != accountv1.PostingOutcome_POSTING_OUTCOME_UNSPECIFIED
	})
	if decided && debited.GetOutcome() != accountv1.PostingOutcome_POSTING_OUTCOME_REFUSED {
		t.Fatalf("99.00 were debited from an account that holds 11.01: %v", debited)
	}
	for i := range s.sets {
		if got := s.balance(i, user); got != "11.01" {
			t.Errorf("set %d says that the account has %s, want 11.01", i, got)
		}
	}
	s.recover()
	s.works(user, shop)
	s.audit()
}

// Transactions, sagas and postings are acknowledged and lost. The services say so, with what is missing; after the runbook the topics
// are what the databases have, and nothing runs for what does not exist.
func TestLaggingStandbyIsPromoted(t *testing.T) {
	s := newStack(t, pgpair.Options{Mode: pgpair.Async}, nil)
	c := s.cast()
	s.ok(s.pair().WaitCaughtUp(t.Context()))
	s.pair().CutReplication()
	var token string
	for i := range 10 {
		o := order(c.one, c.other, "1.00")
		a, accepted := s.ask(i%2, "transfer", o, 10*time.Second)
		if !accepted {
			t.Fatalf("transfer: %d %v", a.status, a.body)
		}
		token = a.header.Get("X-Consistency-Token")
	}
	// One whose trigger is on the topic, and no saga has run yet.
	s.each("saga", (*process.Process).Pause)
	trigger := order(c.one, c.other, "50.00")
	if a, accepted := s.ask(0, "transfer", trigger, 0); !accepted {
		t.Fatalf("transfer: %d %v", a.status, a.body)
	}
	s.eventually("the trigger is on its topic", recoverMax, func() bool {
		n, err := s.pair().Primary.Number(t.Context(), system.TransactionDatabase,
			"SELECT (SELECT max(position) FROM es_event) - (SELECT position FROM outbox_relay)")
		return err == nil && n == 0
	})
	s.failOver(s.pair())
	s.each("saga", (*process.Process).Resume)

	if !s.within(recoverMax, func() bool {
		return s.metric("account", lostEvents) > 0 && s.metric("transaction", lostEvents) > 0 && s.metric("saga", lostEvents) > 0
	}) {
		t.Error("not all services tell of the events that are lost")
	}
	said := s.recover()
	s.works(c.one, c.other)
	lost := s.served()
	if len(lost) < 11 {
		t.Errorf("%d acknowledged transactions are lost, want 11 at least: the standby did not lag", len(lost))
	}
	for _, a := range lost {
		if said != "" && !strings.Contains(said, a.id) {
			t.Errorf("recover does not name the lost transaction %s", a.id)
		}
	}
	if got := s.balance(0, c.one); got != "99.98" {
		t.Errorf("the source has %s, want 99.98: something was posted for a transaction that does not exist", got)
	}
	for i := range s.sets {
		if a, err := s.listed(i, c.one, token); err != nil || a.status == http.StatusBadRequest || a.status >= 500 {
			t.Errorf("a list with a token of the lost history: %d %v %v", a.status, a.body, err)
		}
		if !s.within(recoverMax, func() bool { return s.ready(i) }) {
			t.Errorf("set %d is not ready after the runbook", i)
		}
	}
	s.audit()
}

// Only the transactions' database loses its last moments: transactions are pending again whose sagas have ended. They end once more,
// as their sagas did, and no reservation is left.
func TestTransactionsThatAreBackAsPendingEnd(t *testing.T) {
	s := newStack(t, pgpair.Options{}, map[string]pgpair.Options{system.TransactionDatabase: {Mode: pgpair.Async}})
	transactions := s.pairs[system.TransactionDatabase]
	c := s.cast()
	payment := object{
		"idempotencyKey": uuid.NewString(), "customerAccountId": c.one, "merchantAccountId": c.other, "amount": "20.00", "currency": "USD",
	}
	paid := s.complete(0, "payment", payment)
	s.each("saga", (*process.Process).Pause)
	var ids []string
	for kind, o := range map[string]object{
		"transfer": order(c.one, c.other, "1.00"),
		"refund":   {"idempotencyKey": uuid.NewString(), "paymentId": paid, "amount": "5.00"},
	} {
		a, accepted := s.ask(0, kind, o, 0)
		if !accepted {
			t.Fatalf("%s: %d %v", kind, a.status, a.body)
		}
		ids = append(ids, a.body["transactionId"].(string))
	}
	s.ok(transactions.WaitCaughtUp(t.Context()))
	transactions.CutReplication() // what is requested is there; how it ends is not
	s.each("saga", (*process.Process).Resume)
	for _, id := range ids {
		s.ended(id)
	}
	s.eventually("the sagas have ended", recoverMax, func() bool {
		n, err := s.pairs[system.SagaDatabase].Primary.Number(t.Context(), system.SagaDatabase,
			"SELECT count(*) FROM saga_state WHERE status IN ('in_progress', 'compensating')")
		return err == nil && n == 0
	})
	s.failOver(transactions)
	s.recover()
	for _, id := range ids {
		if tx := s.ended(id); tx["status"] != "completed" {
			t.Errorf("transaction %s is %v, and its saga had completed", id, tx["status"])
		}
	}
	tx := s.must(0, http.StatusOK, "GET", "/api/v1/transactions/"+paid, nil)
	if tx["refundedAmount"] != "5.00" || tx["refundingAmount"] != nil && tx["refundingAmount"] != "0.00" {
		t.Errorf("of the payment, %v are refunded and %v reserved, want 5.00 and nothing", tx["refundedAmount"], tx["refundingAmount"])
	}
	s.works(c.one, c.other)
	s.audit()
}
