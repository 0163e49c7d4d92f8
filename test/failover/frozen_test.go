package failover

import (
	"sync"
	"testing"
	"time"

	"example.com/billing/test/failover/pgpair"
)

// The primary freezes and never goes on: its connections stay open and never answer. Once the standby is promoted and has the address,
// both of each service work again, and nothing that was acknowledged is lost.
func TestFrozenPrimaryIsGivenUp(t *testing.T) {
	s := newStack(t, pgpair.Options{Mode: pgpair.Sync}, nil)
	c := s.cast()
	stop := s.load(c)
	defer stop()
	s.eventually("the load runs", recoverMax, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.acked) > 20 })
	s.ok(s.pair().Primary.Freeze())
	s.ok(s.pair().Promote(t.Context()))
	s.pair().Repoint(s.pair().Standby)
	promoted := time.Now()
	var both sync.WaitGroup
	for i := range s.sets {
		both.Go(func() {
			transfer := order(c.other, c.one, "0.02")
			served := s.within(recoverMax, func() bool {
				a, accepted := s.ask(i, "transfer", transfer, 5*time.Second)
				return accepted && a.body["status"] == "completed"
			})
			if !served || !s.within(recoverMax, func() bool { return s.ready(i) }) {
				t.Errorf("set %d: serves %t, ready %t, %s after the promotion", i, served, s.ready(i), time.Since(promoted).Round(time.Second))
			}
			t.Logf("set %d serves %.1f s after the promotion", i, time.Since(promoted).Seconds())
		})
	}
	both.Wait()
	stop()
	if t.Failed() {
		return
	}
	s.works(c.one, c.other)
	if lost := s.served(); len(lost) > 0 {
		t.Errorf("%d acknowledged transactions are lost with a synchronous standby: %v", len(lost), lost)
	}
	s.audit()
}
