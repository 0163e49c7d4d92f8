package reconcile_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/durationpb"

	"example.com/billing/pkg/job"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
)

// small is a bank with two customers and a few transfers.
type small struct {
	*world
	bank, alice, bob string
	rent             string // the last transfer, of 25.00 from alice to bob
}

func newSmall(t *testing.T) small {
	t.Helper()
	w := newWorld(t)
	s := small{world: w, bank: w.openAccount(account.External), alice: w.openAccount(account.User), bob: w.openAccount(account.User)}
	w.transfer(s.bank, s.alice, "100.00")
	w.transfer(s.bank, s.bob, "10.00")
	w.debit(uuid.NewString(), s.alice, "500.00") // refused
	s.rent = w.transfer(s.alice, s.bob, "25.00")
	return s
}

func TestNothingWasCheckedYet(t *testing.T) {
	w := newWorld(t)
	res, err := w.GetReconciliation(t.Context(), &accountv1.GetReconciliationRequest{})
	if r := res.GetReconciliation(); err != nil || r.GetStatus() != "never" || r.GetStartedAt() != nil {
		t.Errorf("%v, %v", r, err)
	}
	w.wantClean(w.all()) // an empty database
}

func TestACleanDatabaseIsClean(t *testing.T) {
	w := newWorld(t)
	bank, alice, bob := w.openAccount(account.External), w.openAccount(account.User), w.openAccount(account.User)
	w.openAccount(account.System)
	w.transfer(bank, alice, "100.00")
	w.transfer(alice, bob, "30.00")
	w.do(bob, "status", account.ChangeStatus{Status: account.Suspended, Reason: "test"}, true)
	w.do(uuid.NewString(), "k", account.Cancel{SagaID: uuid.NewString(), Step: "debit_source"}, true) // a register on a stream that is no account
	r := w.all()
	w.wantClean(r)
	if r.GetAccounts() != 4 || r.GetEvents() != 4+4+2 || r.GetStartedAt() == nil || r.GetEndedAt() == nil || r.AccountId != nil {
		t.Errorf("%v", r)
	}
	one := w.one(strings.ToUpper(alice))
	w.wantClean(one)
	if one.GetAccounts() != 1 || one.GetEvents() != 3 || one.GetAccountId() != alice {
		t.Errorf("%v", one)
	}
	if latest, err := w.GetReconciliation(t.Context(), &accountv1.GetReconciliationRequest{}); err != nil || latest.GetReconciliation().GetEvents() != 10 {
		t.Errorf("%v, %v", latest, err)
	}
}

func TestAnUnknownAccountIsNotFound(t *testing.T) {
	w := newWorld(t)
	id, bad := uuid.NewString(), "x"
	if _, err := w.Reconcile(t.Context(), &accountv1.ReconcileRequest{AccountId: &id}); rpc.ErrorOf(err).Reason != "ACCOUNT_NOT_FOUND" {
		t.Errorf("got %v", err)
	}
	for field, req := range map[string]*accountv1.ReconcileRequest{"accountId": {AccountId: &bad}, "wait": {Wait: durationpb.New(31 * time.Second)}} {
		if _, err := w.Reconcile(t.Context(), req); len(rpc.ErrorOf(err).Violations) != 1 || rpc.ErrorOf(err).Violations[0].Field != field {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

// Whatever is tampered with, by SQL, is found and named.
func TestWhatIsAlteredIsFound(t *testing.T) {
	const ofAlice = ` WHERE stream_id = $1`
	replace := func(of, from, to string) string {
		return `UPDATE es_event SET payload = convert_to(replace(convert_from(payload, 'UTF8'), '` + from + `', '` + to + `'), 'UTF8')` + of
	}
	for name, tc := range map[string]struct {
		sql      string
		kind     string
		detail   string
		alone    bool // nothing else is found
		currency bool // named by its currency
	}{
		"the first event is deleted":         {`DELETE FROM es_event` + ofAlice + ` AND version = 1`, "sequence", "After version 0", false, false},
		"an event in the middle is deleted":  {`DELETE FROM es_event` + ofAlice + ` AND version = 2`, "sequence", "After version 1 of the stream comes version 3", false, false},
		"the last event is deleted":          {`DELETE FROM es_event` + ofAlice + ` AND version = 4`, "sequence", "ends at version 3", false, false},
		"all events are deleted":             {`DELETE FROM es_event` + ofAlice, "sequence", "ends at version 0", false, false},
		"an event is no JSON":                {`UPDATE es_event SET payload = '\x00ff'` + ofAlice + ` AND version = 2`, "sequence", "Version 2 cannot be read", false, false},
		"an event is of an unknown type":     {replace(ofAlice+` AND version = 1`, `AccountCreated`, `AccountMelted`), "sequence", "Version 1 cannot be read", false, false},
		"an event is another stream's":       {replace(ofAlice+` AND version = 2`, `"aggregateVersion":2`, `"aggregateVersion":3`), "sequence", "Version 2 cannot be read: it is version 3", false, false},
		"an amount is altered":               {replace(ofAlice+` AND version = 4`, `"changeAmount":"25.00"`, `"changeAmount":"26.00"`), "arithmetic", "The amount of version 4 (debit_source)", true, false},
		"a balance is altered":               {replace(ofAlice+` AND version = 4`, `"newBalance":"75.00"`, `"newBalance":"175.00"`), "arithmetic", "The amount of version 4", false, false},
		"a previous balance is altered":      {replace(ofAlice+` AND version = 4`, `"previousBalance":"100.00"`, `"previousBalance":"101.00"`), "arithmetic", "The previous balance of version 4", false, false},
		"transit is altered":                 {replace(ofAlice+` AND version = 4`, `"transitChange":"25.00"`, `"transitChange":"24.00"`), "arithmetic", "What transit gains of version 4", false, false},
		"the stored balance is altered":      {`UPDATE es_head SET snapshot = convert_to(replace(convert_from(snapshot, 'UTF8'), '"balance":"75"', '"balance":"750"'), 'UTF8')` + ofAlice, "state", "not what the events fold to", true, false},
		"the stored state is unreadable":     {`UPDATE es_head SET snapshot = '\x00ff'` + ofAlice, "state", "cannot be read", true, false},
		"the stored state is of no version":  {`UPDATE es_head SET snapshot_version = 77` + ofAlice, "state", "none of the stream", true, false},
		"the head is behind":                 {`UPDATE es_head SET version = 3` + ofAlice, "state", "not its newest event", true, false},
		"the head is gone":                   {`DELETE FROM es_head` + ofAlice, "state", "not its newest event", true, false},
		"the row's state is altered":         {`UPDATE account_view SET state = convert_to(replace(convert_from(state, 'UTF8'), '"balance":"75"', '"balance":"1"'), 'UTF8') WHERE id = $1`, "read_model", "another state", true, false},
		"the row's status is altered":        {`UPDATE account_view SET status = 'closed' WHERE id = $1`, "read_model", "another status", true, false},
		"the row's tenant is altered":        {`UPDATE account_view SET tenant_id = 'other' WHERE id = $1`, "read_model", "another tenant_id", true, false},
		"the row is ahead":                   {`UPDATE account_view SET version = 5 WHERE id = $1`, "read_model", "never had", true, false},
		"the row claims an older version":    {`UPDATE account_view SET version = 2 WHERE id = $1`, "read_model", "The row of version 2", true, false},
		"the books of users are altered":     {`UPDATE book_total SET user_total = user_total + 1 WHERE $1 <> ''`, "books", "USER accounts in USD", false, true},
		"the books of transit are altered":   {`UPDATE book_total SET in_transit = 0.01 WHERE $1 <> ''`, "books", "money in transit in USD", false, true},
		"the books have another currency":    {`INSERT INTO book_total SELECT 'XXX', 1, -1, 0, 0 WHERE $1 <> ''`, "books", "in XXX", false, true},
		"what was added last is altered":     {`INSERT INTO book_delta (currency, user_total, external_total, system_total, in_transit) SELECT 'USD', 1, 0, 0, 0 WHERE $1 <> ''`, "books", "USER accounts in USD", false, true},
		"the books have lost a currency":     {`DELETE FROM book_total WHERE $1 <> ''`, "books", "in USD", false, true},
		"an account is in the list for none": {`INSERT INTO account_view SELECT gen_random_uuid(), 1, '', '', '', '', '', '', now(), '' WHERE $1 <> ''`, "read_model", "never opened", true, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSmall(t)
			s.wantClean(s.all())
			s.rollUp()
			s.exec(tc.sql, s.alice)
			reports := []*accountv1.Reconciliation{s.all(), s.busy(s.all)}
			if !tc.currency {
				reports = append(reports, s.one(s.alice))
				s.wantClean(s.one(s.bob))
			}
			for _, r := range reports {
				found := false
				for _, f := range r.GetFindings() {
					if f.GetKind() == tc.kind && strings.Contains(f.GetDetail(), tc.detail) && (tc.currency || f.GetAccountId() == s.alice) {
						found = true
					}
				}
				if !found || r.GetStatus() != "differences" || int(r.GetFindingCount()) != len(r.GetFindings()) || tc.alone && r.GetFindingCount() != 1 {
					t.Errorf("got %v", r)
				}
			}
		})
	}
}

// The finding about an event's numbers names its transaction.
func TestAFindingNamesTheTransaction(t *testing.T) {
	s := newSmall(t)
	s.exec(`UPDATE es_event SET payload = convert_to(replace(convert_from(payload, 'UTF8'), '"changeAmount":"25.00"', '"changeAmount":"26.00"'), 'UTF8') WHERE stream_id = $1`, s.alice)
	f := s.one(s.alice).GetFindings()
	if len(f) != 1 || f[0].GetTransactionId() != s.rent || f[0].GetExpected() != "25" || f[0].GetActual() != "26" {
		t.Errorf("%v", f)
	}
}

// The read model follows: a row that is behind, or not there yet, is no finding. One that should long be there is.
func TestTheReadModelMayFollow(t *testing.T) {
	w := newWorld(t)
	bank, alice := w.openAccount(account.External), w.openAccount(account.User)
	w.do(alice, "a", account.ChangeStatus{Status: account.Suspended}, false) // not projected
	late := uuid.NewString()
	w.do(late, "", account.Open{OwnerID: "u-1", OwnerType: "person", Type: account.User, Currency: "USD", Scale: 2, RequestHash: "h"}, false)
	w.wantClean(w.all())
	w.exec(`UPDATE outbox_relay SET position = es_end()`)
	w.wantClean(w.all()) // published a moment ago
	w.exec(`UPDATE es_event SET recorded_at = recorded_at - interval '2 minutes'`)
	for _, r := range []*accountv1.Reconciliation{w.all(), w.one(late)} {
		if f := r.GetFindings(); len(f) != 1 || f[0].GetKind() != "read_model" || f[0].GetAccountId() != late {
			t.Errorf("%v", f)
		}
	}
	w.exec(`UPDATE outbox_relay SET position = 0`)
	w.wantClean(w.all()) // old, and not published: Kafka is away
	w.wantClean(w.one(bank))
}

// A state that an older version of the code wrote in another way is no finding as long as it means the same.
func TestAStateWrittenInAnotherWayIsClean(t *testing.T) {
	s := newSmall(t)
	for _, sql := range []string{
		`UPDATE es_head SET snapshot = convert_to(replace(convert_from(snapshot, 'UTF8'), '"balance":"75"', '"later":1, "balance":"75.00"'), 'UTF8') WHERE stream_id = $1`,
		`UPDATE account_view SET state = convert_to(replace(convert_from(state, 'UTF8'), '"balance":"75"', '"later":1, "balance":"75.00"'), 'UTF8') WHERE id = $1`,
	} {
		s.exec(sql, s.alice)
	}
	s.wantClean(s.all())
}

// Money in transit is no finding while its transaction is open, and one once that has ended.
func TestMoneyInTransit(t *testing.T) {
	s := newSmall(t)
	id := uuid.NewString()
	s.debit(id, s.alice, "5.00")
	s.transactions.set(id, true)
	s.wantClean(s.all())
	s.transactions.set(id, false)
	r := s.all()
	if f := r.GetFindings(); r.GetStatus() != "differences" || len(f) != 1 || f[0].GetKind() != "transit" || f[0].GetAccountId() != s.alice ||
		f[0].GetTransactionId() != id || f[0].GetActual() != "5 USD" {
		t.Errorf("%v", r)
	}
	s.credit(id, s.bob, "5.00")
	s.wantClean(s.all())
}

// A transaction that ends between the postings' position and the question had money in transit there, and none at its end.
func TestATransactionThatEndsMeanwhile(t *testing.T) {
	s := newSmall(t)
	good, bad := uuid.NewString(), uuid.NewString()
	for _, id := range []string{good, bad} {
		s.debit(id, s.alice, "5.00")
		s.transactions.set(id, true)
	}
	s.transactions.before = func() {
		s.transfer(s.bank, s.alice, "1.00") // others go on
		s.credit(good, s.bob, "5.00")
		s.credit(bad, s.bob, "4.00")
		s.transactions.set(good, false)
		s.transactions.set(bad, false)
	}
	r := s.all()
	if f := r.GetFindings(); len(f) != 1 || f[0].GetTransactionId() != bad || f[0].GetActual() != "1 USD" {
		t.Errorf("%v", r)
	}
}

// A rebuild that switches just as the check begins puts a new table in the list's place: to an older snapshot it would be empty.
func TestASwitchAtTheBeginning(t *testing.T) {
	s := newSmall(t)
	s.exec(`UPDATE outbox_relay SET position = es_end()`)
	s.exec(`UPDATE es_event SET recorded_at = recorded_at - interval '2 minutes'`) // every row should be there
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `LOCK TABLE account_view IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	if err := s.Reconciler.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	pgtest.AwaitLock(t, s.pool, "account_view", 1, nil)
	if _, err := tx.Exec(t.Context(), `CREATE TABLE made (LIKE account_view INCLUDING ALL); INSERT INTO made SELECT * FROM account_view;
		DROP TABLE account_view; ALTER TABLE made RENAME TO account_view`); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if state, report, err := s.Reconciler.Latest(t.Context(), 30*time.Second); err != nil || state.Status != job.Done || report.Found != 0 || report.Accounts != 3 {
		t.Errorf("%+v, %+v, %v", state, report, err)
	}
}

func TestWhatCannotBeCheckedFails(t *testing.T) {
	s := newSmall(t)
	s.transactions.fail = rpc.Fail(rpc.ReasonUnavailable, "not today")
	s.wantClean(s.all()) // nothing is in transit: nobody is asked
	s.debit(uuid.NewString(), s.alice, "5.00")
	if r := s.all(); r.GetStatus() != "failed" || !strings.Contains(r.GetError(), "not today") || r.GetEndedAt() == nil {
		t.Errorf("%v", r)
	}
	s.transactions.fail = nil
	if r := s.all(); r.GetStatus() != "differences" || r.Error != nil {
		t.Errorf("%v", r)
	}
}

// A request for a check is answered by a check that began after it, although another was under way.
func TestACheckIsNeverAnsweredByAnOlderOne(t *testing.T) {
	s := newSmall(t)
	asked, goOn := make(chan struct{}), make(chan struct{})
	var first sync.Once
	s.transactions.before = func() { first.Do(func() { close(asked); <-goOn }) }
	s.debit(uuid.NewString(), s.alice, "5.00")
	if _, err := s.Reconcile(t.Context(), &accountv1.ReconcileRequest{Wait: durationpb.New(0)}); err != nil {
		t.Fatal(err)
	}
	<-asked // the first check has its snapshot
	s.debit(uuid.NewString(), s.alice, "6.00")
	second := make(chan *accountv1.Reconciliation, 1)
	go func() { second <- s.all() }()
	<-time.After(300 * time.Millisecond) // so that it finds the first one under way; what is right does not depend on it
	close(goOn)
	if r := <-second; r.GetStatus() != "differences" || r.GetFindingCount() != 2 {
		t.Errorf("got %v", r)
	}
}

// One run at a time, which every instance sees.
func TestARunIsSeenByAllInstances(t *testing.T) {
	s := newSmall(t)
	jobs := job.New(s.pool, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = jobs.Close(context.Background()) })
	there := s.instance(jobs)
	asked, goOn := make(chan struct{}), make(chan struct{})
	s.transactions.before = func() { close(asked); <-goOn }
	s.debit(uuid.NewString(), s.alice, "5.00")
	ask := &accountv1.ReconcileRequest{Wait: durationpb.New(0)}
	res, err := s.Reconcile(t.Context(), ask)
	if err != nil || res.GetReconciliation().GetStatus() != "running" {
		t.Errorf("%v, %v", res, err)
	}
	<-asked
	if res, err := there.Reconcile(t.Context(), ask); err != nil || res.GetReconciliation().GetStatus() != "running" {
		t.Errorf("%v, %v", res, err)
	}
	close(goOn)
	s.transactions.before = nil
	state, report, err := there.Reconciler.Latest(t.Context(), 30*time.Second)
	if err != nil || state.Status != job.Done || report.Found != 1 {
		t.Errorf("%+v, %+v, %v", state, report, err)
	}
}
