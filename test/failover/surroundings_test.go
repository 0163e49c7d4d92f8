package failover

import (
	"net/http"
	"os"
	"testing"
	"time"

	"example.com/billing/test/failover/pgpair"
	"example.com/billing/test/process"
)

// The clock of Postgres is an hour ahead: changes are refused, for the time would stay on all that follows. After a cut of power the
// clock is right again. The leases of before, which end in an hour, hold nothing up.
func TestLeasesOfAWrongClockAreVoid(t *testing.T) {
	env, err := pgpair.Clock(time.Hour)
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal(err) // .ci/run installs it
	} else if err != nil {
		t.Skip("skipped: ", err)
	}
	s := newStack(t, pgpair.Options{Env: env}, nil)
	s.must(0, http.StatusServiceUnavailable, "POST", "/api/v1/accounts", object{"ownerId": "o", "ownerType": "person", "accountType": "USER", "currency": "USD"})
	s.eventually("all leases end in an hour", recoverMax, func() bool {
		n := 0
		for _, d := range databases {
			n += s.number(d, `SELECT count(*) FROM outbox_relay WHERE leased_until > $1`, time.Now().Add(30*time.Minute))
		}
		return n == len(databases)
	})
	s.each("", (*process.Process).Kill)
	s.ok(s.pair().Primary.Kill())
	s.ok(s.pair().Primary.Start(t.Context()))
	s.each("", (*process.Process).Start)
	s.eventually("both sets are ready", startMax, func() bool { return s.ready(0) && s.ready(1) })
	began := time.Now()
	c := s.cast()
	s.works(c.one, c.other)
	t.Logf("money moves and lists flow %.1f s after the start", time.Since(began).Seconds())
	if lost := s.served(); len(lost) > 0 {
		t.Errorf("%d acknowledged transactions are lost: %v", len(lost), lost)
	}
	s.audit()
}

// The database's disk is full: a change is refused in time and may be asked for again, readiness says so, and all goes on when there
// is room.
func TestFullDiskIsToldAndRecoveredFrom(t *testing.T) {
	if err := pgpair.CanMount(); err != nil {
		t.Skip("skipped: ", err)
	}
	s := newStack(t, pgpair.Options{DiskMB: 250}, nil)
	c := s.cast()
	stop := s.load(c) // what is left in pages and in the log is used up
	defer stop()
	s.ok(s.pair().Primary.Exec(t.Context(), "postgres", "SELECT pg_switch_wal()"))
	s.ok(s.pair().FillDisk())
	var (
		a   answer
		err error
	)
	refused := s.within(recoverMax, func() bool {
		a, err = s.call(0, "POST", "/api/v1/transactions/transfer", order(c.one, c.other, "0.01"))
		return err != nil || a.status >= 400
	})
	switch {
	case !refused:
		t.Errorf("a full disk takes all transfers")
	case err != nil:
		t.Errorf("no answer in %s: %v", callMax, err)
	case a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "":
		t.Errorf("a full disk is answered with %d, Retry-After %q: %v", a.status, a.header.Get("Retry-After"), a.body)
	}
	for i := range s.sets {
		if !s.within(recoverMax, func() bool { return !s.ready(i) }) {
			t.Errorf("set %d is ready with a full disk", i)
		}
	}
	stop()
	s.ok(s.pair().FreeDisk())
	if s.pair().Primary.Ended() {
		s.ok(s.pair().Primary.Start(t.Context()))
	}
	for i := range s.sets {
		if !s.within(recoverMax, func() bool { return s.ready(i) }) {
			t.Errorf("set %d is not ready, and the disk has room", i)
		}
	}
	s.works(c.one, c.other)
	if lost := s.served(); len(lost) > 0 {
		t.Errorf("%d acknowledged transactions are lost: %v", len(lost), lost)
	}
	s.audit()
}

// A snapshot that somebody holds open in each database stops nothing.
func TestHeldSnapshotStopsNothing(t *testing.T) {
	s := newStack(t, pgpair.Options{}, nil)
	c := s.cast()
	for _, d := range databases {
		release, err := pgpair.HoldSnapshot(t.Context(), s.pair().DSN(d))
		s.ok(err)
		defer func() { _ = release() }()
	}
	for i := range 40 {
		s.accepted(i%2, order(c.one, c.other, "0.01"))
	}
	if lost := s.served(); len(lost) > 0 {
		t.Errorf("%d acknowledged transactions are lost: %v", len(lost), lost)
	}
	s.works(c.one, c.other)
	s.audit()
}

// accepted sends a transfer until it is accepted, and returns its id.
func (s *stack) accepted(i int, o object) (id string) {
	s.t.Helper()
	s.eventually("a transfer is accepted", recoverMax, func() bool {
		a, ok := s.ask(i, "transfer", o, 0)
		if ok {
			id = a.body["transactionId"].(string)
		}
		return ok
	})
	return id
}
